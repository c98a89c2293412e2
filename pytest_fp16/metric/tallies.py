"""Running totals of a metric, fed batch by batch: accuracy or R²."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.metric.scores import name_of
from pytest_fp16.task import Task
from pytest_fp16.theory.budget import accuracy_error, mean_error

#: Labels vary by less, relative to their mean square, where a sum in float64 only seems to.
NO_SPREAD = 1e-13


class Accuracy:
    """The share of decisions that are right (or agree with the reference, without labels)."""

    scale = 1.0

    def __init__(self) -> None:
        self.hits = 0.0
        self.count = 0
        self.inputs = 0
        self.shares = 0.0
        self.squares = 0.0
        self.labels: set[int] = set()
        self.answers: set[int] = set()

    def hear(self, labels: Tensor, answers: Tensor) -> None:
        """Note which labels there are, and which are given, of decisions between two: [n] each."""
        if len(labels):
            self.labels |= {int(x) for x in labels.aminmax()}
            self.answers |= {int(x) for x in answers.aminmax()}

    @property
    def says_one(self) -> bool:
        """Whether it has heard of one answer only, and of several labels."""
        return len(self.answers) == 1 and len(self.labels) > 1

    def add(self, right: Tensor, valid: Tensor) -> None:
        """Add decisions: bool, or the probability of being right; both of shape [N, P]."""
        if not len(right):
            return
        right = right.double() * valid
        self.hits += float(right.sum())
        self.count += int(valid.sum())
        counts = valid.sum(1)
        shares = right.sum(1)[counts > 0] / counts[counts > 0]
        self.inputs += len(shares)
        self.shares += float(shares.sum())
        self.squares += float(shares.square().sum())

    @property
    def value(self) -> float:
        """The share; NaN before the first decision."""
        return self.hits / self.count if self.count else math.nan

    @property
    def grain(self) -> float:
        """What one decision is worth; zero before the first."""
        return 1 / self.count if self.count else 0.0

    @property
    def standard_error(self) -> float:
        """Of the share, over inputs."""
        return accuracy_error(self.shares, self.squares, self.inputs)


class RSquared:
    """R² = 1 − SSE / SST, pooled over the dimensions of the output, SST about each one's mean.

    Outputs of one batch may be longer than those of another: what they share is told from the start
    on. Where nothing varies (a single input, a constant), SST is about zero.
    """

    scale, grain = 1.0, 0.0

    def __init__(self) -> None:
        self.count = 0
        self.squared_error = 0.0
        self.fourth = 0.0
        self.sum: Tensor | None = None
        self.seen: Tensor | None = None
        self.square = 0.0

    def add(self, values: Tensor, labels: Tensor, variance: Tensor | None = None) -> None:
        """Add values and labels, [N, D] each; `variance` [N] is added to each squared error."""
        values, labels = values.double(), labels.double()
        errors = (values - labels).square().masked_fill(values == labels, 0.0).sum(1)
        if variance is not None:
            errors = errors + variance.double()
        self.count += len(values)
        self.squared_error += float(errors.sum())
        self.fourth += float(errors.square().sum())
        self.sum = summed(self.sum, labels.sum(0))
        self.seen = summed(self.seen, torch.full_like(labels[:1], len(labels)).flatten())
        self.square += float(labels.square().sum())

    @property
    def _spread(self) -> float:
        """The labels' squared distance from their mean; from zero, where they do not vary."""
        if self.sum is None or self.seen is None:
            return 0.0  # a model that never ran
        about_mean = self.square - float((self.sum.square() / self.seen).sum())
        return about_mean if about_mean > NO_SPREAD * self.square else self.square

    @property
    def value(self) -> float:
        """R² so far; NaN before the first batch."""
        if self._spread > 0:
            return 1 - self.squared_error / self._spread
        if self.sum is None:
            return math.nan
        return 1.0 if self.squared_error == 0 else -math.inf  # labels that are all zero

    @property
    def below_a_constant(self) -> float:
        """By how much, in standard errors, R² is worse than the mean of the labels is elsewhere.

        That mean is of these labels, which it fits by one in n. Zero where labels do not vary.
        """
        about_mean = self._spread if self._spread < self.square else 0.0
        if self.count < 2 or not about_mean:
            return 0.0
        elsewhere = about_mean * self.count / (self.count - 1)
        excess = (self.squared_error - elsewhere) / about_mean
        return excess / max(self.standard_error, NO_SPREAD)

    @property
    def standard_error(self) -> float:
        """Of the mean squared error, in units of the labels' variance."""
        per_input = mean_error(self.squared_error, self.fourth, self.count)
        return per_input * self.count / self._spread if self._spread > 0 else math.inf


def summed(total: Tensor | None, more: Tensor) -> Tensor:
    """Counts or sums by place, [C], and more of them: C may vary from batch to batch."""
    if total is None:
        return more
    size = max(len(total), len(more))
    both = (torch.nn.functional.pad(part, (0, size - len(part))) for part in (total, more))
    return sum(both, torch.zeros(size, dtype=more.dtype))


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether each decision [N, P] is right, as ``argmax`` decides: of a tie, the first class."""
    return (logits.nan_to_num(nan=-torch.inf).argmax(-1) == labels) & ~logits.isnan().any(-1)


def metric_name(task: Task, custom: Any, labelled: bool, by_margin: bool = False) -> str:
    """How the report calls the metric."""
    if custom is not None:
        return name_of(custom)
    if task.kind == "regression":
        return "R²" if labelled else "R² to the reference"
    if task.kind == "embedding":
        return task.metric_name
    if labelled:
        return task.metric_name
    return ("agreement by margin" if by_margin else "agreement with the reference") + task.cut
