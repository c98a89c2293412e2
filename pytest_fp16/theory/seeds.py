"""Is training in 16 bits worse than in 32? A paired test over seeds, looked at after every pair.

Each look holds the mean loss d̄ of n pairs against the budget. Equivalent when its upper limit is
below the budget, not equivalent when its lower limit is above (non-inferiority with Student's t).

* Repeated looks: each side spends its 5 % little by little (`looks`).
* A budget of twice the spread of the 32-bit runs is an estimate. Mean and spread of normal samples
  are independent, so limits of their difference come from Zou and Donner's MOVER (2008,
  doi:10.1002/sim.3095): exact for a known budget and for pairs that never vary. Where the mean is
  to be shown below the budget, the spread's uncertainty is taken at the edge that has to be ruled
  out (a budget as small as the mean), as a score test does.

The default budget is the larger of two, so two questions are asked. A loss is above the larger
where it is above both: each is tested at the whole level (intersection-union, Berger 1982,
doi:10.1080/00401706.1982.10487790). It is below the larger where it is below one: the two share
the level (Bonferroni). benchmarks/seeds.py measures the error rates, looks and estimate included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
# The accuracy's grain is at most resolution/√2, and rounding to a grain g has a spread of g/√12.
_FLOOR = 1 / math.sqrt(24)
_ASSURANCE = 0.8
_MOST = 100_000


@dataclass(frozen=True)
class Look:
    """What the pairs so far say; losses are reference minus candidate, in the metric's units.

    Attributes:
        n: pairs so far.
        mean: mean loss.
        lower, upper: limits of the mean loss at this look, widened by the budget's own
            uncertainty, so that they can be held against `budget`.
        budget: the loss that is tolerated (the estimate, where it is estimated).
        outcome: ``"equivalent"``, ``"not equivalent"`` or ``"undecided"``.
        reference_spread: standard deviation of the 32-bit runs; None where the budget is given.
        resolution, grain: as handed to `sequential`.
    """

    n: int
    mean: float
    lower: float
    upper: float
    budget: float
    outcome: str
    reference_spread: float | None = None
    resolution: float = 0.0
    grain: float = 0.0


def sequential(
    losses: Sequence[float],
    reference_metrics: Sequence[float],
    resolution: float,
    allowance: int,
    budget: float | None,
    grain: float = 0.0,
) -> Look:
    """The look at the pairs so far.

    Args:
        losses: reference minus candidate per pair, paired by seed, in the order they were run.
        reference_metrics: the metric of each 32-bit run; at least as many as losses where the
            budget is the default (more of them sharpen it).
        resolution: what the evaluation data can resolve: the metric's standard error.
        allowance: the largest number of pairs; the looks share their error rate up to it.
        budget: loss tolerated, or None for max(resolution, 2·spread of the 32-bit runs).
        grain: smallest step of the metric, if known (1/decisions for an accuracy).

    Raises:
        ValueError: a value is not finite, or counts do not fit.
    """
    d, r = np.asarray(losses, np.float64), np.asarray(reference_metrics, np.float64)
    _require(d, r, resolution, allowance, budget)
    n, mean = len(d), float(d.mean())
    spread = _spread_of_losses(d, r, resolution, grain)
    reference = None if budget is not None else float(r.std(ddof=1)) if len(r) > 1 else math.nan
    shown = budget if budget is not None else _largest(resolution, reference)
    levels = _levels_at(n, allowance, known=budget is not None)
    if levels is None or not math.isfinite(spread):
        lower, upper, outcome = -math.inf, math.inf, "undecided"
    else:
        pairs = _Sample(mean, spread, n, reference, max(len(r), n))
        upper = _upper(pairs, shown, resolution, levels)
        lower = _lower(pairs, shown, resolution, levels)
        outcome = (
            "equivalent" if upper < shown else "not equivalent" if lower > shown else "undecided"
        )
    return Look(n, mean, lower, upper, shown, outcome, reference, resolution, grain)


def seeds_missing(look: Look, losses: Sequence[float], allowance: int) -> int:
    """How many more pairs than `allowance` would settle it, were mean and spreads to stay.

    The chance that the next pairs move the mean towards the budget is allowed for: with the answer
    four runs in five are settled, if the true loss is what was seen. Zero for a look that is
    settled; at most 100,000 (a mean that lies on the budget is never settled).
    """
    if look.outcome != "undecided":
        return 0
    d = np.asarray(losses, np.float64)
    spread = _spread_of_losses(d, d[:0], look.resolution, look.grain)
    if not math.isfinite(spread):
        return max(FIRST_LOOK - allowance, 1)
    start = max(allowance, look.n)
    low, high = start, start + 1
    while not _would_settle(look, spread, high) and high - start < _MOST:
        low, high = high, start + 2 * (high - start)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _would_settle(look, spread, middle) else (middle, high)
    return min(high - start, _MOST) + start - allowance


def _would_settle(look: Look, spread: float, n: int) -> bool:
    if n < FIRST_LOOK:
        return False
    drift = stats.norm.ppf(_ASSURANCE) * spread / math.sqrt(n)
    below = look.mean <= look.budget
    # The last look of a plan keeps about seven tenths of what the plan may spend.
    levels = _Levels(*(0.7 * level for level in _whole_levels(look.reference_spread is None)))
    mean = look.mean + (drift if below else -drift)
    pairs = _Sample(mean, spread, n, look.reference_spread, n)
    found = (_upper if below else _lower)(pairs, look.budget, look.resolution, levels)
    return found < look.budget if below else found > look.budget


def _require(
    d: np.ndarray, r: np.ndarray, resolution: float, allowance: int, budget: float | None
) -> None:
    if len(d) == 0 or len(d) > allowance:
        raise ValueError(f"{len(d)} losses do not fit an allowance of {allowance}")
    if budget is None and len(r) < len(d):
        raise ValueError(f"{len(r)} reference metrics for {len(d)} losses")
    finite = np.isfinite(d).all() and np.isfinite(r).all() and math.isfinite(resolution)
    if not finite or not math.isfinite(budget or 0.0) or resolution < 0:
        raise ValueError("losses, metrics, resolution and budget must be finite")


def _largest(resolution: float, reference: float | None) -> float:
    return (
        resolution
        if reference is None or math.isnan(reference)
        else max(resolution, SPREADS * reference)
    )


def _spread_of_losses(d: np.ndarray, r: np.ndarray, resolution: float, grain: float) -> float:
    """Standard deviation of the losses, no less than what the metric's grain can hide."""
    if len(d) < 2:
        return math.nan
    if not grain and len(r) >= len(d):
        steps = np.diff(np.unique(np.concatenate([r, r[: len(d)] - d])))
        steps = steps[steps > 1e-9 * max(1.0, float(np.abs(r).max()))]
        grain = float(steps.min()) if len(steps) else 0.0
    return max(float(d.std(ddof=1)), resolution * _FLOOR, grain / math.sqrt(12))


class _Levels(NamedTuple):
    """One-sided levels: below a known budget, below two spreads, above the budget."""

    known: float
    spread: float
    above: float


class _Sample(NamedTuple):
    """Mean and spread of n losses, and the spread of the 32-bit runs (None: a given budget)."""

    mean: float
    spread: float
    n: int
    reference: float | None
    runs: int

    def width(self, level: float) -> float:
        return _t(level, self.n - 1) * self.spread / math.sqrt(self.n)


def _upper(pairs: _Sample, budget: float, resolution: float, levels: _Levels) -> float:
    """Upper limit of the mean, lowered or widened so that it is held against `budget`."""
    mean = pairs.mean
    against_resolution = mean + pairs.width(levels.known)
    if pairs.reference is None:
        return against_resolution
    freedom = pairs.runs - 1
    # Were the budget as small as the mean, its estimate would come out this much larger by chance.
    chance = math.sqrt(_chi2(1 - levels.spread, freedom) / freedom) - 1
    against_spread = mean + math.hypot(pairs.width(levels.spread), max(mean, 0.0) * chance)
    estimate = SPREADS * pairs.reference
    return budget + min(against_resolution - resolution, against_spread - estimate)


def _lower(pairs: _Sample, budget: float, resolution: float, levels: _Levels) -> float:
    """Lower limit of the mean, widened by how far above its estimate the budget may lie."""
    mean, width = pairs.mean, pairs.width(levels.above)
    if pairs.reference is None:
        return mean - width
    freedom, estimate = pairs.runs - 1, SPREADS * pairs.reference
    high = estimate * math.sqrt(freedom / _chi2(levels.above, freedom))
    above_spread = mean - math.hypot(width, high - estimate)
    return budget + min(mean - width - resolution, above_spread - estimate)


def _whole_levels(known: bool) -> _Levels:
    """What each question may spend over all looks."""
    if known:
        return _Levels(ALPHA, math.nan, ALPHA)
    return _Levels(ALPHA * _SHARE_RESOLUTION, ALPHA * _SHARE_SPREAD, ALPHA * _SHARE_ABOVE)


def _levels_at(n: int, allowance: int, known: bool) -> _Levels | None:
    """Levels of the look after n pairs; None where there is no look."""
    if n < min(FIRST_LOOK, allowance) or allowance < 2:
        return None
    whole = _whole_levels(known)
    below = nominal_levels(allowance, whole.known)[n]
    if known:
        return _Levels(below, math.nan, below)
    spread = nominal_levels(allowance, whole.spread)[n]
    return _Levels(below, spread, nominal_levels(allowance, whole.above, small_spread=True)[n])


@lru_cache(maxsize=4096)
def _t(level: float, freedom: int) -> float:
    return float(stats.t.isf(level, freedom))


@lru_cache(maxsize=4096)
def _chi2(probability: float, freedom: int) -> float:
    return float(stats.chi2.ppf(probability, freedom))
