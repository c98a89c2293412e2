"""What may be wrong with data that a float32 model does not take, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from pytest_fp16.engine.containers import all_tensors, leaves
from pytest_fp16.engine.emulation.wording import first_line, mixes_dtypes
from pytest_fp16.engine.source import raised_at
from pytest_fp16.errors import DataError, FP16Error, ModelError
from pytest_fp16.task import Task


def raised(error: Exception) -> str:
    """Kind, first line and place of what the user's own code raised."""
    at = raised_at(error)
    return f"{type(error).__name__}: {first_line(error)}" + (f" (at {at})" if at else "")


def of_warning(error: Exception) -> str:
    """That an error is a warning really, which nobody sees who reads of a model that raises."""
    if not isinstance(error, Warning):
        return ""
    return (
        "it is a warning, made an error by a filter of pytest's (filterwarnings) or of Python's "
        "(-W error): mend what warns, or let the filter ignore it"
    )


def of_call(error: Exception) -> str:
    """What an error of a training step's own calls comes of, where that can be told."""
    said = str(error)
    if isinstance(error, TypeError) and said.endswith("object is not callable"):
        return "training_step= is called with (model, batch), forward= with (model, inputs)"
    if "not compiled with CUDA" in said or "No CUDA GPUs are available" in said:
        return (
            "model and batch lie where they are to be (--fp16-device): make what goes with them by "
            "device=x.device, and leave .cuda() out"
        )
    return ""


def of_batch(error: Exception, inputs: Any, labelled: bool | None, taken: Any) -> str:
    """What may be wrong with a batch that the model raises on.

    Args:
        error: what it raised.
        inputs: what it was given.
        labelled: as the subject says.
        taken: the whole batch, where labels were taken out of it; else None.
    """
    if said := of_warning(error):
        return said
    if any(t.dtype is torch.float64 for t in all_tensors(inputs)) and mixes_dtypes(str(error)):
        return "the batch holds float64: make it float32 with .float()"
    if any(isinstance(leaf, np.ndarray) for leaf in leaves(inputs)):
        return "the batch holds NumPy arrays: make them tensors with torch.from_numpy()"
    if isinstance(taken, Mapping):
        gone = ", ".join(repr(key) for key in taken if key not in inputs)
        return (
            f"the labels were taken out of the batch ({gone}): where that is an input, set "
            "labelled=False, or yield (inputs, labels); what the model reads of labels must be in "
            "it under another name too (an encoder-decoder wants decoder_input_ids)"
        )
    if isinstance(inputs, Mapping):
        return f"a dict's entries become keyword arguments: {', '.join(map(str, inputs))}"
    if labelled is None and isinstance(taken, (list, tuple)) and _misses_argument(error):
        return (
            "the second part of the batch was taken for labels; where it is an input, set "
            "labelled=False, or yield ((a, b), labels)"
        )
    if labelled is None and isinstance(inputs, (list, tuple)) and len(inputs) > 2:
        return (
            f"a batch of {len(inputs)} was taken for {len(inputs)} inputs; where the last are the "
            "labels, yield a pair: ((a, b), labels)"
        )
    if isinstance(inputs, (list, tuple)) and len(inputs) == 2:
        if labelled is False:
            return "labelled=False takes both parts of a pair for inputs: yield the inputs alone"
        if not isinstance(inputs[1], Tensor):
            return (
                f"the second part of the batch ({type(inputs[1]).__name__}) was taken for an "
                "input: labels are a tensor, an array or a list of numbers, one for each input; "
                "others need a metric= that reads them"
            )
    return "check the batch and forward="


def _misses_argument(error: Exception) -> bool:
    return isinstance(error, TypeError) and "required positional argument" in str(error)


def of_data(data: Any, read: bool) -> str | None:
    """What may be wrong with data as a whole.

    Args:
        data: a subject's.
        read: a batch of it could be read.
    """
    if isinstance(data, (list, tuple)) and len(data) == 2 and all(map(_is_array, data)):
        first, second = data
        if len(first) == len(second) and first.shape[1:] != second.shape[1:]:
            return (
                "if the data is one batch (inputs, labels), put it into a list: [(inputs, labels)]"
            )
    if read:
        return None
    if _is_array(data):
        return "the data is one tensor, whose rows are taken for batches: put it into a list"
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        return f"a dataset ({type(data).__name__}) yields single inputs: put it into a DataLoader"
    return None


def of_task(asked: str, task: Task, labels: Any, output: Tensor) -> list[str]:
    """A remark on how outputs or labels were read, where they may have been meant otherwise.

    Args:
        asked: the task as the user named it.
        task: the task as it was told.
        labels: of the first batch, or None.
        output: of the first batch.
    """
    if asked != "auto":
        return []
    return of_outputs(task, output) if labels is None else of_labels(task, labels)


def of_labels(task: Task, labels: Any) -> list[str]:
    """A remark on labels that were taken for values, and are one-hot classes by the look of them.

    Args:
        task: the task as it was told.
        labels: of the first batch.
    """
    if task.kind not in ("multilabel", "regression"):
        return []
    values = torch.as_tensor(labels)
    if values.dim() != 2 or values.shape[1] < 2 or not len(values):
        return []
    if bool((values < 0).any()) or not bool(((values.double().sum(1) - 1).abs() < 1e-5).all()):
        return []
    return [
        f"labels have a number for each of {values.shape[1]} outputs, which sum to one for every "
        f"input, and were taken for {task.kind}; if they are classes, set task='classification'"
    ]


def of_outputs(task: Task, output: Tensor) -> list[str]:
    """A remark on outputs that were taken for classes of parts of an input, with nothing to tell.

    Args:
        task: the task as it was told.
        output: of the first batch.
    """
    if task.kind != "classification" or not task.many:
        return []
    classes = output.shape[task.class_dim]
    return [
        f"outputs of shape {tuple(output.shape)} were taken for {classes} classes along dimension "
        f"{task.class_dim % output.dim()}, as there are no labels; if they are values (an image, "
        "a forecast), set task='regression'"
    ]


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray)) and bool(value.ndim)


@contextmanager
def on_data(data: Any, read: bool = False) -> Iterator[None]:
    """Let what is refused inside also say what may be wrong with `data` as a whole."""
    try:
        yield
    except (DataError, ModelError) as error:
        said = of_data(data, read)
        if said is None:
            raise
        raise type(error)(f"{error}; {said}") from error.__cause__


@contextmanager
def on_outputs(judged: str) -> Iterator[None]:
    """Let what is refused inside also say which of several outputs was looked at, if there are."""
    try:
        yield
    except (DataError, ModelError) as error:
        if not judged:
            raise
        said = f"{error}; the model returns several outputs, of which {judged} is judged: let "
        raise type(error)(f"{said}forward= return another") from error.__cause__


def explained(batches: Iterator[Any], data: Any) -> Iterator[Any]:
    """`batches` of `data`, with `on_data` around the drawing of each."""
    read = False
    while True:
        with on_data(data, read):
            try:
                batch = next(batches)
            except StopIteration:
                return
        read = True
        yield batch


def guarded(attempt: Any, doing: str) -> Any:
    """What `attempt` returns; what the user's code raises in it becomes a sentence.

    Raises:
        ModelError: it raised.
    """
    try:
        return attempt()
    except FP16Error:
        raise
    except Exception as error:
        hint = of_warning(error) or of_call(error)
        said = f"{doing} raised {raised(error)}" + (f"; {hint}" if hint else "")
        raise ModelError(said) from error
