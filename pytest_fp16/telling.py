"""Which task a model has, told from its outputs and the labels of the first batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pytest_fp16.errors import DataError, ModelError
from pytest_fp16.subject import Evaluation, Training
from pytest_fp16.task import Task, check_labels, require_shape

#: Inputs among which one can be nearer than another.
_NEIGHBOURS = 3
#: A probability from which on a label is given.
HALF = 0.5
#: By how much a mean of probabilities may leave [0, 1] in float32, by rounding.
_SLACK = 16 * torch.finfo(torch.float32).eps


class NotProbabilitiesError(Exception):
    """Outputs of the first batch lay in [0, 1] by chance: those of another do not."""


def task_of(subject: Evaluation | Training, output: Tensor, labels: Any, n: int) -> Task:
    """The task of a subject, told from the reference's output and labels of the first batch.

    Labels that only the subject's own metric can read (transcripts, boxes) tell nothing of it, but
    for rows of numbers: several outputs side by side are no logits of one decision.

    Raises:
        DataError, ModelError: see `infer_task`.
    """
    if subject.metric is not None:
        try:
            return infer_task(subject.task, output, labels, n, subject.ignore_index)
        except (DataError, TypeError, ValueError, RuntimeError):  # torch's, of what is no tensor
            if subject.task == "auto" and _several_each(output, labels, n):
                return Task("regression")
            labels = None
    task = infer_task(subject.task, output, labels, n, subject.ignore_index)
    if subject.metric is None and labels is not None and task.kind == "regression":
        _require_values(subject)
    return task


def _several_each(output: Tensor, labels: Any, n: int) -> bool:
    """Whether several numbers are known of each row: parts of it stand for them, and no classes."""
    return output.dim() == 2 and isinstance(labels, Tensor) and labels.numel() > n


def _require_values(subject: Evaluation | Training) -> None:
    if subject.ignore_index != type(subject).ignore_index:
        raise DataError(
            f"ignore_index={subject.ignore_index} leaves out decisions, and these labels are "
            "values (a regression), not 0 and 1; a metric= of your own can leave out values"
        )


def infer_task(kind: str, output: Tensor, labels: Any, n: int, ignore_index: int) -> Task:
    """Tell the task from the reference's output and the labels of the first batch.

    Raises:
        DataError: labels of the wrong shape, type or range.
        ModelError: an output that cannot be read as decisions.
    """
    if output.dim() == 0 or output.shape[0] != n:
        shape = tuple(output.shape)
        what = "inputs" if labels is None else "labels"
        raise ModelError(
            f"the model returned no logits per input: its output has shape {shape} for {n} {what}; "
            "the first dimension must run over the inputs, and there is one label or row for each"
        )
    labels = None if labels is None else _as_tensor(labels)
    if kind == "auto":
        kind = _guess(output, labels, ignore_index)
    if kind == "embedding" and n < _NEIGHBOURS:
        raise DataError(
            f"an embedding is judged by which other input of its batch is nearest, and the first "
            f"batch holds {n}; make the batches larger, or set task='regression' to compare values"
        )
    if kind in ("regression", "embedding"):
        return Task(kind, many=kind == "embedding")
    if kind == "multilabel":
        if labels is not None and labels.numel() != output.numel():
            raise DataError(
                f"multilabel labels have shape {tuple(labels.shape)}, "
                f"the outputs {tuple(output.shape)}"
            )
        many, threshold = output[0].numel() > 1, HALF if are_probabilities(output) else 0.0
        return Task(kind, many=many, ignore_index=ignore_index, threshold=threshold)
    return _classification(output, labels, ignore_index)


def are_probabilities(output: Tensor) -> bool:
    """Whether outputs may be probabilities (a sigmoid at the end), and not logits.

    Those that are no numbers say nothing.
    """
    finite = output[output.isfinite()]
    return bool(((finite >= -_SLACK) & (finite <= 1 + _SLACK)).all())


def _as_tensor(labels: Any) -> Tensor:
    try:
        return torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(
            f"labels are of type {type(labels).__name__}: they are a tensor, an array or a list of "
            "numbers, one for each input; others need a metric= that reads them"
        ) from None


def _guess(output: Tensor, labels: Tensor | None, ignore_index: int) -> str:
    if labels is None:
        return "classification" if output.dim() > 1 and output.shape[-1] > 1 else "regression"
    single = output.dim() == 1 or (output.dim() == 2 and output.shape[1] == 1)
    same = labels.shape == output.shape or (single and labels.numel() == output.shape[0])
    counted = labels[labels != ignore_index]
    if (same or _one_each(output, labels)) and bool(((counted == 0) | (counted == 1)).all()):
        return "multilabel"
    if labels.is_floating_point() or same:
        return "regression"
    return "classification"


def _one_each(output: Tensor, labels: Tensor) -> bool:
    """Whether labels have the outputs' shape but for a dimension of one logit."""
    shape = output.shape
    if output.dim() < 2 or 1 not in (shape[1], shape[-1]):
        return False
    return labels.shape in (shape[:1] + shape[2:], shape[:-1]) and labels.numel() == output.numel()


def _classification(output: Tensor, labels: Tensor | None, ignore_index: int) -> Task:
    if output.dim() < 2:
        raise ModelError(
            f"the model returned no logits: shape {tuple(output.shape)} has no dimension of classes"
        )
    last, one_hot = -1, False
    if labels is None or (one_hot := labels.shape == output.shape):
        class_dim = 1 if output.dim() >= 4 else last
    elif labels.shape == output.shape[:-1]:
        class_dim = last
    elif labels.shape == output.shape[:1] + output.shape[2:]:
        class_dim = 1
    else:
        raise DataError(
            f"labels of shape {tuple(labels.shape)} do not fit logits of shape "
            f"{tuple(output.shape)}; they must have the logits' shape without the "
            f"dimension of classes"
        )
    classes = output.shape[class_dim]
    if classes < 2:
        raise ModelError(f"the model returned {classes} logit per decision; a class needs a rival")
    task = Task("classification", class_dim, output.dim() > 2, ignore_index, one_hot)
    if labels is not None and not one_hot:
        check_labels(task, labels, classes)
    return task


def read_labels(
    subject: Evaluation, task: Task, labels: Any, output: Tensor, logits: Tensor
) -> Tensor | None:
    """The labels as the task reads them; None where only a metric of the user's own can.

    Args:
        subject: with that metric, if there is one.
        task: as it was told.
        labels: of a batch.
        output, logits: the raw and the canonical outputs of the reference.

    Raises:
        DataError: they do not fit the outputs.
    """
    try:
        read = task.canonical_labels(labels, len(logits))
        assert read is not None, "unreachable: labelled"
        wanted = logits.shape[:2] if task.decides else logits.flatten(1).shape
        require_shape(read, wanted, labels, output)
        check_labels(task, read, logits.shape[-1])
    except (DataError, TypeError, ValueError, RuntimeError):
        if subject.metric is None:
            raise
        return None
    return read
