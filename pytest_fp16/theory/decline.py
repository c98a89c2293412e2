"""When a quantity that falls during a training arrives at a threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import StatisticsError, correlation, linear_regression

#: Share of the variance of the logarithms that a straight line must explain.
STRAIGHT = 0.95
_LEAST = 8
#: By so many times e may a decline be followed beyond what was seen of it.
_TRUSTED = 1.0
#: The share of series without a trend that may be taken for falling ones.
_CHANCE = 0.05


def arrives(values: Sequence[float], threshold: float, total: int) -> int | None:
    """The step at which an exponential decline reaches a threshold; None where it does not.

    Only what falls on a straight line in logarithms over the later half of the steps seen is
    extrapolated: a smallest value that merely jumps about is no decline.

    Args:
        values: one per step; NaN where there was none.
        threshold: what it should stay above.
        total: steps of the whole training.
    """
    half = len(values) // 2
    known = [(step, v) for step, v in enumerate(values) if step >= half and not math.isnan(v)]
    if len(known) < _LEAST or not all(0 < v < math.inf for _, v in known):
        return None
    steps, logs = [float(s) for s, _ in known], [math.log(v) for _, v in known]
    try:
        slope, start = linear_regression(steps, logs)
        straight = correlation(steps, logs) ** 2
    except StatisticsError:  # all the same
        return None
    if slope >= 0 or straight < STRAIGHT:
        return None
    step = math.ceil((math.log(threshold) - start) / slope)
    return step if step <= total else None


def returns(values: Sequence[float], bound: float, total: int) -> bool:
    """Whether a decline that is above a bound now will be below it before the end."""
    step = arrives(values, bound, total)
    return step is not None and step >= len(values)


def comes_down(values: Sequence[float]) -> bool:
    """Whether a series falls behind its largest value, by more than chance makes of no trend.

    Cox & Stuart's sign test (1955): each value of the first half against its fellow of the second.
    What stays where it jumped to, or climbs on, does not come down.
    """
    behind = list(values)[max(range(len(values)), key=values.__getitem__) + 1 :] if values else []
    half = len(behind) // 2
    pairs = list(zip(behind[:half], behind[len(behind) - half :], strict=True))
    falls = sum(late < early for early, late in pairs)
    tied = sum(late == early for early, late in pairs)
    n = half - tied
    return n > 0 and sum(math.comb(n, k) for k in range(falls, n + 1)) <= _CHANCE * 2**n


def falls_below(
    measured: Sequence[tuple[int, float]], reached: float, bound: float, total: int
) -> bool:
    """Whether what falls as a measured quantity does will be below a bound at the end.

    Measured on the same inputs each time, so that two points are without the noise of batches; the
    last two are extrapolated, as an exponential decline, by no more than a factor of e: losses have
    a floor, and where it is nobody knows.

    Args:
        measured: (step, value), in the order of steps.
        reached: what is above the bound now, and falls as the measured values do.
        bound: what it should be below.
        total: steps of the whole training.
    """
    if len(measured) < 2 or not math.isfinite(reached):
        return False
    (before, high), (now, low) = measured[-2:]
    if not 0 < low < high or now <= before:
        return False
    rate = math.log(high / low) / (now - before)
    return math.log(reached / bound) <= min(rate * max(total - now, 0), _TRUSTED)
