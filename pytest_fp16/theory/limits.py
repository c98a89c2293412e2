"""Limits of a mean loss over seeds, held against a budget that may be an estimate.

See `seeds` for what they are for, and for the sources.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import stats

from pytest_fp16.theory.looks import FIRST_LOOK, nominal_levels

#: Largest chance of each wrong verdict, at a true loss equal to the budget.
ALPHA = 0.05
#: The default budget is this many spreads of the 32-bit runs.
SPREADS = 2.0
# Bonferroni, most of it where power is scarce: a resolution that sets the budget is two spreads.
_SHARE_RESOLUTION, _SHARE_SPREAD = 0.3, 0.7
# Where 16-bit runs do not vary at all, the spread of a loss is that of the 32-bit run, and the two
# parts of the lower limit err together, which MOVER takes to be independent.
_SHARE_ABOVE = 0.9
#: The part of that which is kept for looks at further 32-bit runs.
_KEPT = 0.5
# The accuracy's grain is at most resolution/√2, and rounding to a grain g has a spread of g/√12.
_FLOOR = 1 / math.sqrt(24)


class Levels(NamedTuple):
    """One-sided levels: below a known budget, below two spreads, above the budget."""

    known: float
    spread: float
    above: float


class Sample(NamedTuple):
    """Mean and spread of n losses, and the spread of the 32-bit runs (None: a given budget)."""

    mean: float
    spread: float
    n: int
    reference: float | None
    freedom: int

    def width(self, level: float) -> float:
        """Of the one-sided limit of the mean at a level."""
        return _t(level, self.n - 1) * self.spread / math.sqrt(self.n)


def upper_limit(pairs: Sample, budget: float, resolution: float, levels: Levels) -> float:
    """Upper limit of the mean, lowered or widened so that it is held against `budget`."""
    mean = pairs.mean
    against_resolution = mean + pairs.width(levels.known)
    if pairs.reference is None:
        return against_resolution
    freedom = pairs.freedom
    # Were the budget as small as the mean, its estimate would come out this much larger by chance.
    chance = math.sqrt(_chi2(1 - levels.spread, freedom) / freedom) - 1
    against_spread = mean + math.hypot(pairs.width(levels.spread), max(mean, 0.0) * chance)
    estimate = SPREADS * pairs.reference
    return budget + min(against_resolution - resolution, against_spread - estimate)


def lower_limit(pairs: Sample, budget: float, resolution: float, levels: Levels) -> float:
    """Lower limit of the mean, widened by how far above its estimate the budget may lie."""
    mean, width = pairs.mean, pairs.width(levels.above)
    if pairs.reference is None:
        return mean - width
    freedom, estimate = pairs.freedom, SPREADS * pairs.reference
    high = estimate * math.sqrt(freedom / _chi2(levels.above, freedom))
    above_spread = mean - math.hypot(width, high - estimate)
    return budget + min(mean - width - resolution, above_spread - estimate)


def whole_levels(known: bool) -> Levels:
    """What each question may spend over all looks."""
    if known:
        return Levels(ALPHA, math.nan, ALPHA)
    return Levels(ALPHA * _SHARE_RESOLUTION, ALPHA * _SHARE_SPREAD, ALPHA * _SHARE_ABOVE)


def levels_at(n: int, allowance: int, further: int, known: bool) -> Levels | None:
    """Levels of the look after n pairs, or at further 32-bit runs; None where there is no look.

    Further runs are there to show a loss above the budget; below, pairs have spent everything.
    """
    if n < min(FIRST_LOOK, allowance) or allowance < 2:
        return None
    whole = whole_levels(known)
    below = nominal_levels(allowance, whole.known)[n]
    if known:
        return Levels(below, math.nan, below)
    spread = nominal_levels(allowance, whole.spread)[n]
    above = nominal_levels(allowance, whole.above, small_spread=True, kept=_KEPT)
    return Levels(below, spread, above[(1 + further) * allowance if further else n])


@lru_cache(maxsize=4096)
def _t(level: float, freedom: int) -> float:
    return float(stats.t.isf(level, freedom))


@lru_cache(maxsize=4096)
def _chi2(probability: float, freedom: int) -> float:
    return float(stats.chi2.ppf(probability, freedom))


def largest(resolution: float, reference: float | None) -> float:
    """The default budget: the resolution, or two spreads of the 32-bit runs."""
    return (
        resolution
        if reference is None or math.isnan(reference)
        else max(resolution, SPREADS * reference)
    )


def spread_of_losses(d: np.ndarray, r: np.ndarray, resolution: float, grain: float) -> float:
    """Standard deviation of the losses, no less than what the metric's grain can hide."""
    if len(d) < 2:
        return math.nan
    if not grain and len(r) >= len(d):
        steps = np.diff(np.unique(np.concatenate([r, r[: len(d)] - d])))
        steps = steps[steps > 1e-9 * max(1.0, float(np.abs(r).max()))]
        grain = float(steps.min()) if len(steps) else 0.0
    return max(float(d.std(ddof=1)), resolution * _FLOOR, grain / math.sqrt(12))


def spread_of_runs(r: np.ndarray, n: int) -> float:
    """Standard deviation of the 32-bit runs.

    About the means of the first n and of those after them: so it is independent of the mean of
    the first n, with which pairs err together.
    """
    if len(r) < 2:
        return math.nan
    parts = (r[:n], r[n:])
    squares = sum(float(part.var()) * len(part) for part in parts if len(part))
    return math.sqrt(squares / max(freedom_of(r, n), 1))


def freedom_of(r: np.ndarray, n: int) -> int:
    """Degrees of freedom of `spread_of_runs`."""
    return len(r) - (2 if len(r) > n else 1)
