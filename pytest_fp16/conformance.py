"""check and examine: the whole job, without pytest."""

from __future__ import annotations

from typing import Any

from pytest_fp16.errors import SettingError
from pytest_fp16.evaluation.examined import examine_evaluation
from pytest_fp16.progress import Progress
from pytest_fp16.report.model import Report
from pytest_fp16.settings import Settings
from pytest_fp16.subject import Evaluation, Training, require_subject

__all__ = ["Progress", "check", "examine"]


def check(
    subject: Evaluation | Training,
    *others: Any,
    precision: str = "16-true",
    progress: Progress | None = None,
    **settings: Any,
) -> Report:
    """May this model be evaluated, or trained, in that precision?

    Args:
        subject: a model and its data, an `Evaluation` or a `Training`.
        *others: nothing; here to say how a model and its data are wrapped.
        precision: the candidate's precision, by name.
        progress: told how far the work is.
        **settings: any setting of `Settings`: device, target, emulate, budget, seeds, …

    Returns:
        The report; a model that breaks in 16 bits is a report, too.

    Raises:
        SettingError: an unknown setting, precision or device, or a value that cannot be used.
        DataError: data that is empty, yields once only, or has labels that do not fit.
        ModelError: no model, one in 16 bits already, one that cannot be copied or returns no
            logits, or a reference that is NaN or near chance.
    """
    require_subject(subject, others)
    if "precisions" in settings:
        raise SettingError("check takes one precision=; examine takes Settings(precisions=…)")
    chosen = Settings().for_check(precisions=(precision,), **settings)
    return examine(subject, chosen, progress)[0]


def examine(
    subject: Evaluation | Training,
    settings: Settings,
    progress: Progress | None = None,
    test: str = "",
) -> list[Report]:
    """One report per precision of `settings`, in that order; evaluation data is drawn once.

    Args:
        subject: an `Evaluation` or a `Training`.
        settings: how to check it, and in which precisions.
        progress: told how far the work is.
        test: id of the test that asks, by which a plan knows it; empty: the subject's name.

    Raises:
        FP16Error: see `check`.
    """
    require_subject(subject)
    if isinstance(subject, Evaluation):
        return examine_evaluation(subject, settings, progress, test)
    from pytest_fp16.training.run import examine_training

    return examine_training(subject, settings, progress, test)
