"""May this model be trained in 16 bits? The gradient check, then pairs of runs over seeds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pytest_fp16.diagnosis.training import diagnose_training
from pytest_fp16.engine.batching import cast_module
from pytest_fp16.engine.copies import make_model
from pytest_fp16.engine.device import is_out_of_memory, resolve_device
from pytest_fp16.engine.device_questions import device_remarks
from pytest_fp16.engine.emulation.wording import first_line
from pytest_fp16.engine.gradients.check import GradientFindings, gradient_check
from pytest_fp16.engine.randomness import preserved_state
from pytest_fp16.engine.stored import BeforeCast
from pytest_fp16.engine.training.lightning import own_calls
from pytest_fp16.engine.training.order import preserved_generators
from pytest_fp16.engine.training.place import Place
from pytest_fp16.engine.training.runs import Runs
from pytest_fp16.engine.training.store import open_store
from pytest_fp16.engine.training.validation import validated
from pytest_fp16.errors import FP16Error
from pytest_fp16.evaluation.ranges import beyond_range
from pytest_fp16.plan import Plan
from pytest_fp16.planned import extended, kept_by, plan_of, remarks, with_kept
from pytest_fp16.precision import PRECISIONS, REFERENCE, Precision
from pytest_fp16.progress import Progress
from pytest_fp16.report.model import Report
from pytest_fp16.settings import Settings, require_meaning, require_room
from pytest_fp16.subject import Training
from pytest_fp16.theory.rounding import FORMATS
from pytest_fp16.training.evaluated import lost_when_evaluated, vague
from pytest_fp16.training.pairs import Pairs, compare
from pytest_fp16.training.report import report_of


def examine_training(
    subject: Training, settings: Settings, progress: Progress | None = None, test: str = ""
) -> list[Report]:
    """One report per precision of `settings`, in that order.

    The 32-bit run of a seed is shared by all of them. Seeds are added one by one until a precision
    is settled or the allowance is spent.

    Raises:
        FP16Error: the training cannot be compared; see `check`.
    """
    require_room(settings.budget)
    device = resolve_device(settings.device)
    with preserved_state(), preserved_generators(subject.train_data, subject.eval_data):
        found = validated(subject, device)
        if found.task.decides and subject.metric is None:
            require_meaning(settings.budget)
        tables = found.opening.caches()
        store = open_store(found.subject, settings, device)
        plan = plan_of(settings, test)
        planned = _planned(plan, found.subject) if plan is not None else None
        runs = Runs(found, settings, device, progress, store, planned)
        candidates = [PRECISIONS[name] for name in settings.precisions]
        forecasts = [_forecast(runs, precision, progress) for precision in candidates]
        every = [_compared(runs, *each) for each in zip(candidates, forecasts, strict=True)]
        drift = found.opening.drift()
        for pairs in every:
            pairs.drift = drift
        asked = _asked(found.subject, runs.place) if any(p.low for p in candidates) else []
        reports = []
        for forecast, pairs in zip(forecasts, every, strict=True):
            culprit, cure = _diagnosis(runs, pairs, forecast)
            report = report_of(runs, pairs, forecast, culprit, cure)
            kept_so = (planned or {}).get(pairs.precision.name, (found.subject,))[0]
            said = [*tables, *asked] if pairs.precision.low else []
            reports.append(report.remarked([*_stored(kept_so, pairs.precision), *said]))
        return reports if plan is None else _held_against(plan, reports, found.subject)


def _asked(subject: Training, place: Place) -> list[str]:
    """Where the program asks for the device that it is emulated for, and is not on."""
    model = make_model(subject.model)
    return device_remarks(model, place.target, place.device, *own_calls(subject, model))


def _stored(subject: Training, precision: Precision) -> list[str]:
    """Of what the model begins with: what its cast made infinite, which no step makes finite."""
    if not precision.casts:
        return []
    try:
        model = make_model(subject.model)
        before = BeforeCast(model, FORMATS[precision.dtype])
        return beyond_range(before.cast(cast_module(model, precision.dtype)), precision)
    except FP16Error:
        return []  # of a model that cannot be cast the runs have told


def _planned(plan: Plan, subject: Training) -> dict[str, tuple[Training, tuple[str, ...]]]:
    """By precision: the training with the modules that the plan keeps, and their names."""
    model = make_model(subject.model)
    keep = {name: kept_by(plan, subject.name, name, model) for name in PRECISIONS}
    return {name: (with_kept(subject, kept), kept) for name, kept in keep.items() if kept}


def _held_against(plan: Plan, reports: list[Report], subject: Training) -> list[Report]:
    """Say what the plan did, and write down what new cures keep in float32."""
    model = make_model(subject.model)
    written = extended(plan, reports, {r.precision: _keeps(r) for r in reports}, model)
    return [report.remarked(remarks(plan, report, model)) for report in written]


def _keeps(report: Report) -> tuple[str, ...]:
    cure = report.cure
    tried = cure is not None and cure.verified and cure.kind == "keep_in_float32"
    return tuple(cure.modules) if tried and cure is not None else ()


def _forecast(
    runs: Runs, precision: Precision, progress: Progress | None
) -> GradientFindings | None:
    """What the gradient check says; a failure of the check itself is no verdict, and loses none."""
    if precision == REFERENCE:
        return None
    what = f"{runs.subject.name}: gradient check, {precision.name}"

    def tell(batches: int) -> None:
        if progress is not None:
            progress(f"{what}, batch {batches}", 0, runs.total)

    tell(0)
    subject = runs.subject_for(precision)
    try:
        return gradient_check(subject, precision, runs.settings, runs.device, tell)
    except FP16Error:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            return None  # gradients of several batches are held at once; the runs need less
        said = f"{type(error).__name__}: {first_line(error)}"
        reason = f"the gradient check cannot follow this training ({said})"
        return GradientFindings("inconclusive", reason)


def _compared(runs: Runs, precision: Precision, forecast: GradientFindings | None) -> Pairs:
    wary = forecast is not None and forecast.verdict == "not equivalent"
    pairs = compare(runs, precision, wary)
    runs.settle(precision)
    return pairs


def _diagnosis(runs: Runs, pairs: Pairs, forecast: GradientFindings | None) -> tuple[Any, Any]:
    """Culprit and cure; a failure of the diagnosis itself is a warning, never lost runs."""
    if pairs.verdict != "not equivalent":
        return None, None
    try:
        return _diagnosed(runs, pairs, forecast)
    except Exception as error:
        pairs.notes.append(f"no diagnosis: {type(error).__name__}: {first_line(error)}")
        return None, None


def _diagnosed(runs: Runs, pairs: Pairs, forecast: GradientFindings | None) -> tuple[Any, Any]:
    if forecast is not None and vague(forecast.culprit):
        found = lost_when_evaluated(runs, pairs)
        forecast = replace(forecast, culprit=found or forecast.culprit)
    return diagnose_training(runs, pairs, forecast)
