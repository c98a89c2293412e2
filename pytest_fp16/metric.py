"""Running totals of a metric, fed batch by batch: accuracy, R², or a user's own score."""

from __future__ import annotations

import math
from collections.abc import Sized
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.advice import of_warning, raised
from pytest_fp16.errors import DataError, FP16Error
from pytest_fp16.task import Task
from pytest_fp16.theory.budget import FEWEST, accuracy_error, clamp, mean_error

#: Labels vary by less, relative to their mean square, where a sum in float64 only seems to.
_NO_SPREAD = 1e-13
#: Scores of an input that is right or wrong; more values than so many are not counted.
_HITS = {0.0, 1.0}
_COUNTED = 1000


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

    Where nothing varies (a single input, a constant), SST is about zero.
    """

    scale, grain = 1.0, 0.0

    def __init__(self) -> None:
        self.count = 0
        self.squared_error = 0.0
        self.fourth = 0.0
        self.sum: Tensor | None = None
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
        self.sum = labels.sum(0) + (0 if self.sum is None else self.sum)
        self.square += float(labels.square().sum())

    @property
    def _spread(self) -> float:
        """The labels' squared distance from their mean; from zero, where they do not vary."""
        if self.sum is None:
            return 0.0  # a model that never ran
        about_mean = self.square - float(self.sum.square().sum()) / self.count
        return about_mean if about_mean > _NO_SPREAD * self.square else self.square

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
        return excess / max(self.standard_error, _NO_SPREAD)

    @property
    def standard_error(self) -> float:
        """Of the mean squared error, in units of the labels' variance."""
        per_input = mean_error(self.squared_error, self.fourth, self.count)
        return per_input * self.count / self._spread if self._spread > 0 else math.inf


class Scores:
    """The mean of a user's scores, one per input.

    Attributes:
        values: those that came; None where they are many.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self.squares = 0.0
        self.count = 0
        self.values: set[float] | None = set()

    def add(self, scores: Tensor) -> None:
        """Add scores, [N]."""
        scores = scores.double()
        self.total += float(scores.sum())
        self.squares += float(scores.square().sum())
        self.count += scores.numel()
        if self.values is not None:
            self.values |= set(scores[scores.isfinite()].unique().tolist())
            if len(self.values) > _COUNTED:
                self.values = None

    @property
    def value(self) -> float:
        """Their mean."""
        return self.total / self.count if self.count else math.nan

    @property
    def hits(self) -> bool:
        """Whether every input is right or wrong, and some is right: the mean is an accuracy."""
        return self.values is not None and 1.0 in self.values and self.values <= _HITS

    @property
    def grain(self) -> float:
        """What one input is worth, where that is known."""
        return 1 / self.count if self.count and self.hits else 0.0

    @property
    def standard_error(self) -> float:
        """Of their mean."""
        error = accuracy_error if self.hits else mean_error
        return error(self.total, self.squares, self.count)

    @property
    def scale(self) -> float:
        """A user's metric has units of its own: its own size is the only scale known."""
        return 1.0 if self.hits else abs(self.value) or 1.0

    def usual(self, others: Scores | None = None) -> float:
        """The default budget; `others` are the candidate's, which show in what steps scores go.

        Scores of few values go in steps: what one input may lose without a word is one and a half,
        as of an accuracy. Others may be as near to each other as they like.
        """
        if others is None:
            others = self
        if self.hits and others.values is not None and others.values <= _HITS:
            return clamp(self.standard_error, self.scale, self.grain)
        error = mean_error(self.total, self.squares, self.count)
        budget = clamp(error, abs(self.value) or 1.0)
        if self.values is None or others.values is None:
            return budget
        known = sorted(self.values | others.values)
        if len(known) < 2 or 2 * len(known) > self.count:
            return budget
        step = min(b - a for a, b in pairwise(known))
        least = step * accuracy_error(self.count, self.count, self.count)
        return max(budget, min(FEWEST * step / self.count, math.hypot(error, least)))


def user_scores(
    metric: Any, outputs: Tensor, labels: Any, n: int, reference: bool = True
) -> Tensor:
    """What a user's metric says of one batch, checked.

    Args:
        metric: the user's.
        outputs, labels: what it is given.
        n: how many inputs there are.
        reference: these outputs are float32's own. Of others some may be lost, and a metric that
            raises on those scores nothing.

    Raises:
        DataError: it raises, or does not return one number per input.
    """
    try:
        returned = metric(outputs.clone(), labels)  # it may write in them, and flips are read later
    except FP16Error:
        raise
    except Exception as error:
        if not reference and not bool(outputs.isfinite().all()):
            return torch.full((n,), math.nan, dtype=torch.float64)
        warned = of_warning(error)
        raise DataError(
            f"metric= raised {raised(error)}; it is called with (outputs, labels), here "
            f"{_described(outputs)} and {_described(labels)}" + (f"; {warned}" if warned else "")
        ) from error
    try:
        scores = torch.as_tensor(returned)
    except (TypeError, ValueError, RuntimeError):
        scores = None
    if scores is None or scores.numel() != n:
        got = type(returned).__name__ if scores is None else f"shape {tuple(scores.shape)}"
        raise DataError(
            f"metric returned {got} for {n} inputs; it must return one score per input, shape [N], "
            "higher is better"
        )
    return scores.reshape(n).to(torch.float64)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    kind = type(value).__name__
    return f"{kind} of {len(value)}" if isinstance(value, Sized) else kind


def gained(name: str, gain: float, budget: float) -> str:
    """Why a metric of the user's own that gained far more than its budget settles nothing."""
    return (
        f"{name} of the 16-bit model is higher by {gain:.3g} (budget {budget:.3g}), which rounding "
        "does not bring about: higher must be better; where lower is, let metric= return the "
        "negative"
    )


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether each decision [N, P] is right, as ``argmax`` decides: of a tie, the first class."""
    return (logits.nan_to_num(nan=-torch.inf).argmax(-1) == labels) & ~logits.isnan().any(-1)


def metric_name(task: Task, custom: Any, labelled: bool, by_margin: bool = False) -> str:
    """How the report calls the metric."""
    if custom is not None:
        return getattr(custom, "__name__", "metric")
    if task.kind == "regression":
        return "R²" if labelled else "R² to the reference"
    if task.kind == "embedding":
        return task.metric_name
    if labelled:
        return task.metric_name
    return ("agreement by margin" if by_margin else "agreement with the reference") + task.cut
