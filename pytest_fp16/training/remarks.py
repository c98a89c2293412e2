"""What a report of a training says beside its verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_fp16.engine.training.canary import LARGE_DIFFERENCE
from pytest_fp16.report import figures as shown
from pytest_fp16.report.message import place
from pytest_fp16.theory.looks import FIRST_LOOK

if TYPE_CHECKING:
    from pytest_fp16.engine.gradients.check import GradientFindings
    from pytest_fp16.engine.training.runs import Runs
    from pytest_fp16.training.pairs import Pairs

#: A way of the weights that is this many times that of 32 bits is told of.
_FURTHER = 1.5


def warnings_of(runs: Runs, pairs: Pairs, forecast: GradientFindings | None) -> list[str]:
    """Everything worth a warning, of the data, the runs, the canary and the forecast."""
    warnings = [*runs.valid.notes, *pairs.notes]
    if pairs.broke is not None and pairs.untaught is not None:
        warnings.append(f"{pairs.untaught}; that 16 bits break it says little of one that learns")
    warnings += _of_canary(runs, pairs)
    if runs.settings.seeds == 1 and pairs.broke is None:
        warnings.append(
            "seeds=1 can show that a training breaks, never that it is equivalent: one pair has no "
            f"spread; allow {FIRST_LOOK} at least"
        )
    if runs.store is not None:
        warnings += [f"a stored run was damaged and is made again: {d}" for d in runs.store.damaged]
    if (read := runs.read_of(pairs.precision)) is not None:
        warnings.append(read)
    warnings += surprises(pairs, forecast)
    higher = pairs.look is not None and -pairs.look.mean > pairs.look.budget
    if pairs.look is not None and higher and pairs.gained is None:
        further = forecast.figures.get("weights_gain", 1.0) if forecast is not None else 1.0
        far = f" (the first ones lead {further:.3g} times as far)" if further > _FURTHER else ""
        warnings.append(
            f"the 16-bit runs score higher by {-pairs.look.mean:.3g}, more than the budget: their "
            f"steps are others than those of 32 bits{far}, which may be trained too briefly"
        )
    if runs.place.emulated and pairs.precision.low:
        warnings += _skipped(pairs)
    metrics = [r.metric for r, _ in pairs.pairs]
    if len(metrics) > 1 and all(r.losses == pairs.pairs[0][0].losses for r, _ in pairs.pairs):
        warnings.append(
            "seeds vary nothing here: every 32-bit run was the same; pass a function that makes "
            "the model, or a loader that shuffles"
        )
    return warnings


def _skipped(pairs: Pairs) -> list[str]:
    """Steps that a scaler skipped: while it sought its scale, and for the batches' own sake."""
    skipped = sum(c.skipped for _, c in pairs.pairs)
    lost = sum(c.lost for _, c in pairs.pairs)
    said = []
    if skipped > lost:
        count = skipped - lost
        said.append(f"the gradient scaler skipped {count} step(s) while it sought its scale")
    if lost:
        said.append(
            f"the gradient scaler skipped {lost} step(s) after it had found its scale: their "
            "gradients are not finite in float16"
        )
    return said


def _of_canary(runs: Runs, pairs: Pairs) -> list[str]:
    """What this device's own kernels showed, where that is no verdict already."""
    canary = runs.canary(pairs.precision)
    if canary is None or (pairs.broke is not None and pairs.broke[1].error == canary.text):
        return []
    if canary.error is not None and canary.emulation_error is not None:
        return []  # the runs themselves show it
    if canary.error is not None:
        return [f"{canary.text}; the verdict speaks for {runs.place.target}"]
    if (canary.difference or 0) > LARGE_DIFFERENCE:
        return [f"emulation and this device's own kernels part: {canary.text}"]
    return []


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
    where = f"{shown.operation(culprit.operation) or 'something'} in {place(culprit.module)}"
    line = f" ({culprit.source})" if culprit.source else ""
    return [
        f"the runs have not settled it, but the gradient check expects a failure, for {where}{line}"
    ]
