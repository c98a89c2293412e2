"""A metric of the user's own that gives one score per input; it is their mean."""

from __future__ import annotations

import math
from collections.abc import Sized
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.advice import of_warning, raised
from pytest_fp16.errors import DataError, FP16Error
from pytest_fp16.theory.budget import FEWEST, accuracy_error, clamp, mean_error

#: Scores of an input that is right or wrong; more values than so many are not counted.
_HITS = {0.0, 1.0}
_COUNTED = 1000


class Scores:
    """The mean of a user's scores, one per input.

    Args:
        metric: the user's, of (outputs, labels) of one batch.

    Attributes:
        values: those that came; None where they are many.
        refused: what the metric raised on outputs that float32 has not given; None if nothing.
    """

    refused: str | None = None

    def __init__(self, metric: Any = None) -> None:
        self.metric = metric
        self.total = 0.0
        self.squares = 0.0
        self.count = 0
        self.values: set[float] | None = set()

    def take(self, outputs: Tensor, labels: Any, n: int, reference: bool = True) -> None:
        """Add what the metric says of a batch of n inputs; see `user_scores`.

        Outputs that it refuses score nothing, where they are not the reference's.
        """
        try:
            self.add(user_scores(self.metric, outputs, labels, n))
        except DataError as error:
            if reference:
                raise
            self.refused = self.refused or refusal(error, outputs)
            self.add(torch.full((n,), math.nan, dtype=torch.float64))

    def add(self, scores: Tensor) -> None:
        """Add scores, [N]."""
        scores = scores.double()
        self.total += float(scores.sum())
        self.squares += float(scores.square().sum())
        self.count += scores.numel()
        self.hear(scores)

    def hear(self, scores: Tensor) -> None:
        """Note values that scores may have: where all are alike, others show their steps."""
        if self.values is not None:
            finite = scores[scores.isfinite()].double()
            self.values |= set(finite.unique().tolist())
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

    def usual(self) -> float:
        """The default budget.

        Scores of few values go in steps: what one input may lose without a word is one and a half,
        as of an accuracy.
        """
        if self.hits:
            return clamp(self.standard_error, self.scale, self.grain)
        error = mean_error(self.total, self.squares, self.count)
        budget = clamp(error, abs(self.value) or 1.0)
        known = sorted(self.values or ())
        if len(known) < 2 or 2 * len(known) > self.count:
            return budget
        step = min(b - a for a, b in pairwise(known))
        least = step * accuracy_error(self.count, self.count, self.count)
        return max(budget, min(FEWEST * step / self.count, math.hypot(error, least)))


def user_scores(metric: Any, outputs: Tensor, labels: Any, n: int) -> Tensor:
    """What a user's metric says of one batch, checked.

    Args:
        metric: the user's.
        outputs, labels: what it is given.
        n: how many inputs there are.

    Raises:
        DataError: it raises, or does not return one number per input.
    """
    try:
        returned = metric(outputs.clone(), labels)  # it may write in them, and flips are read later
    except FP16Error:
        raise
    except Exception as error:
        raise refused(error, outputs, labels) from error
    try:
        scores = torch.as_tensor(returned)
    except (TypeError, ValueError, RuntimeError):
        scores = None
    if scores is None or scores.numel() != n:
        got = type(returned).__name__ if scores is None else f"shape {tuple(scores.shape)}"
        raise DataError(
            f"metric returned {got} for {n} inputs; it must return one score per input, shape [N], "
            "higher is better; one number for all data (F1, an AUC) is wrapped: "
            "metric=pytest_fp16.DatasetMetric(function)"
        )
    return scores.reshape(n).to(torch.float64)


def refused(error: Exception, outputs: Tensor, labels: Any) -> DataError:
    """The error of a metric that raised: with what it was called."""
    warned = of_warning(error)
    return DataError(
        f"metric= raised {raised(error)}; it is called with (outputs, labels), here "
        f"{_described(outputs)} and {_described(labels)}" + (f"; {warned}" if warned else "")
    )


def refusal(error: DataError, outputs: Tensor) -> str | None:
    """What is to be said of such an error; nothing where outputs are lost, which says enough."""
    return str(error) if bool(outputs.isfinite().all()) else None


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    kind = type(value).__name__
    return f"{kind} of {len(value)}" if isinstance(value, Sized) else kind


def name_of(metric: Any) -> str:
    """How the report calls it."""
    return getattr(metric, "__name__", "metric")
