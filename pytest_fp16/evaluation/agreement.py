"""Agreement with the reference where there are no labels: each flip costs what its margin says.

A flip between two classes that the reference itself can hardly tell apart is as likely right as
wrong; one against a clear decision is a loss. So a flip costs the reference's margin over the class
taken instead, in units of the median margin of all decisions, or of those for its class where that
is smaller (few pixels are of the object, and none of them as sure as the background), and at most
one. Margins relative to each other do not depend on the logits' scale, as probabilities would.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pytest_fp16.theory.budget import accuracy_error

#: Margins are counted in bins of an eighth of a power of two, so that data of any length fits.
_PER_OCTAVE = 8
_SMALLEST = -32  # powers of two
_BINS = 2 * -_SMALLEST * _PER_OCTAVE
#: Classes are told apart up to so many; those of a vocabulary share places.
_GROUPS = 256
#: Decisions that a median of their own takes, at least.
FEW = 8


class Agreement:
    """One minus the mean cost of a decision."""

    scale, grain = 1.0, 0.0  # a decision costs what its margin says

    def __init__(self) -> None:
        self.decisions = torch.zeros(_GROUPS, _BINS, dtype=torch.float64)
        self.flips = torch.zeros(_GROUPS, _BINS, dtype=torch.float64)
        self.lost = 0.0  # flips that no margin excuses: NaN decides nothing
        self.inputs = 0

    def add(self, margins: Tensor, classes: Tensor, valid: Tensor) -> None:
        """Add decisions: the reference's margins, its classes, where they count; all [N, P]."""
        counted = margins[valid]
        _count(self.decisions, counted, classes[valid], torch.ones_like(counted))
        self.inputs += int(valid.any(1).sum())

    def add_flips(self, leads: Tensor, classes: Tensor, weights: Tensor) -> None:
        """Add flips: by how much the reference prefers its own class, and how certain each is.

        Args:
            leads: of the reference's class over the one taken instead, [K]; infinite where nothing
                was decided.
            classes: the reference's, [K].
            weights: their probability, [K].
        """
        known = leads.isfinite()
        _count(self.flips, leads[known], classes[known], weights[known])
        self.lost += float(weights[~known].sum())

    @property
    def count(self) -> int:
        """How many decisions there were."""
        return int(self.decisions.sum())

    @property
    def value(self) -> float:
        """One minus the mean cost; NaN before the first decision."""
        if not self.count:
            return math.nan
        every = _median(self.decisions.sum(0))
        enough = self.decisions.sum(1, keepdim=True) >= FEW
        unit = torch.where(enough, _median(self.decisions).minimum(every), every)
        above = torch.arange(_BINS) - unit
        cost = torch.exp2(above.double() / _PER_OCTAVE).clamp(max=1.0)
        return 1 - (float((self.flips * cost).sum()) + self.lost) / self.count

    @property
    def standard_error(self) -> float:
        """As of an accuracy with every answer right, over inputs."""
        return accuracy_error(self.inputs, self.inputs, self.inputs)


def _count(into: Tensor, margins: Tensor, classes: Tensor, weights: Tensor) -> None:
    places = ((margins.double().log2() - _SMALLEST) * _PER_OCTAVE).nan_to_num(nan=0.0)
    index = (classes % _GROUPS) * _BINS + places.clamp(0, _BINS - 1).long()
    into.view(-1).index_add_(0, index.cpu(), weights.double().cpu())


def _median(counts: Tensor) -> Tensor:
    """The bin of the median, of counts [..., bins]; kept as [..., 1]."""
    passed = counts.cumsum(-1) >= counts.sum(-1, keepdim=True) / 2
    return passed.int().argmax(-1, keepdim=True)
