"""How many batches of a training will have nothing wrong left in them."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["expected_solved", "share"]


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
