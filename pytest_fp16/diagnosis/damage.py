"""How much of a failure one run of a few inputs shows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pytest_fp16.diagnosis.measure import all_finite
from pytest_fp16.task import Task
from pytest_fp16.theory.margin import flips_and_ties, hidden
from pytest_fp16.theory.rounding import Format, round_to

#: Part of the damage that a run must show by itself to be taken for what did it.
ENOUGH = 0.4


class Damage:
    """How much of a failure a run shows: 0 nothing, 1 all of it.

    Where outputs were lost to NaN or infinity, it is the share of those inputs that are lost
    again; otherwise the root mean square error, relative to the failing run's, or to the spread of
    the outputs over the inputs where that is less: beyond it nothing is left to lose. A shift
    common to all classes changes no decision and counts for nothing, nor does a class that a mask
    hides. Where most decisions that are lost are of classes whose outputs are one number in the
    format (a sigmoid that saturates), it is the share of those that are lost again: an error of one
    ulp costs as many as any.

    Args:
        task: how outputs are read.
        wanted: the reference's raw outputs.
        failing: those of the run that fails.
        apart: whether lost outputs are a damage of their own; else they are as wrong as any.
        fmt: the format of the failing run, where decisions are told apart from errors.

    Attributes:
        merged: the decisions lost to classes that are one number, bool [N, P]; None where few are.
    """

    def __init__(
        self,
        task: Task,
        wanted: Tensor,
        failing: Tensor,
        apart: bool = True,
        fmt: Format | None = None,
    ) -> None:
        self.task = task
        self.wanted = wanted
        self.lost = self._lost(failing) & apart
        own = self.task.canonical(self.wanted)
        masked = hidden(own) if task.kind == "classification" else None
        self.masked = masked if masked is not None and bool(masked.any()) else None
        self.centred = self._centred(own)
        about_mean = self.centred - self.centred.mean(0, keepdim=True)
        self.spread = float(about_mean.square_().mean().sqrt())
        self.full = self._errors(failing)
        self.error = self.full.clamp(max=self.spread) if self.spread > 0 else self.full
        self.merged = None if fmt is None or self.lost.any() else self._merged(failing, fmt)

    @property
    def shown(self) -> bool:
        """Whether the failing run fails on these inputs at all."""
        return bool(self.lost.any()) or bool((self.error > 0).any())

    def of(self, output: Tensor) -> float:
        """The damage of a run."""
        if output.shape != self.wanted.shape:
            return 1.0
        if bool(self.lost.any()):
            return float(self._lost(output)[self.lost].double().mean())
        if self.merged is not None:
            return float(self._undecided(output)[self.merged].double().mean())
        lost = self._lost(output)
        error = torch.minimum(self._errors(output), self.error)
        error = torch.where(lost, self.error, error)
        total = float(self.error.square().sum())
        return (float(error.square().sum()) / total) ** 0.5 if total > 0 else 0.0

    @property
    def relative(self) -> float:
        """The failing run's error relative to the spread of the outputs over the inputs."""
        error = float(self.full.square().mean().sqrt())
        return error / self.spread if self.spread > 0 else math.inf

    @property
    def part(self) -> float:
        """The failing run's error as a part of what there is to lose, from 0 to 1.

        A few inputs may be nearly alike: of decisions it is no less than what tells classes apart.
        """
        size = float(self.centred.square().mean().sqrt()) if self.task.decides else 0.0
        most = max(self.spread, size)
        error = float(self.full.clamp(max=most).square().mean().sqrt())
        return error / most if most > 0 else 0.0

    def _lost(self, output: Tensor) -> Tensor:
        n = len(self.wanted)
        if output.shape != self.wanted.shape:
            return torch.ones(n, dtype=torch.bool)
        return (self.wanted.isfinite() & ~output.isfinite()).reshape(n, -1).any(1)

    def _undecided(self, output: Tensor) -> Tensor:
        """Decisions that are none, or others, where the reference decides, [N, P]."""
        logits, own = self.task.canonical(output), self.task.canonical(self.wanted)
        top = own.nan_to_num(nan=-torch.inf).argmax(-1)
        flips, ties = flips_and_ties(logits, top)
        return (flips | ties) & ~flips_and_ties(own, top)[1]

    def _merged(self, failing: Tensor, fmt: Format) -> Tensor | None:
        """Decisions that are lost although outputs are as near as the format has any."""
        if not self.task.decides or failing.shape != self.wanted.shape:
            return None
        lost = self._undecided(failing)
        merged = lost & self._undecided(round_to(self.wanted, fmt))
        return merged if 2 * int(merged.sum()) > int(lost.sum()) else None

    def _errors(self, output: Tensor) -> Tensor:
        """Root mean square error per input, [N]."""
        if output.shape != self.wanted.shape:
            return torch.full((len(self.wanted),), math.inf, dtype=torch.float64)
        # An infinity that is wanted, of a masked class, is no value that was lost.
        if not all_finite(output):
            output = torch.where(self.wanted.isfinite(), output.nan_to_num(0, 0, 0), output)
        have = self._centred(self.task.canonical(output))
        return have.sub_(self.centred).flatten(1).square_().mean(1).sqrt()

    def _centred(self, logits: Tensor) -> Tensor:
        """Logits of one's own, their mean over classes taken off; values as they are."""
        if self.masked is None and all_finite(logits):  # as nearly always, and many times faster
            values = logits.to(torch.float64, copy=True)
            return values.sub_(values.mean(-1, keepdim=True)) if self.task.decides else values
        finite = logits.isfinite()
        if self.masked is not None:  # its constant is rounded, and tells nothing
            finite &= ~self.masked
        values = torch.where(finite, logits, 0.0).double()
        if not self.task.decides:
            return values
        count = finite.sum(-1, keepdim=True).clamp(min=1)
        return torch.where(finite, values - values.sum(-1, keepdim=True) / count, 0.0)
