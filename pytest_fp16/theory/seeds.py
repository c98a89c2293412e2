"""Is training in 16 bits worse than in 32? A paired test over seeds, looked at after every pair.

Each look holds the mean loss d̄ of n pairs against the budget. Equivalent when its upper limit is
below the budget, not equivalent when its lower limit is above (non-inferiority with Student's t).

* Repeated looks: each side spends its 5 % by the power family α(n/N)³ of Kim and DeMets (1987,
  doi:10.1093/biomet/74.1.149), a spending function in the sense of Lan and DeMets (1983,
  doi:10.1093/biomet/70.3.659). With few pairs the normal theory for the joint distribution of the
  looks is too rough, so that of the t statistics themselves is simulated once per allowance.
* A budget of twice the spread of the 32-bit runs is an estimate. Mean and spread of normal samples
  are independent, so limits of their difference come from Zou and Donner's MOVER (2008,
  doi:10.1002/sim.3095): exact for a known budget and for pairs that never vary.

With the default budget two tests can call a training equivalent (against the resolution, against
the spread), so each spends less; the shares below were set by simulation (benchmarks/seeds.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

#: Largest chance of each wrong verdict, at a true loss equal to the budget.
ALPHA = 0.05
#: The default budget is this many spreads of the 32-bit runs.
SPREADS = 2.0
#: No verdict from fewer pairs (unless the allowance is smaller): two pairs say little of a spread.
FIRST_LOOK = 3

_POWER = 3.0
_SHARE_EQUIVALENT = 0.65
_SHARE_NOT_EQUIVALENT = 0.85
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
    equivalent, different = _levels_at(n, allowance, known=budget is not None)
    if not equivalent or not math.isfinite(spread):
        lower, upper, outcome = -math.inf, math.inf, "undecided"
    else:
        upper = _upper(mean, spread, n, reference, len(r), shown, resolution, equivalent)
        lower = _lower(mean, spread, n, reference, len(r), shown, resolution, different)
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
    known = look.reference_spread is None
    drift = stats.norm.ppf(_ASSURANCE) * spread / math.sqrt(n)
    below = look.mean <= look.budget
    # The last look of a plan keeps about seven tenths of what the plan may spend.
    share = 1.0 if known else _SHARE_EQUIVALENT if below else _SHARE_NOT_EQUIVALENT
    level = 0.7 * ALPHA * share
    limit, sign = (_upper, 1) if below else (_lower, -1)
    mean = look.mean + sign * drift
    found = limit(mean, spread, n, look.reference_spread, n, look.budget, look.resolution, level)
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


def _upper(
    mean: float,
    spread: float,
    n: int,
    reference: float | None,
    runs: int,
    budget: float,
    resolution: float,
    level: float,
) -> float:
    """Upper limit of the mean, lowered or widened so that it is held against `budget`."""
    width = _t(level, n - 1) * spread / math.sqrt(n)
    if reference is None:
        return mean + width
    against_resolution = mean + width - resolution
    estimate = SPREADS * reference
    low = estimate * math.sqrt((runs - 1) / _chi2(1 - level, runs - 1))
    against_spread = mean + math.hypot(width, estimate - low) - estimate
    return budget + min(against_resolution, against_spread)


def _lower(
    mean: float,
    spread: float,
    n: int,
    reference: float | None,
    runs: int,
    budget: float,
    resolution: float,
    level: float,
) -> float:
    """Lower limit of the mean, widened by how far above its estimate the budget may lie."""
    width = _t(level, n - 1) * spread / math.sqrt(n)
    if reference is None:
        return mean - width
    high = SPREADS * reference * math.sqrt((runs - 1) / _chi2(level, runs - 1))
    return mean - math.hypot(width, max(high, resolution) - budget)


def _levels_at(n: int, allowance: int, known: bool) -> tuple[float, float]:
    """Nominal one-sided levels (equivalent, not equivalent) of the look after n pairs; 0 = none."""
    shares = (1.0, 1.0) if known else (_SHARE_EQUIVALENT, _SHARE_NOT_EQUIVALENT)
    first, second = (nominal_levels(allowance, ALPHA * share).get(n, 0.0) for share in shares)
    return first, second


@lru_cache(maxsize=4096)
def _t(level: float, freedom: int) -> float:
    return float(stats.t.isf(level, freedom))


@lru_cache(maxsize=4096)
def _chi2(probability: float, freedom: int) -> float:
    return float(stats.chi2.ppf(probability, freedom))


@lru_cache(maxsize=64)
def nominal_levels(allowance: int, alpha: float) -> dict[int, float]:
    """Level of each look's own t test, so that all of them together spend `alpha` (n/N)³ by look n.

    The joint null distribution of the t statistics of growing samples depends on nothing, so it is
    simulated with a fixed seed; the error of a cumulative level is below 0.001.
    """
    if allowance < 2:
        return {}
    paths = min(200_000, max(40_000, 4_000_000 // allowance))
    t = _t_statistics(paths, allowance)
    alive = np.ones(paths, bool)
    levels: dict[int, float] = {}
    for n in range(min(FIRST_LOOK, allowance), allowance + 1):
        gone = paths - int(alive.sum())
        extra = max(round(alpha * (n / allowance) ** _POWER * paths) - gone, 1)
        bound = float(np.partition(t[alive, n - 1], -extra)[-extra])
        alive &= t[:, n - 1] < bound
        levels[n] = float(stats.t.sf(bound, n - 1))
    return levels


def _t_statistics(paths: int, length: int) -> np.ndarray:
    z = np.random.default_rng(1987).standard_normal((paths, length))
    n = np.arange(1, length + 1)
    mean = np.cumsum(z, axis=1) / n
    squares = np.cumsum(z**2, axis=1) - n * mean**2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(mean * np.sqrt(n * np.maximum(n - 1, 1) / squares))
