"""Is training in 16 bits worse than in 32? A paired test over seeds, looked at after every pair.

Each look holds the mean loss d̄ of n pairs against the budget. Equivalent when its upper limit is
below the budget, not equivalent when its lower limit is above (non-inferiority with Student's t).

* Repeated looks: each side spends its 5 % little by little (`looks`).
* A budget of twice the spread of the 32-bit runs is an estimate. Mean and spread of normal samples
  are independent, so limits of their difference come from Zou and Donner's MOVER (2008,
  doi:10.1002/sim.3095): exact for a known budget and for pairs that never vary. Where the mean is
  to be shown below the budget, the spread's uncertainty is taken at the edge that has to be ruled
  out (a budget as small as the mean), as a score test does.
* A loss above an estimated budget that the pairs of the allowance do not show, further 32-bit
  runs may: the budget's uncertainty, not the mean's, is what is left (`seeds_ahead`).

The default budget is the larger of two, so two questions are asked. A loss is above the larger
where it is above both: each is tested at the whole level (intersection-union, Berger 1982,
doi:10.1080/00401706.1982.10487790). It is below the larger where it is below one: the two share
the level (Bonferroni). benchmarks/seeds.py measures the error rates, looks and estimate included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pytest_fp16.theory.limits import (
    Sample,
    freedom_of,
    largest,
    levels_at,
    lower_limit,
    spread_of_losses,
    spread_of_runs,
    upper_limit,
)


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
        runs: 32-bit runs so far.
        further: looks at further 32-bit runs so far.
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
    runs: int = 0
    further: int = 0


def sequential(
    losses: Sequence[float],
    reference_metrics: Sequence[float],
    resolution: float,
    allowance: int,
    budget: float | None,
    grain: float = 0.0,
    further: int = 0,
) -> Look:
    """The look at the pairs so far.

    Args:
        losses: reference minus candidate per pair, paired by seed, in the order they were run.
        reference_metrics: the metric of each 32-bit run, those of the pairs first; at least as
            many as losses where the budget is the default.
        resolution: what the evaluation data can resolve: the metric's standard error.
        allowance: the largest number of pairs; the looks share their error rate up to it.
        budget: loss tolerated, or None for max(resolution, 2·spread of the 32-bit runs).
        grain: smallest step of the metric, if known (1/decisions for an accuracy).
        further: which of the looks at further 32-bit runs this is, each after about as many of
            them as the allowance has pairs; 0 before the last pair.

    Raises:
        ValueError: a value is not finite, or counts do not fit.
    """
    d, r = np.asarray(losses, np.float64), np.asarray(reference_metrics, np.float64)
    _require(d, r, resolution, allowance, budget)
    n, mean = len(d), float(d.mean())
    spread = spread_of_losses(d, r, resolution, grain)
    reference = None if budget is not None else spread_of_runs(r, n)
    shown = budget if budget is not None else largest(resolution, reference)
    levels = levels_at(n, allowance, further, known=budget is not None)
    if levels is None or not math.isfinite(spread):
        lower, upper, outcome = -math.inf, math.inf, "undecided"
    else:
        pairs = Sample(mean, spread, n, reference, freedom_of(r, n))
        # Further runs may show that the budget is smaller than feared; that the loss is below it
        # was asked of the pairs.
        known = Sample(mean, spread, n, spread_of_runs(r[:n], n), n - 1) if further else pairs
        upper = upper_limit(known, shown, resolution, levels)
        lower = lower_limit(pairs, shown, resolution, levels)
        outcome = (
            "equivalent" if upper < shown else "not equivalent" if lower > shown else "undecided"
        )
    return Look(
        *(n, mean, lower, upper, shown, outcome, reference, resolution, grain),
        runs=len(r),
        further=further,
    )


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
