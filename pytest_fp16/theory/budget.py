"""The default budget: the metric's standard error on this data, clamped.

A convention, not a law (docs/explanation/verdict.md): a loss the data cannot resolve is not worth
stopping for, and neither very small nor very large data sets may make the gate absurd.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

SMALLEST = 0.001
LARGEST = 0.01
#: So many decisions may be lost always: one of a few is more than any share that says something.
FEWEST = 1.5
#: Budgets that rounding does not gain: a metric that does is more likely an error than a score.
GAINS = 10
#: Default budgets beyond which one of the user's is told: it may be written in other units.
GENEROUS = 10


def accuracy_error(total: float, total_of_squares: float, n: int) -> float:
    """Standard error of an accuracy, from the shares of n inputs that are right, and their squares.

    The decisions within an input (its tokens, its pixels) are not independent, so inputs are what
    is counted. To them come two that are wholly right and two that are wholly wrong (Agresti &
    Coull, 1998), which keeps it above zero where every answer is right. Where each input is right
    or wrong it is √(ã(1−ã)/n) with ã = (na+2)/(n+4).
    """
    if not n:
        return math.inf
    mean, square = (total + 2) / (n + 4), (total_of_squares + 2) / (n + 4)
    return math.sqrt(max(0.0, square - mean * mean) / n)


def guessed(classes: int, n: int) -> float:
    """The accuracy that guesses among equal classes may reach: chance and two standard errors of n.

    One time in forty they reach more; beyond a single standard error, one time in six.
    """
    chance = 1 / classes
    return chance + 2 * math.sqrt(chance * (1 - chance) / max(n, 1))


def mean_error(total: float, total_of_squares: float, n: int) -> float:
    """Standard error of the mean of n scores, from their sum and the sum of their squares."""
    if n < 2:
        return math.inf
    variance = max(0.0, total_of_squares - total * total / n) / (n - 1)
    return math.sqrt(variance / n)


def jackknife(without: Sequence[float]) -> float:
    """Standard error of a statistic, from its values with each group of the data left out in turn.

    √((G − 1)/G · Σ (θ₍g₎ − θ̄)²) over G groups of equal size (Efron & Tibshirani, *An Introduction
    to the Bootstrap*, 1993, chapter 11); infinite for fewer than two, or without a value.
    """
    groups = len(without)
    if groups < 2 or not all(map(math.isfinite, without)):
        return math.inf
    mean = math.fsum(without) / groups
    return math.sqrt((groups - 1) / groups * math.fsum((x - mean) ** 2 for x in without))


def clamp(standard_error: float, scale: float = 1.0, grain: float = 0.0) -> float:
    """Between 0.1 and 1 % of the metric's scale (1 for accuracies and R²), or one decision.

    Args:
        standard_error: of the metric.
        scale: of the metric.
        grain: what one decision is worth; zero where the metric has none.
    """
    coarse = min(FEWEST * grain, standard_error)
    return max(min(max(standard_error, SMALLEST * scale), LARGEST * scale), coarse)


def allowed_loss(budget: float | str | None, reference: float, usual: float) -> tuple[float, str]:
    """The loss allowed, in the metric's units, and where it comes from.

    Args:
        budget: None for the default, a number in the metric's units, or ``"0.5%"`` of the
            reference.
        reference: the reference's metric.
        usual: the default on this data, see `clamp`.

    Returns:
        The budget and ``"default"``, ``"absolute"`` or ``"relative"``.
    """
    if budget is None:
        return usual, "default"
    if isinstance(budget, str):
        return float(budget.rstrip("%")) / 100 * abs(reference), "relative"
    return float(budget), "absolute"


def allows_a_class(budget: float, asked: bool) -> bool:
    """Whether a budget lets a class be lost: one of the user's above the largest usual one."""
    return asked and budget > LARGEST


def within(loss: float, budget: float, reference: float) -> bool:
    """Whether a loss is no more than the budget; what just equals it may be lost.

    0.97 − 0.96 is a little more than 0.01 in float64, and 10 of 1000 are not: the comparison leaves
    room for the rounding of metrics of the reference's size. A loss of NaN is never within.
    """
    return loss <= budget + 4 * sys.float_info.epsilon * (abs(reference) + budget)


def beyond_gain(gain: float, budget: float, usual: float, error: float = 0.0) -> bool:
    """Whether a metric gains more than rounding can explain, as one where lower is better would.

    Args:
        gain: candidate minus reference.
        budget: that it is held against.
        usual: the default budget: ten times a budget of nothing is gained by anything.
        error: the metric's standard error, which a gain has to exceed too: scores about zero have
            a mean, and hence a default budget, that says little of their size.
    """
    return gain > max(GAINS * max(budget, usual), error if math.isfinite(error) else 0.0)
