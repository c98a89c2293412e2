"""How many steps of a training will see an output at a bound that none can pass."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy.special import stdtr

__all__ = ["expected_at_bound"]

#: Places along what is ahead at which the chance is taken.
_PLACES = 64


def expected_at_bound(
    known: Sequence[tuple[int, Sequence[float]]], within: float, total: int
) -> float:
    """The expected number of steps whose nearest output lies within a distance of its bound.

    The gap that the nearest output of a batch leaves is taken to be log-normal over batches, its
    spread as uncertain as a few of them make it (Student's t), and to go on falling as a power of
    the number of steps, as in `solved`; no faster than their inverse, as what is learned from noise
    does (what fell faster was a start), and as their root where only one point is known.

    Args:
        known: (steps made, the gap of each of a few batches then), in order; at least one.
        within: the distance.
        total: steps of the whole training.
    """
    made, gaps = known[-1]
    logs = _logs(gaps, within)
    mean, power = statistics.fmean(logs), 0.5
    if len(known) > 1 and 0 < known[-2][0] < made:
        before = statistics.fmean(_logs(known[-2][1], within))
        power = min(max((before - mean) / math.log(made / known[-2][0]), 0.0), 1.0)
    freedom = len(logs) - 1
    spread = max(statistics.stdev(logs), 1e-9) if freedom else math.inf
    spread *= math.sqrt(1 + 1 / len(logs))
    made, total = max(made, 1), max(made, total, 1)
    chances = []
    for place in range(_PLACES):
        at = made + (total - made) * place / (_PLACES - 1)
        away = math.log(within) - (mean - power * math.log(at / made))
        chances.append(float(stdtr(max(freedom, 1), away / spread)))
    return (total - made) * statistics.fmean(chances)


def _logs(gaps: Sequence[float], within: float) -> list[float]:
    """Logarithms; a gap of none is as good as a thousandth of the distance."""
    return [math.log(max(gap, within * 1e-3)) for gap in gaps]
