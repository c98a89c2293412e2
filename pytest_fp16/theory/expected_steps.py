"""How many steps of a training will see a batch that fails late.

One that is wholly right, an output at a bound that none can pass, outputs that meet their targets
number for number.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
from scipy.special import stdtr
from torch import Tensor

from pytest_fp16.theory.rounding import Format, ulp

#: Places along what is ahead at which a chance is taken.
_PLACES = 64


def share(wrong: int, of: int) -> float:
    """A share that was counted, by the rule of succession: none of few is not zero."""
    return (wrong + 1) / (of + 2)


def expected_solved(shares: Sequence[tuple[int, float]], total: int, decisions: int) -> float:
    """The expected number of steps whose batch is wholly right, from the last known one on.

    The share of wrong decisions is taken to go on falling as a power of the number of steps, as
    learning curves do (Hestness et al. 2017), through the last two points; one that rises stays as
    it is. Decisions are taken to be independent.

    Args:
        shares: (steps made, share of decisions that are wrong then), in order; at least one.
        total: steps of the whole training.
        decisions: in one batch.
    """
    step, last = shares[-1]
    slope = 0.0
    if len(shares) > 1 and 0 < shares[-2][0] < step:
        before, known = shares[-2]
        slope = max(math.log(known / last) / math.log(step / before), 0.0)
    ahead = range(max(step, 1), total)
    wrong = (last * math.pow(at / max(step, 1), -slope) for at in ahead)
    return sum(((1 - min(w, 1.0)) ** decisions for w in wrong), 0.0)


def expected_at_bound(
    known: Sequence[tuple[int, Sequence[float]]], within: float, total: int
) -> float:
    """The expected number of steps whose nearest output lies within a distance of its bound.

    The gap that the nearest output of a batch leaves is taken to be log-normal over batches, its
    spread as uncertain as a few of them make it (Student's t), and to go on falling as a power of
    the number of steps, as in `expected_solved`; no faster than their inverse, as what is learned
    from noise does (what fell faster was a start), and as their root where only one point is known.

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


def expected_met(
    targets: Tensor,
    errors: Tensor,
    fmt: Format,
    steps: tuple[int, int],
    count: int,
    reach: int = 0,
    whole: bool = True,
) -> float:
    """The expected number of steps in which a row of outputs meets its targets.

    Errors are taken to be independent, and half of them below their median, on both sides of zero,
    which gives how many fall into the ulp around a number. They are taken to fall as the root of
    the number of steps, as those of stochastic steps do (Polyak and Juditsky 1992).

    Args:
        targets: numbers of the format, a row per sample.
        errors: of the outputs now, in the same shape.
        fmt: the format of both.
        steps: made so far, and of the whole training.
        count: rows in a step.
        reach: ulps by which an output may miss a target.
        whole: whether all numbers of a row must be met, and not one of them.
    """
    made, total = max(steps[0], 1), max(*steps, 1)
    medians = errors.double().abs().median(0).values
    width = (2 * reach + 1) * ulp(targets, fmt).double()
    found = []
    for at in torch.linspace(made, total, _PLACES).tolist():
        chance = (width / (4 * medians * (made / at) ** 0.5)).clamp(max=1.0)
        rows = chance.prod(1) if whole else 1 - (1 - chance).prod(1)
        found.append(1 - (1 - float(rows.mean())) ** count)
    return (total - made) * sum(found) / _PLACES
