"""A metric that is no mean over inputs: F1, a mean average precision, an area under a curve.

It needs every output side by side, so they are kept, where our own metrics and scores per input are
reduced at once.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.errors import DataError, FP16Error, SettingError
from pytest_fp16.metric.scores import name_of, refusal, refused
from pytest_fp16.theory.budget import FEWEST, accuracy_error, clamp, jackknife

#: Groups that are left out in turn for a standard error, and inputs whose worth is looked at.
_GROUPS = 10
_LOOKED_AT = 32
#: What it may raise on the first batch alone: inputs of a single class have no AUC.
_OF_TOO_FEW = (ValueError, ZeroDivisionError)


@dataclass(frozen=True)
class DatasetMetric:
    """A metric that gives one number for all data at once, as F1 or an area under a curve does.

    Attributes:
        function: of (outputs, labels) of every input, float32 ``[N, ...]`` and the labels of all
            batches (joined where they are tensors or lists, else a list of each batch's); it
            returns one number, higher is better. It is called some fifty times.

    Raises:
        SettingError: not a function.
    """

    function: Callable[[Any, Any], Any]

    def __post_init__(self) -> None:
        if not callable(self.function):
            got = type(self.function).__name__
            raise SettingError(f"DatasetMetric takes a function of (outputs, labels) (got {got})")

    @property
    def __name__(self) -> str:
        return name_of(self.function)

    def __call__(self, outputs: Tensor, labels: Any) -> float:
        """The metric of these inputs.

        Raises:
            DataError: it returns no single number.
        """
        returned = self.function(outputs.clone(), labels)  # it may write in them
        try:
            return float(returned)
        except (TypeError, ValueError, RuntimeError):
            shape = f" of shape {tuple(returned.shape)}" if isinstance(returned, Tensor) else ""
            raise DataError(
                f"DatasetMetric's function returned {type(returned).__name__}{shape}; it must "
                "return one number for all inputs, higher is better"
            ) from None

    def first_look(self, outputs: Tensor, labels: Any) -> list[float]:
        """The metric of the first batch; nothing where its inputs may be too few.

        Raises:
            DataError: it raises what more inputs would not mend, or returns no number.
        """
        try:
            with _unheard():
                return [self(outputs, labels)]
        except FP16Error:
            raise
        except _OF_TOO_FEW:
            return []
        except Exception as error:
            raise refused(error, outputs, labels) from error


class Pooled:
    """A `DatasetMetric` of all that it was given, which it keeps: memory grows with the data.

    Attributes:
        count: inputs so far.
        grain: unknown: what a decision is worth differs from one to the next.
    """

    grain = 0.0

    def __init__(self, metric: DatasetMetric) -> None:
        self.metric = metric
        self.count = 0
        self._outputs: list[Tensor] = []
        self._labels: list[Any] = []
        self._reference = True

    def take(self, outputs: Tensor, labels: Any, n: int, reference: bool = True) -> None:
        """Keep the outputs and labels of a batch of n inputs; see `user_scores`.

        Raises:
            DataError: outputs that cannot stand in one tensor; of a reference's first batch also
                what `DatasetMetric.first_look` raises.
        """
        if not self._outputs and reference:
            self.metric.first_look(outputs, labels)
        if self._outputs and outputs.shape[1:] != self._outputs[0].shape[1:]:
            raise DataError(
                f"DatasetMetric reads all outputs in one tensor, and a batch has outputs of shape "
                f"{tuple(outputs.shape)}, the first {tuple(self._outputs[0].shape)}; let forward= "
                "return one shape, or return one score per input"
            )
        self._reference &= reference
        self._outputs.append(outputs)
        self._labels.append(labels)
        self.count += n
        for known in ("_came", "standard_error", "worth"):
            self.__dict__.pop(known, None)

    @property
    def value(self) -> float:
        """The metric so far; NaN before the first batch."""
        return self._came[0]

    @property
    def refused(self) -> str | None:
        """What it raised on outputs that float32 has not given; None if nothing."""
        return self._came[1]

    @cached_property
    def _came(self) -> tuple[float, str | None]:
        if not self.count:
            return math.nan, None
        outputs, labels = self._joined
        try:
            return _asked(self.metric, outputs, labels), None
        except DataError as error:
            if self._reference:
                raise
            return math.nan, refusal(error, outputs)

    @property
    def _joined(self) -> tuple[Tensor, Any]:
        """Outputs and labels of all batches."""
        labels = self._labels
        if all(isinstance(part, Tensor) and part.dim() for part in labels):
            return torch.cat(self._outputs), torch.cat(labels)
        if all(isinstance(part, (list, tuple)) for part in labels):
            return torch.cat(self._outputs), [item for part in labels for item in part]
        return torch.cat(self._outputs), labels

    @cached_property
    def standard_error(self) -> float:
        """A jackknife's over groups; infinite where labels do not belong to one input each."""
        outputs, labels = self._joined
        n = len(outputs)
        if len(labels) != n or n < 2 * _GROUPS:
            return math.inf
        group = torch.arange(n) % _GROUPS  # data may lie in the order of their classes
        try:
            with _unheard():
                return jackknife([self._of(outputs, labels, group != g) for g in range(_GROUPS)])
        except Exception:  # a group without a class: the metric is not defined
            return math.inf

    def _of(self, outputs: Tensor, labels: Any, kept: Tensor) -> float:
        if isinstance(labels, Tensor):
            return self.metric(outputs[kept], labels[kept])
        return self.metric(outputs[kept], [labels[i] for i in kept.nonzero()[:, 0].tolist()])

    @cached_property
    def worth(self) -> float:
        """What one input is worth: the most that is lost where one has another's outputs."""
        outputs, labels = self._joined
        most, changed = 0.0, outputs.clone()
        random = torch.Generator().manual_seed(0)
        mixed = torch.randperm(len(outputs), generator=random).tolist()
        for i, other in islice(pairwise(mixed), _LOOKED_AT):
            changed[i] = outputs[other]
            lost = self.value - _asked(self.metric, changed, labels)
            changed[i] = outputs[i]
            most = max(most, lost if math.isfinite(lost) else 0.0)
        return most

    @property
    def scale(self) -> float:
        """A user's metric has units of its own: its own size is the only scale known."""
        return abs(self.value) or 1.0

    def usual(self) -> float:
        """The default budget: one input and a half may be lost by any, as of an accuracy."""
        error, n = self.standard_error, self.count
        budget, worth = clamp(error, self.scale), self.worth
        least = worth * n * accuracy_error(n, n, n)
        return max(budget, min(FEWEST * worth, math.hypot(error, least)))


@contextmanager
def _unheard() -> Iterator[None]:
    """Without warnings: a part of the data may lack a class, which the user cannot mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _asked(metric: DatasetMetric, outputs: Tensor, labels: Any) -> float:
    """The metric of all inputs."""
    try:
        return metric(outputs, labels)
    except FP16Error:
        raise
    except Exception as error:
        raise refused(error, outputs, labels) from error
