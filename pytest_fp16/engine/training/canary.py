"""The native canary of a training: one step of a few inputs in the device's own 16-bit kernels.

Forward, backward and the optimizer's step, before an emulated run: it shows that every operation of
them has a kernel here, and that emulation agrees with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.batching import take
from pytest_fp16.engine.canary import CanaryFindings, refused, spoken_for
from pytest_fp16.engine.containers import all_tensors
from pytest_fp16.engine.drawn_alike import DrawnAlike
from pytest_fp16.engine.randomness import seed_everything
from pytest_fp16.engine.training.modes import to_train
from pytest_fp16.engine.training.order import ordered, step_seed
from pytest_fp16.engine.training.place import Amendment, Place
from pytest_fp16.engine.training.trainee import Trainee, as_real, gradient_of
from pytest_fp16.precision import Precision
from pytest_fp16.subject import Training

#: Inputs of the step: a batch norm needs more than one, and float16 on a CPU is slow.
INPUTS = 8
#: Its gradient parts from emulation's by more than the order of accumulation explains.
LARGE_DIFFERENCE = 0.25
#: A step this many times as long, or as short, is another step: roundings move it by far less.
STEP = 2.0


def one_step(
    subject: Training,
    precision: Precision,
    seed: int,
    state: Mapping[str, Any],
    place: Place,
    amendment: Amendment | None = None,
) -> CanaryFindings:
    """Make one step natively and one emulated, from the same weights, and compare their gradients.

    Args:
        subject, precision, seed, state, amendment: as for `train`.
        place: where the emulated run is about to be made; its device's kernels are tried.
    """
    batch = next(iter(ordered(subject.train_data, seed, 0)))
    given = (subject, precision, seed, state)
    few = _few(batch)
    emulated, emulation_error = _attempt(Trainee(*given, place, amendment), few)
    if emulation_error is not None:  # a batch that cannot be cut
        few = batch
        emulated, emulation_error = _attempt(Trainee(*given, place, amendment), few)
    native, error = _attempt(Trainee(*given, replace(place, emulated=False), amendment), few)
    device = place.device.type
    if error is not None:
        return refused(error, emulation_error, device)
    text = f"the canary made a training step natively on {device}"
    if emulated is None or native is None or emulated.gradient is None or native.gradient is None:
        return CanaryFindings(text, None, emulation_error)
    if not bool(native.gradient.isfinite().any() | emulated.gradient.isfinite().any()):
        return CanaryFindings(f"{text}; its gradient is NaN or infinite, as in emulation")
    gradient = native.gradient
    difference = _difference(gradient, emulated.gradient)
    if difference > LARGE_DIFFERENCE:  # they may have drawn other numbers
        alike = DrawnAlike(place.target)
        again, _ = _attempt(Trainee(*given, replace(place, emulated=False), amendment), few, alike)
        if again is not None and again.gradient is not None and alike.drew:
            native, gradient = again, again.gradient
            difference = _difference(gradient, emulated.gradient)
    text += f"; emulation's gradient differs by {difference:.1e} of its size"
    if difference > LARGE_DIFFERENCE and device != place.target:
        own, _ = _attempt(Trainee(*given, replace(place, kernels=device), amendment), few)
        if own is not None and own.gradient is not None:
            emulated, difference = own, _difference(gradient, own.gradient)
            text += f", of this device's kernels by {difference:.1e}"
        text += spoken_for("gradients", device, place.target)
    said, difference = _steps(native.length, emulated.length, difference)
    return CanaryFindings(text + said, difference=difference)


def _steps(native: float, emulated: float, difference: float) -> tuple[str, float]:
    """What is to be said of two steps that are not one, and how much the two runs differ then."""
    lost = [how for how, n in (("native", native), ("emulated", emulated)) if not math.isfinite(n)]
    if len(lost) == 2:
        return "; its step makes the weights NaN or infinite, as in emulation", difference
    if lost:
        return f"; the weights are NaN or infinite after the {lost[0]} step only", math.inf
    longer = native / emulated if emulated else 1.0
    if 1 / STEP <= longer <= STEP:
        return "", difference
    said = f", and the native step is {longer:.2g} times as long as the emulated one"
    return said, max(difference, abs(longer - 1))


def _few(batch: Any) -> Any:
    sizes = [t.shape[0] for t in all_tensors(batch) if t.dim()]
    if not sizes or sizes[0] <= INPUTS:
        return batch
    return take(batch, sizes[0], list(range(INPUTS)))


@dataclass(frozen=True)
class _Step:
    """What one step did.

    Attributes:
        gradient: the one that the optimizer was about to apply; None where a scaler skipped it.
        length: how far the weights went.
    """

    gradient: Tensor | None
    length: float


def _attempt(
    trainee: Trainee, batch: Any, seen_by: AbstractContextManager[Any] | None = None
) -> tuple[_Step | None, Exception | None]:
    """(what one step did, None) or (None, what it raised); a mode may see its operations."""
    seen: list[Tensor] = []

    def keep(optimizer: Any, args: Any, kwargs: Any) -> None:
        found = [gradient_of(p).flatten() for p in trainee.parameters() if p.grad is not None]
        seen[:] = [torch.cat(found)] if found else []

    trainee.optimizer.register_step_pre_hook(keep)
    seed_everything(step_seed(0, 0))
    start = [as_real(p.detach()).float().clone() for p in trainee.parameters()]
    try:
        with torch.enable_grad(), trainee.installed(), seen_by or nullcontext():
            to_train(trainee.model)
            trainee.step(batch, last=True)
    except Exception as error:
        return None, error
    moved = zip(start, trainee.parameters(), strict=True)
    squares = (float((as_real(p.detach()).float() - s).square().sum()) for s, p in moved)
    return _Step(seen[0] if seen else None, math.sqrt(sum(squares))), None


def _difference(native: Tensor, emulated: Tensor) -> float:
    both = native.isfinite() & emulated.isfinite()
    if native.shape != emulated.shape or not bool(both.any()):
        return math.inf
    size = float(emulated[both].norm())
    gap = float((native - emulated)[both].norm())
    return gap / size if size else gap
