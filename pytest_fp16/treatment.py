"""After an evaluation: the reports that fail, or only just pass, get a culprit and a cure.

A failure of the diagnosis itself is a warning, never a verdict.
"""

from __future__ import annotations

from pytest_fp16.diagnosis.evaluation import Diagnosis, Patient, diagnose
from pytest_fp16.evaluation import EvaluationRun, needs_diagnosis
from pytest_fp16.lane import Lane, first_line
from pytest_fp16.planned import extend, remarks
from pytest_fp16.price import price_of
from pytest_fp16.report.model import Report


def treated(run: EvaluationRun, reports: list[Report]) -> list[Report]:
    """The reports in their order, diagnosed where that is due, and held against the plan."""
    siblings = {report.precision: report for report in reports}
    found: dict[str, tuple[str, ...]] = {}
    done = []
    for lane, report in zip(run.lanes, reports, strict=True):
        if needs_diagnosis(report) and lane.outcome.kept is not None:
            report, found[report.precision] = _treated(run, lane, report, siblings)
        if run.plan is not None:
            said = remarks(
                run.plan, report, run.reference.model, lambda name: _judged(run, name, ())
            )
            report = report.model_copy(update={"warnings": [*report.warnings, *said]})
        done.append(report)
    if run.plan is not None:
        extend(run.plan, done, found)
    return done


def _treated(
    run: EvaluationRun, lane: Lane, report: Report, siblings: dict[str, Report]
) -> tuple[Report, tuple[str, ...]]:
    """The report with culprit and cure, and the modules that a plan should keep."""
    patient = patient_of(run, lane, report, siblings)
    try:
        found: Diagnosis = diagnose(patient)
    except Exception as error:
        said = f"no diagnosis: {type(error).__name__}: {first_line(error)}"
        return report.model_copy(update={"warnings": [*report.warnings, said]}), ()
    return report.model_copy(update={"culprit": found.culprit, "cure": found.cure}), found.keep


def patient_of(
    run: EvaluationRun, lane: Lane, report: Report, siblings: dict[str, Report]
) -> Patient:
    """What a diagnosis needs of an evaluation that has kept some inputs."""
    assert lane.outcome.kept is not None, "unreachable: the caller has looked"
    return Patient(
        report=report,
        siblings={name: r for name, r in siblings.items() if name != report.precision},
        candidate=lambda keep: run.candidate(report.precision, keep) if keep else lane.candidate,
        reference=run.reference.model,
        task=run.task,
        kept=lane.outcome.kept,
        error=lane.failure_error,
        emulated=lane.mode == "emulated",
        price=lambda name, keep: price_of(run, lane, name, keep),
        judge=lambda name, keep: _judged(run, name, (*run.keep.get(name, ()), *keep)),
    )


def _judged(run: EvaluationRun, precision: str, keep: tuple[str, ...]) -> Report:
    """A full re-check of one precision with modules kept in float32."""
    settings = run.settings.with_(precisions=(precision,))
    again = EvaluationRun(run.subject, settings, None, {precision: keep})
    again.execute()
    return again.report(again.lanes[0])
