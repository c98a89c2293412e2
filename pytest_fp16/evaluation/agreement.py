"""Agreement with the reference where there are no labels: each flip costs what its margin says.

A flip between two classes that the reference itself can hardly tell apart is as likely right as
wrong; one against a clear decision is a loss. So a flip costs the reference's margin over the class
taken instead, in units of the median margin of all decisions, and at most one. Margins relative to
each other do not depend on the logits' scale, as probabilities would.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pytest_fp16.theory.budget import accuracy_error

#: Margins are counted in bins of a sixteenth of a power of two, so that data of any length fits.
_PER_OCTAVE = 16
_SMALLEST = -64  # powers of two
_BINS = 2 * -_SMALLEST * _PER_OCTAVE


class Agreement:
    """One minus the mean cost of a decision."""

    scale = 1.0

    def __init__(self) -> None:
        self.decisions = torch.zeros(_BINS, dtype=torch.float64)
        self.flips = torch.zeros(_BINS, dtype=torch.float64)
        self.lost = 0.0  # flips that no margin excuses: NaN decides nothing
        self.inputs = 0

    def add(self, margins: Tensor, valid: Tensor) -> None:
        """Add the reference's margins of decisions, [N, P], where they count."""
        self.decisions += _counted(margins[valid], torch.ones_like(margins[valid]))
        self.inputs += int(valid.any(1).sum())

    def add_flips(self, leads: Tensor, weights: Tensor) -> None:
        """Add flips: by how much the reference prefers its own class, and how certain each is.

        Args:
            leads: of the reference's class over the one taken instead, [K]; infinite where nothing
                was decided.
            weights: their probability, [K].
        """
        known = leads.isfinite()
        self.flips += _counted(leads[known], weights[known])
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
        passed = self.decisions.cumsum(0) >= self.count / 2
        median = int(passed.nonzero()[0])
        below = torch.arange(_BINS, dtype=torch.float64) - median
        cost = torch.exp2(below / _PER_OCTAVE).clamp(max=1.0)
        return 1 - (float((self.flips * cost).sum()) + self.lost) / self.count

    @property
    def standard_error(self) -> float:
        """As of an accuracy with every answer right, over inputs."""
        return accuracy_error(self.inputs, self.inputs, self.inputs)


def _counted(margins: Tensor, weights: Tensor) -> Tensor:
    places = ((margins.double().log2() - _SMALLEST) * _PER_OCTAVE).nan_to_num(nan=0.0)
    index = places.clamp(0, _BINS - 1).long()
    return torch.zeros(_BINS, dtype=torch.float64).index_add(0, index.cpu(), weights.double().cpu())
