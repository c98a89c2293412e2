"""Gradients of the same batches at the same weights, in 32 bits and in 16."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import stdev
from typing import Any

import torch
from torch import Tensor, nn

from pytest_fp16.engine.randomness import seed_everything
from pytest_fp16.engine.training.modes import to_train
from pytest_fp16.engine.training.trainee import Trainee, gradient_of
from pytest_fp16.engine.untouched import untouched
from pytest_fp16.theory.gradient import (
    RHO_TENSOR,
    RHO_TOTAL,
    Noise,
    Sums,
    batch_variance,
    meaningless,
    noise,
    sums,
)

#: Batches whose gradients give the variance, and how many of them are tried in 16 bits.
BATCHES, TRIED = 4, 2
#: Of torch's GradScaler.
START_SCALE = 2.0**16
_SMALLEST_SCALE = 2.0**-24


@dataclass
class Gradients:
    """Loss and gradients of one batch, unscaled, in float32.

    Attributes:
        loss: the loss.
        by_name: gradient of each trained parameter that has one.
        scale: the loss scale it was taken at.
    """

    loss: float
    by_name: dict[str, Tensor]
    scale: float = 1.0

    @property
    def finite(self) -> bool:
        """Whether every gradient is."""
        return all(bool(g.isfinite().all()) for g in self.by_name.values())


@dataclass
class Point:
    """What one point of the trajectory showed.

    Attributes:
        step: steps of 32-bit training before it.
        losses: (reference, candidate) of each batch tried.
        total: all parameters together, those without meaning left out.
        tensors: each parameter tensor with a meaningful gradient.
        meaningless: names of those whose gradient is not zero, but noise of float32's rounding.
        reference: the 32-bit gradients.
        scale: the loss scale that gave finite gradients (1 without scaling).
        finite: whether some scale gave finite gradients.
        skipped: batches whose gradient no scale makes finite, where a scaler skips their steps and
            others are finite: what the point shows is of those.
        loss_spread: standard deviation of the 32-bit loss over batches.
        left_out: whether no batch that was tried has a gradient in 16 bits: the program skips them.
    """

    step: int
    losses: list[tuple[float, float]]
    total: Noise
    tensors: dict[str, Noise] = field(default_factory=dict)
    meaningless: list[str] = field(default_factory=list)
    reference: list[Tensor] = field(default_factory=list)
    scale: float = 1.0
    finite: bool = True
    skipped: int = 0
    loss_spread: float = 0.0
    left_out: bool = False


def gradients(trainee: Trainee, batch: Any, seed: int, scale: float = 1.0) -> Gradients:
    """Loss and gradients of a batch; whatever else the model keeps stays as it is."""
    model = to_train(trainee.model)
    _forget(trainee)
    seed_everything(seed)
    with untouched(model), trainee.place.arithmetic(trainee.precision):
        loss = trainee.loss(trainee.placed(batch))
        # A scaler's factor is a float32 tensor: a float16 loss is promoted before it is scaled.
        (loss * torch.tensor(scale, device=loss.device) if scale != 1 else loss).backward()
    found = {n: gradient_of(p) / scale for n, p in _stepped(trainee) if p.grad is not None}
    _forget(trainee)
    return Gradients(float(loss.detach()), found, scale)


def _stepped(trainee: Trainee) -> list[tuple[str, nn.Parameter]]:
    """The parameters that the optimizer steps; all, where it steps copies of them."""
    trained = [(n, p) for n, p in trainee.model.named_parameters() if p.requires_grad]
    known = {id(p) for g in trainee.optimizer.param_groups for p in g["params"]}
    return [(n, p) for n, p in trained if id(p) in known] or trained


def _forget(trainee: Trainee) -> None:
    """No gradient is left, nor of a parameter that no optimizer steps."""
    trainee.optimizer.zero_grad()
    for p in trainee.model.parameters():
        p.grad = None


def scaled_gradients(
    trainee: Trainee, batch: Any, seed: int, scale: float | None = None
) -> Gradients:
    """As `gradients`, the scale halved until they are finite, as a gradient scaler does."""
    if scale is None:
        scale = START_SCALE if trainee.scaler is not None else 1.0
    found = gradients(trainee, batch, seed, scale)
    if trainee.scaler is None or found.finite:
        return found
    if not math.isfinite(found.loss) and not gradients(trainee, batch, seed, 1.0).finite:
        return found  # the scale has no part in it
    while not found.finite and scale > _SMALLEST_SCALE:
        scale /= 2
        found = gradients(trainee, batch, seed, scale)
    return found


def examine_point(
    reference: Trainee, candidate: Trainee, batches: Sequence[Any], step: int, unit_roundoff: float
) -> Point:
    """Compare both trainees' gradients at the reference's weights."""
    candidate.follow(reference)
    drawn = list(enumerate(batches))
    exact = [gradients(reference, batch, seed) for seed, batch in drawn]
    if any(g.by_name for g in exact):  # a step may leave some out
        drawn = [one for one, g in zip(drawn, exact, strict=True) if g.by_name]
        exact = [g for g in exact if g.by_name]
    nudged, tried = _nudged(reference, drawn[:TRIED]), [g.by_name for g in exact[:TRIED]]
    low, exact, skipped = _candidates(candidate, drawn, exact)
    names = [n for n in exact[0].by_name if all(n in g.by_name for g in (*exact, *low))]
    empty = []
    for n in names:
        own = torch.cat([held[n].flatten() for held in tried])
        if meaningless(own, torch.cat([g.by_name[n].flatten() for g in nudged])):
            empty.append(n)
    kept = [n for n in names if n not in empty]
    empty = [n for n in empty if bool(exact[0].by_name[n].any())]
    losses = [(e.loss, c.loss) for e, c in zip(exact, low, strict=False)]
    total, total_variance, tensors = Sums(len(low)), 0.0, {}
    for n in kept:
        wide = [g.by_name[n] for g in exact]
        variance = batch_variance(wide) / reference.subject.accumulate
        own_sums = sums(wide[: len(low)], [g.by_name[n] for g in low])
        tensors[n] = noise(own_sums, variance, unit_roundoff, RHO_TENSOR)
        total, total_variance = total + own_sums, total_variance + variance
    return Point(
        step,
        losses,
        noise(total, total_variance, unit_roundoff, RHO_TOTAL),
        tensors,
        empty,
        [exact[0].by_name[n] for n in kept],
        low[-1].scale,
        all(g.finite for g in low),
        skipped,
        _spread([g.loss for g in exact]),
        bool(exact[0].by_name) and not any(g.by_name for g in low),
    )


def _spread(losses: list[float]) -> float:
    finite = [loss for loss in losses if math.isfinite(loss)]
    return stdev(finite) if len(finite) > 1 else 0.0


def _candidates(
    candidate: Trainee, drawn: Sequence[tuple[int, Any]], exact: list[Gradients]
) -> tuple[list[Gradients], list[Gradients], int]:
    """(the candidate's, the reference's with its own in front, how many are skipped)."""
    scale: float | None = None
    low: dict[int, Gradients] = {}
    lost: dict[int, Gradients] = {}
    for number, (seed, batch) in enumerate(drawn):
        if len(low) == TRIED or (number == TRIED and not low):
            break
        found = scaled_gradients(candidate, batch, seed, scale)
        skips = candidate.scaler is not None and not found.finite
        skips = skips or (not found.by_name and bool(exact[number].by_name))
        (lost if skips else low)[number] = found
        scale = scale if skips else found.scale
    if not low:
        low, lost = lost, {}
    order = [*low, *(number for number in range(len(exact)) if number not in low)]
    return list(low.values()), [exact[number] for number in order], len(lost)


def _nudged(trainee: Trainee, drawn: Sequence[tuple[int, Any]]) -> list[Gradients]:
    """The gradients with every weight changed in its last bits."""
    generator = torch.Generator().manual_seed(0)
    held = [p.detach().clone() for p in trainee.parameters()]
    with torch.no_grad():
        for p in trainee.parameters():
            signs = torch.randint(0, 2, p.shape, generator=generator).to(p.device, p.dtype)
            p.mul_(1 + (2 * signs - 1) * 2.0**-22)
    found = [gradients(trainee, batch, seed) for seed, batch in drawn]
    with torch.no_grad():
        for p, value in zip(trainee.parameters(), held, strict=True):
            p.copy_(value)
    return found


def beyond_range(point: Point) -> bool:
    """Whether a 16-bit loss is infinite where all of its gradients are finite."""
    lost = [c for r, c in point.losses if math.isfinite(r) and not math.isfinite(c)]
    return point.finite and bool(lost) and all(map(math.isinf, lost))


def loss_is_off(point: Point, unit_roundoff: float) -> bool:
    """Whether the 16-bit loss is far from the 32-bit one: half of it, beyond rounding.

    A loss that is drawn (actions are sampled, rewards nearly cancel) is as far from itself in the
    next batch. An infinite one with finite gradients is none: `beyond_range` says it.
    """

    def allowed(loss: float) -> float:
        rounding = 16 * unit_roundoff * max(abs(loss), 1e-3)
        return max(0.5 * abs(loss) + rounding, 2 * point.loss_spread)

    return not beyond_range(point) and any(
        math.isfinite(r) and not abs(c - r) <= allowed(r) for r, c in point.losses
    )
