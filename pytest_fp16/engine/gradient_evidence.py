"""What the gradient check measures, and the small questions it asks of a training."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pytest_fp16.engine.batching import all_tensors
from pytest_fp16.engine.gradient_points import Point
from pytest_fp16.engine.optimizer_probe import Probe
from pytest_fp16.engine.order import ordered
from pytest_fp16.engine.origin import Found
from pytest_fp16.engine.statistics_probe import Lag
from pytest_fp16.engine.trainee import Trainee
from pytest_fp16.errors import DataError
from pytest_fp16.subject import Training
from pytest_fp16.theory.gradient import Movement
from pytest_fp16.theory.rounding import Format

#: What was raised or lost, and where that is known to come from.
Broke = tuple[str, Found | None]


@dataclass
class Evidence:
    """Everything the check measured, before it is judged.

    Attributes:
        format: of the candidate.
        points: gradients along the trajectory.
        broke: (what was raised or lost, origin) where the candidate could not take its first
            steps.
        weights: movement of the trained weights over the steps made together.
        first_losses: (reference, candidate) of each of those steps.
        confident: what was raised or lost when the model was made as sure as a trained one.
        statistics: per buffer (and averaged weight): movement, and the share of its own size that
            a whole training would leave it behind by.
        lags: where running statistics of batch norms end.
        lost_buffers: buffers that are not finite in 16 bits.
        optimizer: what the run of the optimizer alone showed; None where it does not apply.
        total_steps: optimizer steps of the whole training.
        batch_size: inputs per batch.
        epsilon: (hyperparameter, value) of an optimizer epsilon that is zero in the format.
    """

    format: Format
    points: list[Point] = field(default_factory=list)
    broke: Broke | None = None
    weights: Movement | None = None
    first_losses: list[tuple[float, float]] = field(default_factory=list)
    confident: Broke | None = None
    lags: list[Lag] = field(default_factory=list)
    statistics: dict[str, tuple[Movement, float]] = field(default_factory=dict)
    lost_buffers: list[str] = field(default_factory=list)
    optimizer: Probe | None = None
    total_steps: int = 0
    batch_size: int = 0
    epsilon: tuple[str, float] | None = None


def float_tensors(trainee: Trainee) -> dict[str, Tensor]:
    """Floating tensors of a model's state, as float32 copies."""
    state = trainee.model.state_dict().items()
    return {
        n: t.detach().float().clone()
        for n, t in state
        if isinstance(t, Tensor) and t.is_floating_point()
    }


def weight_names(model: nn.Module) -> set[str]:
    """Every name a trained weight has in the model's state: a tied one has several."""
    every = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in every if parameter.requires_grad}


def batches_per_epoch(subject: Training) -> int:
    """How many batches an epoch has; at most 256 are counted where data has no length."""
    try:
        return max(len(subject.train_data), 1)  # type: ignore[arg-type]
    except TypeError:
        return sum(1 for _ in itertools.islice(iter(subject.train_data), 256))


def endless(subject: Training, seed: int) -> Iterator[Any]:
    """The batches of epoch after epoch, in the order training takes them.

    Raises:
        DataError: there are none.
    """
    for epoch in itertools.count():
        empty = True
        for batch in ordered(subject.train_data, seed, epoch):
            empty = False
            yield batch
        if empty:
            raise DataError("train_data yields no batches")


def count_in(batch: Any) -> int:
    """Inputs in a batch: the length of its first tensor."""
    sizes = [t.shape[0] for t in all_tensors(batch) if t.dim()]
    return int(sizes[0]) if sizes else 0


def lost_epsilon(candidate: Trainee) -> tuple[str, float] | None:
    """An epsilon of the optimizer that the format of the weights rounds to zero."""
    if candidate.cast is None:
        return None
    for group in candidate.optimizer.param_groups:
        value = group.get("eps")
        positive = isinstance(value, float) and value > 0
        if positive and not float(torch.tensor(value).to(candidate.cast)):
            return "eps", value
    return None
