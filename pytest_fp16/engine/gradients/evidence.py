"""What the gradient check measures, and the small questions it asks of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pytest_fp16.engine.containers import all_tensors
from pytest_fp16.engine.gradients.origins.found import Found
from pytest_fp16.engine.gradients.origins.lost_digits import LostDigits
from pytest_fp16.engine.gradients.origins.whole_numbers import Miscount
from pytest_fp16.engine.gradients.points import Point
from pytest_fp16.engine.gradients.probes.evaluated import Evaluated
from pytest_fp16.engine.gradients.probes.guards import Guard
from pytest_fp16.engine.gradients.probes.optimizer_probe import Probe
from pytest_fp16.engine.gradients.probes.second_look import SecondLook
from pytest_fp16.engine.gradients.probes.statistics_probe import Lag, StatisticsRecorder
from pytest_fp16.engine.gradients.probes.steady_probe import Stalled
from pytest_fp16.engine.gradients.probes.sure_outputs import Solved
from pytest_fp16.engine.training.trainee import Trainee, as_real
from pytest_fp16.engine.untouched import plain_tensors
from pytest_fp16.theory.gradient import Movement, extrapolated, movement, reached_at_the_end
from pytest_fp16.theory.rounding import Format

#: What was raised or lost, and where that is known to come from.
Broke = tuple[str, Found | None]

#: What is no further than this from a weight, for its length, is a copy of it.
_COPIED = 0.1


@dataclass
class Evidence:
    """Everything the check measured, before it is judged.

    Attributes:
        format: of the candidate.
        cast: whether it keeps its buffers in that format, too.
        points: gradients along the trajectory.
        broke: (what was raised or lost, origin) where the candidate could not take its first
            steps.
        raised_in: the module whose step raised, ``"<loss>"`` or ``"<optimizer>"``; None where none
            did.
        raised_by: the operation that raised; empty where a statement of the program's did.
        raised_at: the line of the user's code it came from, if any.
        weights: movement of the trained weights over the steps made together.
        first_losses: (reference, candidate) of each of those steps.
        swallowed: what left the range where a gradient is lost and yet finite: a quotient by
            infinity is zero.
        digits: what loses the digits of the loss where a gradient is lost.
        scaled: how far a factor on the loss changes the 32-bit gradient, for its size, where one
            is used and the gradient is lost.
        scaled_steps: how far a scaler changes the 32-bit way of the first steps, for its length,
            where a module makes them itself.
        skipped: the share of steps that a scaler skips whatever its scale, and what makes their
            gradient infinite; None where no batch of a point was such.
        confident: what was raised or lost when the model was made as sure as a trained one.
        solved: how often a batch without mistakes will be seen, where that is what made it so.
        guards: constants of the loss or the model that are zero in the format, and what they guard.
        statistics: per buffer (and averaged weight): movement, and the share of its own size that
            a whole training would leave it behind by.
        lags: where running statistics of batch norms end.
        lost_buffers: buffers that are not finite in 16 bits.
        outgrown: buffers that grow evenly, out of the range before the training ends, and how far.
        stalled: a buffer that stops counting, and what is learned without it.
        lost_weights: weights and buffers that the format cannot hold from the start.
        optimizer: what the run of the optimizer alone showed; None where it does not apply.
        stepped: what leaves the range in a step of the user's own optimizer, and is finite again.
        stuck: what keeps a scaler from taking the last of the first steps.
        second: what a longer look showed; None where the weights went their 32-bit way.
        evaluated: scores of the same weights in both precisions, where they can be taken.
        miscount: whole numbers that the program makes in 16 bits, and are wrong.
        changed: whole numbers that a cast to 16 bits changes.
        total_steps: optimizer steps of the whole training.
        batch_size: inputs per batch.
        epsilon: (hyperparameter, value) of an optimizer epsilon that is zero in the format.
        least_epsilon: the smallest epsilon of the optimizer; None where it has none.
    """

    format: Format
    cast: bool = True
    points: list[Point] = field(default_factory=list)
    broke: Broke | None = None
    raised_in: str | None = None
    raised_by: str = ""
    raised_at: str | None = None
    weights: Movement | None = None
    first_losses: list[tuple[float, float]] = field(default_factory=list)
    swallowed: Found | None = None
    digits: LostDigits | None = None
    scaled: float = 0.0
    scaled_steps: float = 0.0
    skipped: tuple[float, Found | None] | None = None
    confident: Broke | None = None
    solved: Solved | None = None
    guards: dict[Any, Guard] = field(default_factory=dict)
    lags: list[Lag] = field(default_factory=list)
    statistics: dict[str, tuple[Movement, float]] = field(default_factory=dict)
    lost_buffers: list[str] = field(default_factory=list)
    outgrown: dict[str, float] = field(default_factory=dict)
    stalled: Stalled | None = None
    lost_weights: list[str] = field(default_factory=list)
    optimizer: Probe | None = None
    stepped: Found | None = None
    stuck: Found | None = None
    second: SecondLook | None = None
    evaluated: Evaluated | None = None
    miscount: Miscount | None = None
    changed: Miscount | None = None
    total_steps: int = 0
    batch_size: int = 0
    epsilon: tuple[str, float] | None = None
    least_epsilon: float | None = None

    def compare(
        self,
        model: nn.Module,
        candidate: tuple[dict[str, Tensor], dict[str, Tensor]],
        snapshots: list[dict[str, Tensor]],
        steps: int,
    ) -> None:
        """Hold the way of the candidate's state over its first steps against the reference's.

        Args:
            model: the reference's.
            candidate: its state before and after `steps` steps.
            snapshots: the reference's state before, half-way and after.
        """
        start, reached = candidate
        begin, middle, end = snapshots
        names = [n for n in trained_weights(model) if n in end]
        self.weights = movement(
            torch.cat([(end[n] - begin[n]).flatten() for n in names]),
            torch.cat([(reached[n] - start[n]).flatten() for n in names]),
        )
        weights = weight_names(model)
        # Running statistics have a run of their own; here they would show how the weights differ.
        followed = StatisticsRecorder(model).names
        held = (begin, middle, start, reached)
        for name in (n for n in end if n not in weights and all(n in one for one in held)):
            if not bool(end[name].isfinite().all()):
                continue
            if not bool(reached[name].isfinite().all()):
                self.lost_buffers.append(name)
            if name in followed or name in self.lost_buffers:
                continue
            if len({t.shape for t in (begin[name], middle[name], end[name], reached[name])}) > 1:
                continue  # a memory that grows is no average
            moved = movement(end[name] - begin[name], reached[name] - start[name])
            if not moved.length:
                continue
            blocks = 2 * self.total_steps / steps
            after = reached_at_the_end(begin[name], middle[name], end[name], blocks)
            if self.cast and after is not None and after > self.format.largest:
                self.outgrown[name] = after
            way = extrapolated(middle[name] - begin[name], end[name] - middle[name], blocks)
            size = float(begin[name].double().norm()) + way
            self.statistics[name] = (moved, way * moved.distance / size)


def float_tensors(trainee: Trainee) -> dict[str, Tensor]:
    """Floating tensors of a model's state, as float32 copies; complex ones as pairs of them.

    What it keeps in plain attributes is among them: a list of averaged weights is no buffer.
    """
    plain = plain_tensors(trainee.model).items()
    state = {n: t for n, t in plain if t.layout is torch.strided} | trainee.model.state_dict()
    real = {n: as_real(t.detach()) for n, t in state.items() if isinstance(t, Tensor)}
    return {n: t.float().clone() for n, t in real.items() if t.is_floating_point()}


def note_copies(known: dict[str, Tensor], trainee: Trainee) -> None:
    """Add to a model's state what its first step made: copies of weights, to be averaged."""
    now = float_tensors(trainee)
    weights = [now[n] for n in weight_names(trainee.model)]
    for name in now.keys() - known.keys():
        like = [w for w in weights if w.shape == now[name].shape]
        if any(float((now[name] - w).norm()) < _COPIED * float(w.norm()) for w in like):
            known[name] = now[name]


def lost_in_the_cast(state: Mapping[str, Any], candidate: Trainee) -> list[str]:
    """Names of tensors that are finite in 32 bits, and not once the model has been cast."""
    cast = float_tensors(candidate)
    return [
        name
        for name, tensor in state.items()
        if name in cast and bool(tensor.isfinite().all()) and not bool(cast[name].isfinite().all())
    ]


def weight_names(model: nn.Module) -> set[str]:
    """Every name a trained weight has in the model's state: a tied one has several."""
    every = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in every if parameter.requires_grad}


def trained_weights(model: nn.Module) -> list[str]:
    """Names of the weights that are trained, in the model's order.

    That of a set changes with the process, and so do sums.
    """
    return [name for name, p in model.named_parameters() if p.requires_grad]


def weights_finite(model: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the trained weights are finite, among tensors of the model by name."""
    return all(bool(tensors[name].isfinite().all()) for name in trained_weights(model))


def count_in(batch: Any) -> int:
    """Inputs in a batch: the length of its first tensor."""
    sizes = [t.shape[0] for t in all_tensors(batch) if t.dim()]
    return int(sizes[0]) if sizes else 0


def lost_epsilon(candidate: Trainee) -> tuple[str, float] | None:
    """An epsilon of the optimizer that the format of the weights rounds to zero."""
    if candidate.cast is None:
        return None
    for group in candidate.optimizer.param_groups:
        if group.get("fused"):  # such kernels compute in float32; only the state is in 16 bits
            continue
        for name in epsilons_of(group):
            if group[name] > 0 and not float(torch.tensor(group[name]).to(candidate.cast)):
                return name, group[name]
    return None


def least_epsilon(candidate: Trainee) -> float | None:
    """The smallest epsilon of the optimizer, which bounds its steps; None where it has none."""
    groups = candidate.optimizer.param_groups
    return min((group[name] for group in groups for name in epsilons_of(group)), default=None)


def epsilons_of(group: Mapping[str, Any]) -> list[str]:
    """The settings of an optimizer's group that are epsilons: ``eps``, or another's ``epsilon``."""
    return [n for n, v in group.items() if n.startswith("eps") and isinstance(v, float)]
