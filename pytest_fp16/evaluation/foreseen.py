"""The forecast: the verdict of an evaluation from 32-bit arithmetic alone."""

from __future__ import annotations

import math

from pytest_fp16.evaluation.precision_run import PrecisionRun
from pytest_fp16.evaluation.totals import MetricTotals
from pytest_fp16.evaluation.verdict import certified_by_theory, lost_whole, median, refused_by
from pytest_fp16.metric.own import UserTally
from pytest_fp16.report.model import Forecast, Metric, Verdict
from pytest_fp16.theory.budget import within

#: Probability that every output stays finite, below which a lost one is to be expected.
LIKELY_LOST = 0.5
#: The same, below which a pass that lost none is told to be one of chance.
MAY_BE_LOST = 0.95


def forecast(
    precision_run: PrecisionRun, metric: Metric, reference: MetricTotals
) -> Forecast | None:
    """The verdict from 32-bit arithmetic alone."""
    theory, prediction = precision_run.theory, precision_run.prediction
    if theory is None:
        return None
    if precision_run.forecast_missing:
        return Forecast(
            verdict="inconclusive",
            reason=precision_run.forecast_missing,
            method="unavailable",
            metric_loss=math.nan,
            flips_expected=math.nan,
            flips_allowed=0,
        )
    loss = metric.reference - prediction.metric.value
    verdict, reason = _foreseen(precision_run, metric, loss, reference)
    return Forecast(
        verdict=verdict,
        reason=reason,
        method="random rounding" if theory.method == "random rounding" else "adjoint",
        metric_loss=loss,
        flips_expected=prediction.expected_flips,
        flips_allowed=prediction.flips.allowed(),
        overflows=prediction.overflows,
        undecided=prediction.undecided,
        certified=certified_by_theory(precision_run),
        sigma_median=median(prediction.sigmas),
        margin_median=median(prediction.margins),
        notes=theory.notes,
    )


def _foreseen(
    precision_run: PrecisionRun, metric: Metric, loss: float, reference: MetricTotals
) -> tuple[Verdict, str]:
    """The verdict to expect, and why; `loss` is that of the metric, NaN where it has no value."""
    prediction = precision_run.prediction
    if precision_run.forecast_failure:
        return "not equivalent", precision_run.forecast_failure
    if prediction.not_finite:
        dtype_name = precision_run.precision.dtype_name
        left = f"{prediction.not_finite} outputs leave the range of {dtype_name}"
        return "not equivalent", left
    if prediction.kept_finite < LIKELY_LOST:
        return "not equivalent", _lost_by_chance(prediction.kept_finite)
    if isinstance(prediction.metric.tally, UserTally) and not prediction.metric.tally.count:
        return "inconclusive", f"theory does not say what {metric.name} becomes for this task"
    if refused := refused_by(prediction.metric):
        # Errors are put upon outputs one by one: rows may not add up that do in any real run.
        return "inconclusive", f"of outputs with the errors that theory expects {refused}"
    expected = f"expected loss {loss:.3g}"
    if not within(loss, metric.budget, metric.reference):
        return "not equivalent", f"{expected} exceeds the budget of {metric.budget:.3g}"
    if lost := lost_whole(metric, reference, prediction.metric):
        return "not equivalent", f"expected to be lost: {lost}"
    return "equivalent", f"{expected} within the budget of {metric.budget:.3g}"


def _lost_by_chance(kept_finite: float) -> str:
    what = "makes outputs NaN or infinite, or stops the program"
    return f"rounding {what}, with a probability of {1 - kept_finite:.0%}"


def by_chance(precision_run: PrecisionRun, foreseen: Forecast | None) -> list[str]:
    """The warning of a pass that 32-bit arithmetic did not foretell."""
    kept = precision_run.prediction.kept_finite
    if foreseen is None:
        return []
    if foreseen.verdict == "not equivalent":
        reason = foreseen.reason
    elif foreseen.verdict == "equivalent" and kept < MAY_BE_LOST:
        reason = _lost_by_chance(kept)
    else:
        return []
    return [f"32-bit arithmetic foretold otherwise: {reason}; other data may not be so kind"]
