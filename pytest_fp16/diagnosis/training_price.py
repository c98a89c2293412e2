"""What the cure of a training costs: the share of one step's arithmetic that is done in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pytest_fp16.diagnosis.proposal import Proposal
from pytest_fp16.engine.arithmetic import Arithmetic
from pytest_fp16.engine.training.modes import to_train
from pytest_fp16.engine.training.order import ordered
from pytest_fp16.engine.training.trainee import Trainee
from pytest_fp16.report.model import Price

if TYPE_CHECKING:
    from pytest_fp16.engine.training.runs import Runs
    from pytest_fp16.precision import Precision


def price_of(runs: Runs, precision: Precision, seed: int, proposal: Proposal) -> Price | None:
    """The price of a cure that passed; None where its first step cannot be made once more.

    Args:
        runs: makes the trainings.
        precision: the one that failed.
        seed: whose first step is counted.
        proposal: the cure.
    """
    share = _share(runs, proposal.precision or precision, seed, proposal)
    if share is None:
        return None
    return Price(float32_share=share, float32_share_before=_share(runs, precision, seed, None))


def _share(runs: Runs, precision: Precision, seed: int, cure: Proposal | None) -> float | None:
    """The share of the arithmetic of one step that is done in float32, amended or not."""
    subject = (cure.subject if cure is not None else None) or runs.subject_for(precision)
    amendment = cure.amendment if cure is not None else None
    counted = Arithmetic()
    try:
        with torch.enable_grad():
            trainee = Trainee(subject, precision, seed, runs.state(seed), runs.place, amendment)
            to_train(trainee.model)
            with trainee.installed():
                batch = next(iter(ordered(subject.train_data, seed, 0)))
                trainee.step(batch, last=True, observer=counted)
    except Exception:  # no price is no reason to lose the cure
        return None
    return counted.float32_share
