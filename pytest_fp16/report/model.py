"""The report of one conformance check, as a versioned pydantic schema.

Probabilities, shares and accuracies are fractions of 1. Losses are reference minus candidate, so
a positive loss is a loss.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from pytest_fp16.report.numbers import Facts, Real

SCHEMA_VERSION: Literal[1] = 1

CheckName = Literal[
    "finite",
    "as predicted",
    "good enough",
    "each class or output",
    "16 bit ran",
    "same shape",
    "better than chance",
    "deterministic",
    "same over seeds",
]
Verdict = Literal["equivalent", "not equivalent", "inconclusive"]
Mechanism = Literal[
    "overflow", "underflow", "cancellation", "absorption",
    "precision-loss", "unsupported-op", "mask-inf", "eps-underflow",
]  # fmt: skip


#: Forms of a mechanism that its usual words and cures do not fit.
Variant = Literal[
    "mixed dtypes", "refused by the program", "refused by autocast", "not in NumPy", "other bits",
    "closure", "no gradient left", "while scaled", "whole numbers", "stored values",
    "stored inputs", "infinite inputs", "infinite values", "stored digits", "near one",
    "another program", "another constant", "no room", "bound", "large constant", "own statement",
    "merged outputs", "stale weight", "padding", "coefficient", "fast path",
]  # fmt: skip


class Part(BaseModel):
    """Base of every part of a report: immutable, and closed to unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Check(Part):
    """One named check of the verdict; `excused` passes with more than is allowed, and says why."""

    name: CheckName
    passed: bool
    excused: bool = False
    detail: str


class Metric(Part):
    """The metric of both runs on the same data."""

    name: str
    reference: Real
    candidate: Real
    loss: Real
    budget: Real
    budget_origin: Literal["default", "absolute", "relative"]
    labelled: bool


class Certified(Part):
    """Three separate shares of decisions, never mixed; None where it could not be computed."""

    measured: Real | None = None
    bounded: Real | None = None
    probable: Real | None = None


class Standardised(Part):
    """Actual error of the margins over predicted σ: root mean square and mean, with limits."""

    count: int
    spread: Real
    spread_allowed: Real
    mean: Real
    mean_allowed: Real
    bound_exceeded: int
    median_abs: Real


class Site(Part):
    """What one operation of one module contributes, and how close it is to the format's limits.

    `share` is its part of σ²; `headroom` the powers of two between its largest value and overflow;
    `subnormal` and `zeroed` the shares of its non-zero values below the normal range, and flushed
    to zero.
    """

    module: str
    operation: str
    share: Real
    largest: Real
    headroom: Real
    subnormal: Real | None = None
    zeroed: Real | None = None
    source: str | None = None


class Forecast(Part):
    """The verdict from 32-bit arithmetic alone, before any native 16-bit kernel has run."""

    verdict: Verdict
    reason: str
    method: Literal["adjoint", "random rounding", "gradient check", "unavailable"]
    metric_loss: Real
    flips_expected: Real
    flips_allowed: int
    overflows: int = 0
    undecided: int = 0
    certified: Certified = Certified()
    sigma_median: Real | None = None
    margin_median: Real | None = None
    notes: list[str] = []


class Culprit(Part):
    """The submodule and operation at fault, and the evidence in numbers.

    `variant` is the form that the mechanism took, where the usual one is not meant.
    """

    module: str
    operation: str
    mechanism: Mechanism
    evidence: str
    source: str | None = None
    variant: Variant | None = None


class Price(Part):
    """What a cure costs in speed.

    `float32_share` is the share of the model's arithmetic that it leaves in float32, and
    `float32_share_before` the share that was there without it (None where it did not run). Only
    where 16 bits ran natively are there times: `slowdown` is the time with the cure over that
    without, `speedup` that of 32-true over that with the cure.
    """

    float32_share: Real
    float32_share_before: Real | None = None
    slowdown: Real | None = None
    speedup: Real | None = None


CureKind = Literal[
    "keep_in_float32", "keep inputs", "fresh casts", "no fast path", "mixed", "bfloat16", "float16",
    "epsilon", "mask constant", "upcast", "rescale", "loss scale", "loss in float32",
    "optimizer epsilon", "float32 copies",
]  # fmt: skip


class Cure(Part):
    """What to do about it; `verified` says that it was applied and the check passed.

    `precision` is the one to run in, where the cure is another one than failed (None: the same).
    A training's is tried with a few `seeds`, that of the worst pair first: `metric` and `reference`
    are the means over them, and `budget` what may be lost; where they settle nothing, `unsettled`
    says why. Of one that was not tried `untried` says why. An evaluation's has `decisions` and a
    `metric_name` of its own: the run that it mends may have ended before it had any.
    """

    kind: CureKind
    modules: list[str] = []
    precision: str | None = None
    verified: bool
    description: str
    verdict: Verdict | None = None
    flips: int | None = None
    decisions: int | None = None
    metric: Real | None = None
    metric_name: str = ""
    reference: Real | None = None
    budget: Real | None = None
    seeds: list[int] = []
    price: Price | None = None
    untried: str = ""
    unsettled: str = ""


class Run(Part):
    """Where and how the candidate really ran: the proof that 16 bit ran.

    `judged` says which of a model's outputs is judged, where it has several.
    """

    device: str
    target: str
    mode: Literal["native", "emulated"]
    dtypes: dict[str, int] = {}
    islands: list[str] = []
    canary: str = ""
    unsupported: list[str] = []
    deterministic: bool = True
    judged: str = ""
    reduction_flags: dict[str, bool] = {}


class Speed(Part):
    """Seconds per pass over one batch, and peak memory in bytes; ratios from one process."""

    seconds: Real
    reference_seconds: Real
    speedup: Real
    speedup_over_mixed: Real | None = None
    peak_memory: int | None = None
    reference_peak_memory: int | None = None


class Report(Part):
    """Everything one check found out.

    `flips` and `ties` are None for tasks without decisions (regression). `delta_max` is the
    paper's δ, `gamma_median` the median of its Γ, both on probabilities. `luck` says, of one that
    passes, why it need not on other data.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    kind: Literal["evaluation", "training"]
    task: str
    precision: str
    verdict: Verdict
    checks: list[Check]
    metric: Metric | None = None
    inputs: int = 0
    decisions: int = 0
    flips: int | None = None
    ties: int | None = None
    forecast: Forecast | None = None
    certified: Certified = Certified()
    delta_max: Real | None = None
    gamma_median: Real | None = None
    loss_reference: Real | None = None
    loss_candidate: Real | None = None
    standardised: Standardised | None = None
    sites: list[Site] = []
    least_robust: list[int] = []
    culprit: Culprit | None = None
    cure: Cure | None = None
    luck: str | None = None
    warnings: list[str] = []
    error: str | None = None
    run: Run | None = None
    speed: Speed | None = None
    training: Facts | None = None

    @property
    def equivalent(self) -> bool:
        """True when the verdict is ``"equivalent"``."""
        return self.verdict == "equivalent"

    def remarked(self, said: list[str]) -> Report:
        """A copy with more warnings."""
        return self.model_copy(update={"warnings": [*self.warnings, *said]})

    def __repr__(self) -> str:
        return f"<Report: {str(self).splitlines()[0]}>"  # where an assertion about it fails

    def __str__(self) -> str:
        from pytest_fp16.report.message import message

        return message(self)
