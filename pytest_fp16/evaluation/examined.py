"""A whole examination of a trained model: one pass through the data, then what failed."""

from __future__ import annotations

from pytest_fp16.engine.randomness import preserved_state
from pytest_fp16.evaluation.report import needs_diagnosis, report_of
from pytest_fp16.evaluation.run import EvaluationRun
from pytest_fp16.progress import Progress
from pytest_fp16.report.model import Report
from pytest_fp16.settings import Settings
from pytest_fp16.subject import Evaluation


def examine_evaluation(
    subject: Evaluation, settings: Settings, progress: Progress | None = None, test: str = ""
) -> list[Report]:
    """Every precision beside the reference, in one pass through the data; then what failed."""
    with preserved_state():
        run = EvaluationRun(subject, settings, progress, test=test)
        run.execute()
        reports = [report_of(run, precision_run) for precision_run in run.runs]
        if run.plan is not None or any(map(needs_diagnosis, reports)):
            from pytest_fp16.evaluation.diagnosed import diagnosed

            reports = diagnosed(run, reports)
        return reports
