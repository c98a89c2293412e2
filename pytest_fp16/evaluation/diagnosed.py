"""After an evaluation: the reports that fail, or only just pass, get a culprit and a cure.

A failure of the diagnosis itself is a warning, never a verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace

from torch import nn

from pytest_fp16.diagnosis.evaluation import Diagnosis, DiagnosisRequest, diagnose
from pytest_fp16.diagnosis.kept_buffers import keep_buffers
from pytest_fp16.diagnosis.remedy import Remedy
from pytest_fp16.diagnosis.trials import Recheck
from pytest_fp16.diagnosis.upcast import lines_in_float32
from pytest_fp16.engine.candidate import Candidate, fresh_model
from pytest_fp16.engine.emulation.cast_cache import nothing_kept
from pytest_fp16.engine.emulation.wording import first_line
from pytest_fp16.engine.fast_path import without_fast_path
from pytest_fp16.evaluation.precision_run import PrecisionRun
from pytest_fp16.evaluation.price import price_of
from pytest_fp16.evaluation.report import is_close, is_doubtful, needs_diagnosis, report_of
from pytest_fp16.evaluation.run import EvaluationRun
from pytest_fp16.planned import extended, remarks
from pytest_fp16.report.model import Report
from pytest_fp16.subject import Evaluation


def diagnosed(run: EvaluationRun, reports: list[Report]) -> list[Report]:
    """The reports in their order, diagnosed where that is due, and held against the plan."""
    siblings = {report.precision: report for report in reports}
    found: dict[str, tuple[str, ...]] = {}
    done = []
    run.rewind()
    for precision_run, report in zip(run.runs, reports, strict=True):
        if needs_diagnosis(report) and precision_run.outcome.kept is not None:
            report, found[report.precision] = _with_culprit(run, precision_run, report, siblings)
        if run.plan is not None:
            said = remarks(
                run.plan,
                report,
                run.reference.model,
                lambda name: _judged(run, Remedy(name), {}).sound,
            )
            report = report.remarked(said)
        done.append(report)
    return done if run.plan is None else extended(run.plan, done, found, run.reference.model)


def _with_culprit(
    run: EvaluationRun, precision_run: PrecisionRun, report: Report, siblings: dict[str, Report]
) -> tuple[Report, tuple[str, ...]]:
    """The report with culprit and cure, and the modules that a plan should keep."""
    request = request_of(run, precision_run, report, siblings)
    try:
        found: Diagnosis = diagnose(request)
    except Exception as error:
        said = f"no diagnosis: {type(error).__name__}: {first_line(error)}"
        return report.remarked([said]), ()
    return report.model_copy(update={"culprit": found.culprit, "cure": found.cure}), found.keep


def request_of(
    run: EvaluationRun, precision_run: PrecisionRun, report: Report, siblings: dict[str, Report]
) -> DiagnosisRequest:
    """What a diagnosis needs of an evaluation that has kept some inputs."""
    assert precision_run.outcome.kept is not None, "unreachable: the caller has looked"
    return DiagnosisRequest(
        report=report,
        siblings={n: _as_cure(report, r) for n, r in siblings.items() if n != report.precision},
        candidate=lambda remedy: (
            precision_run.candidate if remedy == Remedy(report.precision) else remedied(run, remedy)
        ),
        reference=run.reference.model,
        task=run.task,
        kept=precision_run.outcome.kept,
        error=precision_run.failure_error,
        emulated=precision_run.mode == "emulated",
        price=lambda remedy: price_of(run, precision_run, remedied(run, remedy)),
        judge=lambda remedy: _cured(run, remedy, report, is_doubtful(precision_run)),
    )


def _as_cure(before: Report, after: Report, sound: bool = True) -> Report:
    """The report of a remedy; where one that passes is to be won back, it has to be better.

    Args:
        before: without the remedy.
        after: with it.
        sound: whether it would mend a pass by luck.
    """
    better = sound and not (is_close(before.metric) and is_close(after.metric))
    if better or not (before.equivalent and after.equivalent):
        return after
    return after.model_copy(update={"verdict": "inconclusive"})


def _cured(run: EvaluationRun, remedy: Remedy, report: Report, lucky: bool) -> Recheck:
    """What came of a remedy; where all passed by luck, what does so again has mended nothing."""
    again = _judged(run, remedy, run.keep)
    return replace(again, report=_as_cure(report, again.report, again.sound or not lucky))


def remedied(run: EvaluationRun, remedy: Remedy) -> Candidate:
    """A fresh candidate with a remedy, on top of what the plan keeps in float32.

    Raises:
        ModelError: it cannot be applied to this model.
    """
    candidate = run.candidates.made(remedy.precision, remedy.keep)
    for name in remedy.buffers:
        module, _, leaf = name.rpartition(".")
        exact = run.reference.model.get_buffer(name)
        candidate.model.get_submodule(module)._buffers[leaf] = exact.detach().clone()
    if remedy.lines:
        lines_in_float32(candidate.model, remedy.lines, remedy.meeting)
    candidate.keeps_casts = not remedy.anew
    if remedy.unpacked:
        _unpack(candidate.model)
    candidate.subject = _given(candidate.subject, remedy)
    return candidate


def _given(subject: Evaluation, remedy: Remedy) -> Evaluation:
    """The subject with inputs that are handed on as they are."""
    if not remedy.inputs:
        return subject
    return replace(subject, keep_inputs=(*subject.keep_inputs, *remedy.inputs))


def _unpack(model: nn.Module) -> None:
    """Do without torch's fast path; what it is in float32 stays as it was. Changed in place."""
    for module in model.modules():
        without_fast_path(module)


def _judged(run: EvaluationRun, remedy: Remedy, planned: Mapping[str, tuple[str, ...]]) -> Recheck:
    """A full re-check of a remedy, on top of what is planned to be kept in float32."""
    again, ideal = _rechecked(run, remedy, planned, predict=False)
    if again.report.equivalent and not ideal:  # kernels may round otherwise than theory predicts
        again, _ = _rechecked(run, remedy, planned, predict=True)
    return again


def _rechecked(
    run: EvaluationRun, remedy: Remedy, planned: Mapping[str, tuple[str, ...]], predict: bool
) -> tuple[Recheck, bool]:
    """What came of a remedy, and whether its run was an ideal emulation."""
    settings = run.settings.with_(precisions=(remedy.precision,))
    subject = _given(run.subject, remedy)
    # Where nothing is 16-bit these change nothing.
    if remedy.lines or remedy.buffers or remedy.unpacked:
        model = fresh_model(subject.model, like=run.reference.model)
        if remedy.buffers:
            keep_buffers(model, remedy.buffers)
        if remedy.unpacked:
            _unpack(model)
        if remedy.lines:
            lines_in_float32(model, remedy.lines, remedy.meeting)
        subject = replace(subject, model=model)
    keep = (*planned.get(remedy.precision, ()), *remedy.keep)
    again = EvaluationRun(subject, settings, None, {remedy.precision: keep}, predict=predict)
    with nothing_kept() if remedy.anew else nullcontext():
        again.execute()
    precision_run = again.runs[0]
    return Recheck(
        report_of(again, precision_run), precision_run.outcome.kept, is_doubtful(precision_run)
    ), precision_run.ideal
