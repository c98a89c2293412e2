"""Watches a training run for its bad ends."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

import torch
from torch import nn

from pytest_fp16.engine.training.trainee import Trainee

#: Steps in a row without one applied after which a loss scale has collapsed: from its start at
#: 2^16 each halves it, and 2^-24, float16's smallest number, is 40 halvings away.
COLLAPSED = 40

#: A run has diverged when the median loss of an epoch's last quarter is this many times that of the
#: untrained model, and short epochs after it, up to so many steps, did not bring it back.
DIVERGED, AWAY = 10.0, 16


class Ended(Exception):  # noqa: N818 (the end of a run is no error)
    """A run ended badly: how, and at which (epoch, step)."""

    def __init__(self, ended: str, at: tuple[int, int]) -> None:
        super().__init__(ended)
        self.ended, self.at = ended, at


class Guard:
    """Watches a run for its bad ends.

    Buffers that hold infinities from the start (masks) are left out.

    Args:
        model: what is trained.
        usual: the largest loss that the 32-bit run came through, for a run beside it; None for
            the 32-bit run itself. There a loss may grow for good reasons (a term that is weighed
            ever more, an opponent that learns, values that grow), so it ends nothing.

    Attributes:
        away_at: (epoch, step) where the loss of a 32-bit run left for good; None where it did not.
        first, tail: the loss of the untrained model, and the median of the last epoch's last
            quarter.
        losses: all that were finite, step by step.
    """

    def __init__(self, model: nn.Module, usual: float | None = None) -> None:
        self.usual = usual
        self.first: float | None = None
        self.tail = math.nan
        self.losses: list[float] = []
        self.away_at: tuple[int, int] | None = None
        self.beyond: tuple[int, int] | None = None
        self.away = 0
        self.lost = False
        self.in_a_row = 0
        self.applied = 0
        self.finite = {n for n, b in model.named_buffers() if all_finite([b])}

    def after_step(self, trainee: Trainee, epoch: int, step: int, loss: float) -> None:
        """Raises `Ended` where the loss or a parameter is lost, or no step is applied any more.

        A scaler skips the steps of a loss that is not finite, so there a single one is no end, if
        it does. Nor is an infinite one whose gradient is finite (a sum that leaves the range): what
        is trained does not feel it, and it may return.
        """
        if math.isfinite(loss):
            self.beyond = None
            self.losses.append(loss)
            self.first = self.first or loss  # zero, of a term that starts later, has no size
        elif trainee.scaler is None:
            self.beyond = self.beyond or (epoch, step)
            if math.isnan(loss):
                raise Ended("nan", (epoch, step))
        if trainee.scaler is not None and not trainee.left_out:
            self._after_scaled(trainee, (epoch, step), loss)
        if not all_finite(trainee.parameters()):
            raise Ended("nan", (epoch, step))

    def _after_scaled(self, trainee: Trainee, at: tuple[int, int], loss: float) -> None:
        self.lost = self.lost or math.isnan(loss)
        applied = trainee.applied > self.applied
        if applied and self.lost:  # no gradient tells of it, and every loss may be as this one
            raise Ended("nan", at)
        self.lost &= bool(trainee.pending)
        self.in_a_row = 0 if applied or trainee.pending else self.in_a_row + 1
        self.applied = trainee.applied
        if self.in_a_row >= COLLAPSED:
            raise Ended("collapsed scale", at)

    def after_epoch(self, trainee: Trainee, epoch: int, losses: list[float]) -> None:
        """Raises `Ended` where running statistics are lost, or the loss has run away."""
        at = (epoch, len(losses) - 1)
        buffers = [b for n, b in trainee.model.named_buffers() if n in self.finite]
        if not all_finite(buffers):
            raise Ended("nan", at)
        tail = [loss for loss in losses[-max(1, len(losses) // 4) :] if math.isfinite(loss)]
        if not tail:
            return
        self.tail = median(tail)  # of one batch that is far out the next ones tell more
        if self.first is None or self.tail <= self._bound(self.first):
            self.away, self.away_at = 0, None
            return
        # An optimizer that looks for its own steps may overshoot once, and return.
        self.away += len(losses)
        if self.away >= AWAY or epoch + 1 == trainee.subject.epochs:
            self.away_at = self.away_at or at
            if self.usual is not None:
                raise Ended("diverged", at)

    def _bound(self, first: float) -> float:
        most = first if self.usual is None else max(first, self.usual)
        return most + (DIVERGED - 1) * abs(most)

    def at_the_end(self) -> None:
        """Raises `Ended` where the loss stayed infinite."""
        if self.beyond is not None:
            raise Ended("infinite loss", self.beyond)


def all_finite(tensors: list[Any]) -> bool:
    """Whether every number in floating tensors is finite."""
    floating = [t.detach() for t in tensors if t.is_floating_point() and t.numel()]
    if not floating:
        return True
    # The largest absolute value is NaN where any value is, and costs one pass for all tensors.
    return bool(torch.isfinite(nn.utils.get_total_norm(floating, math.inf)))
