"""Gradients of the same batches at the same weights, in 32 bits and in 16."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pytest_fp16.engine.batching import map_tensors, split_batch
from pytest_fp16.engine.models import call_as_is, main_output
from pytest_fp16.engine.randomness import seed_everything
from pytest_fp16.engine.trainee import Trainee, gradient_of
from pytest_fp16.errors import DataError
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
#: Margins of well-trained classifiers reach 20 (a probability within 2e-9 of one).
TRAINED_MARGIN, MOST_CONFIDENT = 20.0, 64.0


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
    """

    step: int
    losses: list[tuple[float, float]]
    total: Noise
    tensors: dict[str, Noise] = field(default_factory=dict)
    meaningless: list[str] = field(default_factory=list)
    reference: list[Tensor] = field(default_factory=list)
    scale: float = 1.0
    finite: bool = True


def gradients(trainee: Trainee, batch: Any, seed: int, scale: float = 1.0) -> Gradients:
    """Loss and gradients of a batch; parameters, buffers and random state stay as they are."""
    model = trainee.model.train()
    held = {n: b.detach().clone() for n, b in model.named_buffers()}
    trainee.optimizer.zero_grad()
    seed_everything(seed)
    with trainee.place.arithmetic(trainee.precision):
        loss = trainee.loss(trainee.placed(batch))
        # A scaler's factor is a float32 tensor: a float16 loss is promoted before it is scaled.
        (loss * torch.tensor(scale, device=loss.device) if scale != 1 else loss).backward()
    found = {
        n: gradient_of(p) / scale
        for n, p in model.named_parameters()
        if p.requires_grad and p.grad is not None
    }
    trainee.optimizer.zero_grad()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name in held:
                buffer.copy_(held[name])
    return Gradients(float(loss.detach()), found, scale)


def scaled_gradients(
    trainee: Trainee, batch: Any, seed: int, scale: float | None = None
) -> Gradients:
    """As `gradients`, the scale halved until they are finite, as a gradient scaler does."""
    if scale is None:
        scale = START_SCALE if trainee.scaler is not None else 1.0
    found = gradients(trainee, batch, seed, scale)
    while trainee.scaler is not None and not found.finite and scale > _SMALLEST_SCALE:
        scale /= 2
        found = gradients(trainee, batch, seed, scale)
    return found


def examine_point(
    reference: Trainee, candidate: Trainee, batches: Sequence[Any], step: int, unit_roundoff: float
) -> Point:
    """Compare both trainees' gradients at the reference's weights."""
    candidate.model.load_state_dict(reference.model.state_dict())
    seeds = range(len(batches))
    exact = [gradients(reference, b, s) for b, s in zip(batches, seeds, strict=True)]
    nudged = _nudged(reference, batches[:TRIED])
    scale = None
    low: list[Gradients] = []
    for batch, seed in list(zip(batches, seeds, strict=True))[:TRIED]:
        low.append(scaled_gradients(candidate, batch, seed, scale))
        scale = low[-1].scale
    names = [n for n in exact[0].by_name if all(n in g.by_name for g in (*exact, *low))]
    empty = []
    for n in names:
        own = torch.cat([g.by_name[n].flatten() for g in exact[:TRIED]])
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
    )


def _nudged(trainee: Trainee, batches: Sequence[Any]) -> list[Gradients]:
    """The gradients with every weight changed in its last bits."""
    generator = torch.Generator().manual_seed(0)
    held = [p.detach().clone() for p in trainee.parameters()]
    with torch.no_grad():
        for p in trainee.parameters():
            signs = torch.randint(0, 2, p.shape, generator=generator).to(p.device, p.dtype)
            p.mul_(1 + (2 * signs - 1) * 2.0**-22)
    found = [gradients(trainee, batch, seed) for seed, batch in enumerate(batches)]
    with torch.no_grad():
        for p, value in zip(trainee.parameters(), held, strict=True):
            p.copy_(value)
    return found


def loss_is_off(point: Point, unit_roundoff: float) -> bool:
    """Whether the 16-bit loss is far from the 32-bit one: half of it, beyond rounding."""
    return any(
        math.isfinite(r) and not abs(c - r) <= 0.5 * abs(r) + 16 * unit_roundoff * max(abs(r), 1e-3)
        for r, c in point.losses
    )


def scaling(factor: Tensor | None) -> Any:
    """A forward hook that multiplies the floating tensors a model returns, where they fit."""

    def fitting(t: Tensor) -> Tensor:
        if factor is None or not t.is_floating_point() or t.dim() < factor.dim():
            return t
        if any(f not in (1, n) for f, n in zip(factor.shape, t.shape, strict=False)):
            return t
        wide = factor.reshape(*factor.shape, *[1] * (t.dim() - factor.dim()))
        return t * wide.to(t.device, t.dtype)

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if factor is None or not isinstance(output, (Tensor, list, tuple, dict)):
            return None
        if not isinstance(output, dict):
            return map_tensors(output, fitting)
        changed = copy.copy(output)  # of its own type: a loss may read outputs.logits
        for key, value in output.items():
            changed[key] = map_tensors(value, fitting)
        return changed

    return hook


@contextmanager
def scaled_outputs(model: nn.Module, factor: Tensor) -> Iterator[None]:
    """Multiply what the model returns by a factor."""
    handle = model.register_forward_hook(scaling(factor))
    try:
        yield
    finally:
        handle.remove()


def confidence_factor(trainee: Trainee, batch: Any) -> Tensor | None:
    """What makes a classifier's median margin that of a trained one; None for others.

    A trained classifier is sure where it is right: decisions that are wrong so far are left as they
    are. Targets of whole numbers, or of zeros and ones, are read as classes.

    Returns:
        A factor per decision, in the shape of the leading dimensions of the outputs.
    """
    try:
        inputs, targets = split_batch(batch, labelled=True)
    except DataError:
        return None
    if not isinstance(targets, Tensor) or not bool(
        ((targets == 0) | (targets == 1)).all() or not targets.is_floating_point()
    ):
        return None
    with torch.no_grad():
        try:
            placed = trainee.placed(inputs)
            logits = main_output(call_as_is(trainee.model, placed, trainee.subject.forward))
        except Exception:
            return None  # the user's own step calls the model in its own way
    margins, right = _decisions(logits.float(), targets.to(logits.device))
    if margins is None or right is None:
        return None
    margin = float(margins.median())
    if not 0 < margin < TRAINED_MARGIN:
        return None
    factor = min(TRAINED_MARGIN / margin, MOST_CONFIDENT)
    return torch.where(right, factor, 1.0)


def _decisions(logits: Tensor, targets: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """(margin, whether right) of each decision; None where outputs are no decisions."""
    if targets.is_floating_point():
        if logits.shape != targets.shape:
            return None, None
        return logits.abs(), (logits > 0) == (targets > 0.5)
    if logits.dim() < 2:
        return None, None
    pixels = logits.dim() > 2 and targets.shape == logits.shape[:1] + logits.shape[2:]
    classes = 1 if pixels else -1
    if logits.shape[classes] < 2:
        return None, None
    top, found = logits.topk(2, classes)
    margins = (top.select(classes, 0) - top.select(classes, 1)).unsqueeze(classes)
    best = found.select(classes, 0)
    if best.shape != targets.shape:
        return margins, torch.ones(1, dtype=torch.bool, device=logits.device)
    return margins, (best == targets).unsqueeze(classes)
