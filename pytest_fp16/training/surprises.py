"""Where the gradient check and the runs do not say the same: what a report makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_fp16.report.message import place

if TYPE_CHECKING:
    from pytest_fp16.engine.gradients.check import GradientFindings
    from pytest_fp16.training.pairs import Pairs


def surprises(pairs: Pairs, forecast: GradientFindings | None) -> list[str]:
    """Where the forecast and the runs say the opposite, and why that may be."""
    if forecast is None or forecast.verdict == pairs.verdict:
        return []
    if forecast.verdict == "inconclusive":  # a pass would not tell
        return [forecast.reason]
    if pairs.verdict == "inconclusive":
        return _undecided(forecast)
    if pairs.verdict == "equivalent":
        expected = "the gradient check expected a failure that no run over seeds showed: "
        return [expected + forecast.reason]
    followed = max((p["step"] for p in forecast.figures.get("points", [])), default=0)
    total = forecast.figures.get("total_steps", 0)
    return [
        f"the gradient check did not foresee this: it followed {followed} of {total} steps, and "
        "what shows later, or with few batches, it does not see"
    ]


def _undecided(forecast: GradientFindings) -> list[str]:
    """What the gradient check expects of runs that have not settled it, and where."""
    if forecast.verdict != "not equivalent" or forecast.culprit is None:
        return []
    culprit = forecast.culprit
    where = f"{culprit.operation or 'something'} in {place(culprit.module)}"
    line = f" ({culprit.source})" if culprit.source else ""
    return [
        f"the runs have not settled it, but the gradient check expects a failure, for {where}{line}"
    ]
