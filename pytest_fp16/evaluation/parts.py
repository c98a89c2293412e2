"""What a metric over all decisions hides: a class, or one of several outputs, that is lost whole.

A rare class may vanish within the budget of an accuracy, and an output of small values within an R²
that is pooled over outputs. Where labels tell that the reference had learned them, that is no loss
of a few points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from pytest_fp16.metric.tallies import NO_SPREAD, summed
from pytest_fp16.task import Task

#: A part is lost where no more than this is left of what the reference gets right, or explains.
LEFT = 0.5
#: Fewer right answers of a class, or inputs, say nothing.
FEWEST = 8
#: R² of an output of which the reference knows anything.
EXPLAINED = 0.1
#: Probability to lose so many of a class where all are lost alike, over all classes.
CHANCE = 1e-4
#: Right answers of a class that are expected, at least, where there are any.
_ANY = 0.5
#: Outputs, or decisions between two, that are looked at one by one; more are pixels.
ONE_BY_ONE = 64


@dataclass
class Parts:
    """The right answers of each class, or what is explained of each output.

    Attributes:
        right: by class, [C]; of decisions between two by answer, [2], and by output and answer,
            [P·2].
        inputs: of a regression.
        alike: whether all batches have outputs that can be looked at, and as many.
        sums: squared errors, labels and their squares by output, [3, D]; None without.
    """

    right: dict[str, Tensor] = field(default_factory=dict)
    inputs: int = 0
    alike: bool = True
    sums: Tensor | None = None

    def add_answers(self, task: Task, labels: Tensor, right: Tensor, valid: Tensor, c: int) -> None:
        """Add decisions among `c` classes.

        Args:
            task: what they are decisions of.
            labels: the right classes, [N, P].
            right: whether each is answered so, or the probability of it, [N, P].
            valid: decisions that count, [N, P].
        """
        between_two, positions = task.kind == "multilabel", labels.shape[1]
        self._count("answer" if between_two else "class", labels[valid], right[valid], c)
        if between_two and 1 < positions <= ONE_BY_ONE:
            places = labels + 2 * torch.arange(positions)
            self._count("output", places[valid], right[valid], 2 * positions)

    def _count(self, kind: str, groups: Tensor, right: Tensor, size: int) -> None:
        found = torch.bincount(groups, right.double(), minlength=size)
        self.right[kind] = summed(self.right.get(kind), found)

    def add_values(self, values: Tensor, labels: Tensor) -> None:
        """Add values and labels, [N, D] each."""
        outputs = values.shape[1]
        other = self.sums is not None and self.sums.shape[1] != outputs
        if other or not 1 < outputs <= ONE_BY_ONE:
            self.alike = False
        if not self.alike:
            return
        values, labels = values.double(), labels.double()
        errors = (values - labels).square().masked_fill(values == labels, 0.0)
        found = torch.stack([errors.sum(0), labels.sum(0), labels.square().sum(0)])
        self.inputs += len(values)
        self.sums = found if self.sums is None else self.sums + found

    @property
    def explained(self) -> Tensor:
        """R² of each output, [D]; minus infinity where its labels do not vary."""
        if self.sums is None:
            return torch.empty(0)
        errors, total, squares = self.sums
        spread = squares - total.square() / self.inputs
        varies = spread > NO_SPREAD * squares
        return torch.where(varies, 1 - errors / spread, -torch.inf)

    def lost(self, others: Parts) -> list[str]:
        """What of these parts is lost in others, each in words."""
        found = []
        for kind, had in self.right.items():
            now = others.right.get(kind)
            if now is not None:
                found += [_told(kind, i, had[i], now[i]) for i in lost_classes(had, now)]
        if self.alike and self.inputs >= FEWEST and len(self.explained) == len(others.explained):
            had, now = self.explained, others.explained
            lost = (had >= EXPLAINED) & ~(now > LEFT * had)
            for i in lost.nonzero()[:, 0].tolist():
                found.append(f"output {i}: R² {float(now[i]):.3g}, reference {float(had[i]):.3g}")
        return found

    def one_left(self, others: Parts) -> bool:
        """Whether others answer one class alone, of several of these."""
        for kind in ("class", "answer"):
            had, now = self.right.get(kind), others.right.get(kind)
            if had is not None and now is not None:
                several = had >= FEWEST
                return int(several.sum()) > 1 and int((now[several] >= _ANY).sum()) <= 1
        return False


def lost_classes(had: Tensor, now: Tensor) -> list[int]:
    """The classes of which hardly half of the right answers are left, beyond chance.

    Where decisions are lost all over, some class loses half of its few: the budget is for that.

    Args:
        had, now: right answers by class, [C], of the reference and of another run.
    """
    lost = (had - now).clamp(min=0)
    few = (had >= FEWEST) & (now <= LEFT * had)
    if not few.any():
        return []
    rate = float(lost.sum() / had.sum())
    places = few.nonzero()[:, 0].numpy()
    least = np.ceil(lost[few].numpy() - 1e-6)
    chance = stats.binom.sf(least - 1, np.floor(had[few].numpy()), rate) * int((had > 0).sum())
    return [int(i) for i in places[chance < CHANCE]]


def _told(kind: str, place: int, had: Tensor, now: Tensor) -> str:
    kept = f"{float(now):.4g} right answers of {float(had):.4g} are left"
    if kind == "class":
        return f"class {place}: {kept}"
    of = f" of output {place // 2}" if kind == "output" else ""
    return f"{'yes' if place % 2 else 'no'}{of}: {kept}"


def told(parts: Sequence[str], most: int = 3) -> str:
    """Lost parts in one line."""
    more = f"; {len(parts) - most} more" if len(parts) > most else ""
    return "; ".join(parts[:most]) + more
