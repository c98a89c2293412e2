"""What counts as a decision, a margin and a metric, per kind of output.

Every task brings outputs into one canonical shape: logits [N, P, C] for tasks that decide (P
decisions per input among C classes; multi-label is P decisions between two), or values [N, 1, D]
for regression.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.errors import DataError, ModelError
from pytest_fp16.theory.directions import directions
from pytest_fp16.theory.margin import margin, top_two


@dataclass(frozen=True)
class Task:
    """How to read a model's outputs and the labels that go with them.

    Attributes:
        kind: ``"classification"``, ``"multilabel"``, ``"regression"`` or ``"embedding"``.
        class_dim: dimension of the classes in the raw output.
        many: more than one decision per input.
        ignore_index: a label that is not a decision.
        one_hot: labels hold a number for every class, of which the largest is the label.
        threshold: of multi-label outputs, above which a label is given: 0 for logits, 0.5 for
            probabilities.
    """

    kind: str
    class_dim: int = -1
    many: bool = False
    ignore_index: int = -100
    one_hot: bool = False
    threshold: float = 0.0

    @property
    def decides(self) -> bool:
        """Whether outputs are decisions (with margins and flips) or plain values."""
        return self.kind != "regression"

    @property
    def batchwise(self) -> bool:
        """Whether an input's decision depends on the other inputs of its batch."""
        return self.kind == "embedding"

    @property
    def metric_name(self) -> str:
        """The metric this task is judged by."""
        names = {"regression": "R²", "embedding": "nearest-neighbour agreement"}
        return names.get(self.kind, "accuracy") + self.cut

    @property
    def cut(self) -> str:
        """Where decisions are made, for the metric's name, where that is not as usual."""
        return f" at {self.threshold:g}" if self.threshold else ""

    def canonical(self, output: Tensor) -> Tensor:
        """The raw output [N, …] as logits [N, P, C] or values [N, 1, D]."""
        n = output.shape[0]
        if self.kind == "regression":
            return output.reshape(n, 1, -1)
        if self.kind == "embedding":
            if n == 1:  # the last of a data set: nobody else is near, so nothing is decided
                return output.new_tensor([[[0.0, -torch.inf]]])
            return _likeness(output.reshape(n, -1)).unsqueeze(1)
        if self.kind == "multilabel":
            flat = output.reshape(n, -1)
            return torch.stack([torch.full_like(flat, self.threshold), flat], dim=-1)
        moved = output.movedim(self.class_dim, -1)
        return moved.reshape(n, -1, moved.shape[-1])

    def raw(self, logits: Tensor, shape: torch.Size) -> Tensor | None:
        """Canonical logits or values as a raw output of that shape; None where that is lost."""
        if self.kind == "embedding":
            return None
        if self.kind == "multilabel":
            return logits[..., 1].reshape(shape)
        if self.kind == "regression":
            return logits.reshape(shape)
        moved = torch.empty(shape, device="meta").movedim(self.class_dim, -1).shape
        return logits.reshape(moved).movedim(-1, self.class_dim)

    def canonical_labels(self, labels: Any, n: int) -> Tensor | None:
        """Labels as [N, P] classes, or [N, D] values for regression."""
        if labels is None:
            return None
        values: Tensor = torch.as_tensor(labels)
        if self.kind == "regression":
            return values.reshape(n, -1).float()
        if self.one_hot and values.dim() > 1:
            values = values.argmax(self.class_dim)
        return values.reshape(n, -1).long()

    def margins(self, logits: Tensor, reference: Tensor) -> Tensor:
        """Margin of the reference's top class over its runner-up, [N, P].

        For regression, the values in a ±1/√D direction of the input's own, [N, 1].
        """
        if not self.decides:
            return (logits * directions(reference).to(logits.device)).sum(-1)
        top, other = top_two(reference)
        return margin(logits, top, other)

    def magnitude(self, logits: Tensor) -> Tensor:
        """How large the values are whose own float32 noise each decision carries, [N, P]."""
        largest = logits.abs().nan_to_num(0, 0, 0).amax(-1)
        # Of two rows of length one, their distance: it is the root of what the cosine lacks.
        return (2 * largest).sqrt() if self.batchwise else largest

    def seeds(self, reference: Tensor) -> Tensor:
        """The derivative of `margins` with respect to the canonical logits, [N, P, C]."""
        if not self.decides:
            return directions(reference)
        top, other = top_two(reference)
        seeds = torch.zeros_like(reference)
        seeds.scatter_(-1, top.unsqueeze(-1), 1.0)
        return seeds.scatter_(-1, other.unsqueeze(-1), -1.0)

    def valid(self, labels: Tensor | None, like: Tensor) -> Tensor:
        """Which decisions count, bool of the shape of `like` [N, P]."""
        if labels is None or not self.decides:
            return torch.ones_like(like, dtype=torch.bool)
        return labels != self.ignore_index


def _likeness(output: Tensor) -> Tensor:
    """Cosines between the rows, less one, [N, N]; −inf of a row and itself.

    Cosines of embeddings that share a large part are one but for their last digits, so they are
    taken as −|u − v|²/2 of unit vectors less their mean, which keeps what tells them apart.
    """
    unit = torch.nn.functional.normalize(output, dim=-1)
    unit = unit - unit.nanmean(0)  # one row that is lost must not take the others with it
    square = unit.square().sum(-1)
    own = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    return (unit @ unit.T - (square[:, None] + square) / 2).masked_fill(own, -torch.inf)


def require_like(output: Tensor, first: torch.Size, number: int) -> None:
    """Refuse outputs of a batch that have not the dimensions of the first batch's.

    Raises:
        ModelError: a dimension is gone, or new.
    """
    if output.dim() != len(first):
        raise ModelError(
            f"the output of batch {number} has shape {tuple(output.shape)}, that of the first "
            f"{tuple(first)}; squeeze() takes a batch of one away, squeeze(-1) does not"
        )


def require_shape(canonical: Tensor, shape: torch.Size, labels: Any, output: Tensor) -> None:
    """Refuse labels that would be broadcast.

    Args:
        canonical: the labels as `Task.canonical_labels` gives them.
        shape: what it must be: [N, P], or [N, D] for regression.
        labels: as the user gave them.
        output: the raw output.

    Raises:
        DataError: it is another.
    """
    if canonical.shape != shape:
        given = torch.as_tensor(labels)
        floating = (
            "; floating labels are values, and classes whole numbers: labels.long(); a second "
            "input is no label: set labelled=False"
        )
        raise DataError(
            f"labels of shape {tuple(given.shape)} do not fit outputs of shape "
            f"{tuple(output.shape)}{floating if given.is_floating_point() else ''}"
        )


def check_labels(task: Task, labels: Tensor, classes: int) -> None:
    """Refuse labels that no class has.

    Raises:
        DataError: a floating label of a class, one out of range, or NaN.
    """
    if labels.is_floating_point() and (missing := int(labels.isnan().sum())):
        raise DataError(
            f"{missing} labels are NaN; leave their inputs out, or pass a metric= that skips them"
        )
    if task.kind == "regression":
        return
    if labels.is_floating_point() and not bool((labels == labels.round()).all()):
        raise DataError(
            "labels must be whole numbers of classes; for values, set task='regression'"
        )
    counted = labels[labels != task.ignore_index]
    if counted.numel() and (int(counted.min()) < 0 or int(counted.max()) >= classes):
        raise DataError(
            f"labels run from {int(counted.min())} to {int(counted.max())}, but the model has "
            f"{classes} classes (0 to {classes - 1}; ignore_index is {task.ignore_index})"
        )
