"""The native canary of a training: one step of a few inputs in the device's own 16-bit kernels.

Forward, backward and the optimizer's step, before an emulated run: it shows that every operation of
them has a kernel here, and that emulation agrees with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.batching import all_tensors, take
from pytest_fp16.engine.canary import CanaryFindings, refused
from pytest_fp16.engine.order import ordered, step_seed
from pytest_fp16.engine.randomness import seed_everything
from pytest_fp16.engine.trainee import Amendment, Place, Trainee, gradient_of
from pytest_fp16.precision import Precision
from pytest_fp16.subject import Training

#: Inputs of the step: a batch norm needs more than one, and float16 on a CPU is slow.
INPUTS = 8


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
    if emulated is None or native is None:
        return CanaryFindings(text, None, emulation_error)
    difference = _difference(native, emulated)
    text += f"; emulation's gradient differs by {difference:.1e} of its size"
    return CanaryFindings(text, difference=difference)


def _few(batch: Any) -> Any:
    sizes = [t.shape[0] for t in all_tensors(batch) if t.dim()]
    if not sizes or sizes[0] <= INPUTS:
        return batch
    return take(batch, sizes[0], list(range(INPUTS)))


def _attempt(trainee: Trainee, batch: Any) -> tuple[Tensor | None, Exception | None]:
    """(the gradient the optimizer was about to apply, None) or (None, what the step raised).

    There is no gradient either where a scaler skipped the step.
    """
    seen: list[Tensor] = []

    def keep(optimizer: Any, args: Any, kwargs: Any) -> None:
        found = [gradient_of(p).flatten() for p in trainee.parameters() if p.grad is not None]
        seen[:] = [torch.cat(found)] if found else []

    trainee.optimizer.register_step_pre_hook(keep)
    seed_everything(step_seed(0, 0))
    try:
        with torch.enable_grad(), trainee.installed():
            trainee.model.train()
            trainee.step(batch, last=True)
    except Exception as error:
        return None, error
    return (seen[0] if seen else None), None


def _difference(native: Tensor, emulated: Tensor) -> float:
    both = native.isfinite() & emulated.isfinite()
    if native.shape != emulated.shape or not bool(both.any()):
        return math.inf
    size = float(emulated[both].norm())
    gap = float((native - emulated)[both].norm())
    return gap / size if size else gap
