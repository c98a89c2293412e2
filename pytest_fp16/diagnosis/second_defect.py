"""What the gradient check expects of a training with the cure: a defect may hide behind another."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from pytest_fp16.diagnosis.proposal import Proposal
from pytest_fp16.engine.copies import make_model
from pytest_fp16.engine.gradients.check import gradient_check
from pytest_fp16.precision import Precision
from pytest_fp16.subject import Training

if TYPE_CHECKING:
    from pytest_fp16.engine.training.runs import Runs


def second_defect(runs: Runs, precision: Precision, cure: Proposal) -> str | None:
    """A warning where the check still expects a failure; None where it does not, or cannot tell.

    Args:
        runs: of the training that failed.
        precision: that it failed in.
        cure: what was tried with a few seeds, and loses nothing in them.
    """
    wanted = cure.precision or precision
    try:
        subject = _cured(runs.subject_for(wanted), cure)
        if subject is None:
            return None
        found = gradient_check(subject, wanted, runs.settings, runs.device)
    except Exception:  # the cure stands whether or not the check can follow it
        return None
    if found.verdict != "not equivalent":
        return None
    return f"with the cure the gradient check still expects a failure: {found.reason}"


def _cured(subject: Training, cure: Proposal) -> Training | None:
    """The training with the cure in it; None where it is more than the training itself can say."""
    change = cure.amendment
    if cure.subject is not None or change is None:
        return cure.subject or subject
    amend = change.model
    if amend is None or change.optimizer is not None or change.loss_scale:
        return None

    def made() -> nn.Module:
        model = make_model(subject.model)
        amend(model)
        return model

    return replace(subject, model=made() if isinstance(subject.model, nn.Module) else made)
