"""What it would take to settle a verdict over seeds that the runs so far leave open."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from pytest_fp16.theory.limits import (
    Levels,
    Sample,
    largest,
    levels_at,
    lower_limit,
    spread_of_losses,
    upper_limit,
    whole_levels,
)
from pytest_fp16.theory.looks import FIRST_LOOK, FURTHER_LOOKS
from pytest_fp16.theory.seeds import Look

_ASSURANCE = 0.8
#: More seeds than anybody runs: what needs so many is never settled.
MOST = 100_000
_MANY = 1_000_000


def further_runs(look: Look, losses: Sequence[float], allowance: int) -> int:
    """32-bit runs worth making before the next look at them; 0 where they would not settle it.

    They are worth it where a spread one standard error below the estimate, were it known, would
    put the mean of the pairs there are above the budget.
    """
    spread = look.reference_spread
    if look.outcome != "undecided" or look.further == FURTHER_LOOKS or not spread:
        return 0
    d = np.asarray(losses, np.float64)
    own = spread_of_losses(d, d[:0], look.resolution, look.grain)
    levels = levels_at(look.n, allowance, FURTHER_LOOKS, known=False)
    if levels is None or not math.isfinite(own) or not math.isfinite(spread):
        return 0
    spread *= 1 - 1 / math.sqrt(2 * (look.runs - 1))
    budget = largest(look.resolution, spread)
    known = Sample(look.mean, own, look.n, spread, _MANY)
    return allowance if lower_limit(known, budget, look.resolution, levels) > budget else 0


def seeds_missing(look: Look, losses: Sequence[float], allowance: int) -> int:
    """How many more pairs than `allowance` would settle it, were mean and spreads to stay.

    The chance that the next pairs move the mean towards the budget is allowed for: with the answer
    four runs in five are settled, if the true loss is what was seen. Zero for a look that is
    settled; at most 100,000 (a mean that lies on the budget is never settled).
    """
    if look.outcome != "undecided":
        return 0
    d = np.asarray(losses, np.float64)
    spread = spread_of_losses(d, d[:0], look.resolution, look.grain)
    if not math.isfinite(spread):
        return max(FIRST_LOOK - allowance, 1)
    start = max(allowance, look.n)
    low, high = start, start + 1
    while not _would_settle(look, spread, high) and high - start < MOST:
        low, high = high, start + 2 * (high - start)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _would_settle(look, spread, middle) else (middle, high)
    return min(high - start, MOST) + start - allowance


def _would_settle(look: Look, spread: float, n: int) -> bool:
    if n < FIRST_LOOK:
        return False
    drift = stats.norm.ppf(_ASSURANCE) * spread / math.sqrt(n)
    below = look.mean <= look.budget
    estimated = look.reference_spread is not None
    whole = whole_levels(not estimated)
    # What the last look of a plan has of what the plan may spend, about: less, where it is one of
    # three at nearly the same.
    levels = Levels(
        0.7 * whole.known, 0.7 * whole.spread, (0.4 if estimated else 0.7) * whole.above
    )
    mean = look.mean + (drift if below else -drift)
    freedom = n - 1 if below else n * (1 + FURTHER_LOOKS) - 2
    pairs = Sample(mean, spread, n, look.reference_spread, freedom)
    found = (upper_limit if below else lower_limit)(pairs, look.budget, look.resolution, levels)
    return found < look.budget if below else found > look.budget
