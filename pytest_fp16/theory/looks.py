"""The level of each of many looks at growing samples, so that all together spend what one may.

A level is spent by the power family α(n/N)³ of Kim and DeMets (1987, doi:10.1093/biomet/74.1.149),
a spending function in the sense of Lan and DeMets (1983, doi:10.1093/biomet/70.3.659). With few
pairs the normal theory for the joint distribution of the looks is too rough, so that of the
statistics themselves is simulated, once per allowance.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

#: No verdict from fewer pairs (unless the allowance is smaller): two pairs say little of a spread.
FIRST_LOOK = 3

_POWER = 3.0


@lru_cache(maxsize=64)
def nominal_levels(allowance: int, alpha: float, small_spread: bool = False) -> dict[int, float]:
    """Level of each look's own test, so that all of them together spend `alpha` (n/N)³ by look n.

    The joint null distribution of the t statistics of growing samples depends on nothing, so it is
    simulated with a fixed seed; the error of a cumulative level is below 0.001.

    Args:
        allowance: the largest number of pairs, N.
        alpha: what all looks spend together.
        small_spread: the test errs too where a spread comes out small. Small spreads of growing
            samples are less alike than their means, so looks at them spend more: each look then
            has the smaller level of the two.
    """
    if allowance < 2:
        return {}
    both = _statistics(min(200_000, max(40_000, 4_000_000 // allowance)), allowance)
    statistics = both if small_spread else both[:1]
    alive = [np.ones(len(s.values), bool) for s in statistics]
    levels: dict[int, float] = {}
    for n in range(min(FIRST_LOOK, allowance), allowance + 1):
        levels[n] = 1.0
        for s, left in zip(statistics, alive, strict=True):
            extra = round(alpha * (n / allowance) ** _POWER * len(left)) - int((~left).sum())
            bound = np.partition(s.values[left, n - 1], -max(extra, 1))[-max(extra, 1)]
            levels[n] = min(levels[n], float(s.tail(bound, n - 1)))
        for s, left in zip(statistics, alive, strict=True):
            left &= s.values[:, n - 1] < s.bound(levels[n], n - 1)
    return levels


class _Statistic(NamedTuple):
    """Values per path and look, the larger the more extreme; their tail, and its inverse."""

    values: np.ndarray
    tail: Callable[[Any, int], Any]
    bound: Callable[[float, int], Any]


def _statistics(paths: int, length: int) -> list[_Statistic]:
    z = np.random.default_rng(1987).standard_normal((paths, length))
    n = np.arange(1, length + 1)
    mean = np.cumsum(z, axis=1) / n
    squares = np.cumsum(z**2, axis=1) - n * mean**2
    with np.errstate(divide="ignore", invalid="ignore"):
        t = mean * np.sqrt(n * np.maximum(n - 1, 1) / squares)
    tail = lambda x, freedom: stats.chi2.cdf(-x, freedom)  # noqa: E731
    small = _Statistic(-squares, tail, lambda level, freedom: -stats.chi2.ppf(level, freedom))
    return [_Statistic(t, stats.t.sf, stats.t.isf), small]
