"""Weight decay that moves no weight: of 1 - lr * decay nothing is left but one.

What a gradient moves hides it, so the optimizer makes one step without any: in 32 bits every weight
shrinks, in 16 bits hardly one does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_fp16.engine.training.runs import Runs
from pytest_fp16.engine.training.trainee import Trainee
from pytest_fp16.precision import REFERENCE, Precision
from pytest_fp16.report.model import Culprit

#: It has vanished where hardly a weight moves by it, and in 32 bits most do.
_HARDLY, _MOST = 0.01, 0.5
#: What it takes of a weight, over a whole training, for its want to matter.
_MATTERS = 0.5


@dataclass(frozen=True)
class Decayed:
    """One step of the optimizer, of gradients that are zero.

    Attributes:
        moved: the share of the weights with a decay that it moves.
        by: the median of what it takes of a weight, relative to it.
    """

    moved: float
    by: float


def vanished_decay(runs: Runs, precision: Precision, seed: int) -> Culprit | None:
    """The optimizer, if weight decay does nothing in a true 16-bit precision; None elsewhere."""
    if not precision.casts:
        return None
    try:
        low, wide = (_step(runs, each, seed) for each in (precision, REFERENCE))
    except Exception:  # an optimizer that steps in another way
        return None
    if low is None or wide is None or low.moved > _HARDLY or wide.moved < _MOST:
        return None
    if wide.by * runs.steps_per_run < _MATTERS:
        return None
    return Culprit(
        module="<optimizer>",
        operation="weight_decay",
        mechanism="absorption",
        evidence=f"weight decay takes {wide.by:.2g} of a weight in each step, and in "
        f"{precision.dtype_name} it moves {low.moved:.1%} of the weights",
    )


def _step(runs: Runs, precision: Precision, seed: int) -> Decayed | None:
    subject = runs.subject_for(precision)
    trainee = Trainee(subject, precision, seed, runs.state(seed), runs.place)
    if trainee.closure or trainee.by_hand is not None:
        return None
    groups = trainee.optimizer.param_groups
    decayed = [p for g in groups if g.get("weight_decay") for p in g["params"]]
    before = _flat(decayed)
    for parameter in trainee.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with trainee.installed(), runs.place.arithmetic(precision):
        trainee.optimizer.step()
    there = before != 0
    before, after = before[there], _flat(decayed)[there]
    if not len(before) or not bool(after.isfinite().all()):  # zero divided by a lost epsilon
        return None
    taken = ((before - after) / before).abs()
    return Decayed(float((taken > 0).float().mean()), float(taken.median()))


def _flat(parameters: list[Tensor]) -> Tensor:
    if not parameters:
        return torch.empty(0)
    return torch.cat([p.detach().float().flatten().cpu() for p in parameters])
