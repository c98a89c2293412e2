"""Where a training runs and in which arithmetic, and what a cure changes in it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pytest_fp16.engine.emulation.emulate import Emulation
from pytest_fp16.engine.models import autocast
from pytest_fp16.precision import Precision


@dataclass(frozen=True)
class Place:
    """Where a training runs, and whether its 16-bit arithmetic is emulated.

    Attributes:
        device: the device of model and batches.
        target: the device an emulated run speaks for.
        emulated: every 16-bit operation in float32, rounded once.
        kernels: whose, where it is emulated and not the target's are meant.
    """

    device: torch.device
    target: str = "cuda"
    emulated: bool = False
    kernels: str | None = None

    def arithmetic(self, precision: Precision) -> Any:
        """The context a step of that precision computes in."""
        if not self.emulated or not precision.low:
            return nullcontext()
        return Emulation(self.kernels or self.target)

    def region(self, precision: Precision) -> Any:
        """The context that a program of that precision runs in; see `autocast`."""
        return autocast(precision, self.device, self.target)


@dataclass
class Amendment:
    """What a cure changes in a training, beside what `Training` itself says.

    Attributes:
        model: applied to the float32 model, before its cast and before the optimizer is made.
        optimizer: applied to the optimizer once it is made.
        loss_scale: a constant factor on the loss, taken out of the gradients again.
        anew: autocast keeps no cast of a weight.
    """

    model: Callable[[nn.Module], Any] | None = None
    optimizer: Callable[[Any], Any] | None = None
    loss_scale: float | None = None
    anew: bool = False
