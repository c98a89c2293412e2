"""The level of each of many looks at growing samples, so that all together spend what one may.

A level is spent by the power family α(n/N)³ of Kim and DeMets (1987, doi:10.1093/biomet/74.1.149),
a spending function in the sense of Lan and DeMets (1983, doi:10.1093/biomet/70.3.659). With few
pairs the normal theory for the joint distribution of the looks is too rough, so that of the
statistics themselves is simulated, once per allowance.

A part may be kept for looks at further 32-bit runs after the last pair, where their spread sets
the budget. They add nothing to the mean, so what they show is more like what was seen before than
new pairs would be: simulated as new pairs, they spend no more than they may.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

#: No verdict from fewer pairs (unless the allowance is smaller): two pairs say little of a spread.
FIRST_LOOK = 3

_POWER = 3.0

#: Looks at further 32-bit runs, each after as many of them as the allowance has pairs.
FURTHER_LOOKS = 2


@lru_cache(maxsize=64)
def nominal_levels(
    allowance: int, alpha: float, small_spread: bool = False, kept: float = 0.0
) -> dict[int, float]:
    """Level of each look's own test, so that all of them together spend `alpha` (n/N)³ by look n.

    The joint null distribution of the t statistics of growing samples depends on nothing, so it is
    simulated with a fixed seed; the error of a cumulative level is below 0.001.

    Args:
        allowance: the largest number of pairs, N.
        alpha: what all looks spend together.
        kept: the part of `alpha` that is kept for `FURTHER_LOOKS` more, which follow the last
            pair, at 2N, 3N, … 32-bit runs.
        small_spread: the test errs too where a spread comes out small. Small spreads of growing
            samples are less alike than their means, so looks at them spend more: each look then
            has the smaller level of the two.
    """
    if allowance < 2:
        return {}
    spending = _spending(allowance, alpha, alpha * kept)
    paths = min(200_000, max(40_000, 4_000_000 // allowance))
    both = _statistics(paths, allowance, FURTHER_LOOKS if kept else 0)
    statistics = both if small_spread else both[:1]
    alive = [np.ones(len(s.values), bool) for s in statistics]
    levels: dict[int, float] = {}
    for n, spent in spending.items():
        levels[n] = 1.0
        at = n - 1 if n <= allowance else allowance + n // allowance - 2
        for s, left in zip(statistics, alive, strict=True):
            extra = round(spent * len(left)) - int((~left).sum())
            bound = np.partition(s.values[left, at], -max(extra, 1))[-max(extra, 1)]
            levels[n] = min(levels[n], float(s.tail(bound, n - 1)))
        for s, left in zip(statistics, alive, strict=True):
            left &= s.values[:, at] < s.bound(levels[n], n - 1)
    return levels


def _spending(allowance: int, alpha: float, kept: float) -> dict[int, float]:
    """What may be spent by each look, by the number of 32-bit runs it looks at."""
    looks = range(min(FIRST_LOOK, allowance), allowance + 1)
    spent = {n: (alpha - kept) * (n / allowance) ** _POWER for n in looks}
    for k in range(1, FURTHER_LOOKS + 1 if kept else 1):
        spent[(1 + k) * allowance] = alpha - kept * (1 - k / FURTHER_LOOKS)
    return spent


class _Statistic(NamedTuple):
    """Values per path and look, the larger the more extreme; their tail, and its inverse."""

    values: np.ndarray
    tail: Callable[[Any, int], Any]
    bound: Callable[[float, int], Any]


def _statistics(paths: int, length: int, further: int) -> list[_Statistic]:
    """After each of the first values, and after each of `further` blocks of as many more."""
    random = np.random.default_rng(1987)
    z = random.standard_normal((paths, length))
    sums, squares = np.cumsum(z, axis=1), np.cumsum(z**2, axis=1)
    # Sum and squares of a block: a normal number, and those about its mean.
    mean = random.standard_normal((paths, further))
    about = random.chisquare(max(length - 1, 1), (paths, further))
    sums = _continued(sums, math.sqrt(length) * mean)
    squares = _continued(squares, mean**2 + about)
    n = np.array([*range(1, length + 1), *(length * (k + 2) for k in range(further))])
    squares -= sums**2 / n
    with np.errstate(divide="ignore", invalid="ignore"):
        t = sums / n * np.sqrt(n * np.maximum(n - 1, 1) / squares)
    tail = lambda x, freedom: stats.chi2.cdf(-x, freedom)  # noqa: E731
    small = _Statistic(-squares, tail, lambda level, freedom: -stats.chi2.ppf(level, freedom))
    return [_Statistic(t, stats.t.sf, stats.t.isf), small]


def _continued(totals: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Running totals, and what they grow to with each block."""
    return np.hstack([totals, totals[:, -1:] + np.cumsum(blocks, axis=1)])
