"""Evaluation and Training: what a user hands in. Imports no torch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from numbers import Integral
from typing import Any

from pytest_fp16.errors import SettingError
from pytest_fp16.settings import Settings

__tracebackhide__ = True  # misuse is shown at the user's own line

_SETTINGS = frozenset(field.name for field in fields(Settings)) | {"precision"}
TASKS = ("auto", "classification", "multilabel", "regression", "embedding")


def _spelt(kind: type[Any]) -> type[Any]:
    """`kind`, whose constructor says what was meant by a keyword that is no field of it."""
    make = kind.__init__
    known = [field.name for field in fields(kind)]

    @functools.wraps(make)
    def checked(self: Any, *args: Any, **keywords: Any) -> None:
        for name in keywords:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                meant = f"did you mean {near[0]}=? " if near else ""
                if name in _SETTINGS:
                    meant = f"it is a setting: hand {name}= to check or to the decorator; "
                raise SettingError(
                    f"{kind.__name__} has no {name}=; {meant}it takes {', '.join(known)}"
                )
        make(self, *args, **keywords)

    kind.__init__ = checked
    return kind


@_spelt
@dataclass(frozen=True)
class Evaluation:
    """A trained model and the data to evaluate it on.

    Attributes:
        model: a ``torch.nn.Module`` (copied, never changed) or a function without arguments that
            makes one.
        data: anything that yields batches more than once: a DataLoader, a list. A batch is
            ``(inputs, labels)``, or ``inputs`` alone when ``labelled`` is False; inputs are a
            tensor, or a tuple, list or dict of them (a tuple or list becomes positional
            arguments, a dict keyword arguments). A dict that holds a key ``"labels"``,
            ``"label"``, ``"targets"`` or ``"target"`` is a labelled batch.
        labelled: True, False, or None to tell from the first batch.
        task: one of ``"auto"``, ``"classification"`` (also per token and per pixel),
            ``"multilabel"``, ``"regression"``, ``"embedding"``.
        metric: None for the task's own (accuracy, R², …), or a function of (outputs, labels) that
            returns one score per input, shape [N], higher is better; the metric is their mean.
            Outputs are in the memory of the CPU, wherever the model runs; labels are whatever the
            batch holds (transcripts, lists of boxes).
        forward: None to call ``model(*inputs)`` or ``model(**inputs)``; or a function of
            (model, inputs) that returns the outputs.
        ignore_index: a label that is not a decision (padding).
        name: how the report calls it.
        keep_inputs: places in a tuple, or keys, of the inputs that a "true" precision hands on as
            they are, such as time steps or coordinates in float32; others are cast with the model.
    """

    model: Any
    data: Iterable[Any]
    labelled: bool | None = None
    task: str = "auto"
    metric: Callable[[Any, Any], Any] | None = None
    forward: Callable[[Any, Any], Any] | None = None
    ignore_index: int = -100
    name: str = "model"
    keep_inputs: Sequence[int | str] = ()

    def __post_init__(self) -> None:
        _checked(self)

    @property
    def holds_labels(self) -> bool | None:
        """`labelled`; where a metric of the user's own reads them, a batch's second part is."""
        return True if self.labelled is None and self.metric is not None else self.labelled


@_spelt
@dataclass(frozen=True)
class Training:
    """A model to be trained, and everything its training needs.

    Attributes:
        model: a function that makes a fresh module, or a module: then every seed starts from
            those weights and seeds vary the data order.
        optimizer: a function of the parameters that returns a ``torch.optim.Optimizer``; what it is
            given is a list of them that also answers what the model does (``named_parameters()``).
            None for a Lightning module, which has ``configure_optimizers``.
        loss: a function of (outputs, targets) that returns a scalar tensor; None where
            `training_step`, or a Lightning module's own, returns it.
        train_data: yields batches ``(inputs, targets)`` more than once. A seed draws the order
            from torch's generators; a list is shuffled batch by batch.
        eval_data: yields batches ``(inputs, targets)`` more than once; the metric is taken on it.
        epochs: passes over `train_data`.
        scheduler: None, or a function of the optimizer that returns a learning-rate scheduler,
            stepped once per epoch (``scheduler_step="epoch"``) or per step (``"step"``);
            ReduceLROnPlateau is stepped with the epoch's mean training loss, per epoch only.
        clip_grad_norm: None, or the largest norm of the gradient.
        accumulate: batches whose gradients are averaged before one optimizer step.
        training_step: None, or a function of (model, batch) that returns the loss, or None to leave
            the batch out. In a "true" precision the batch's floating tensors are 16-bit, targets
            included.
        task, metric, forward, ignore_index: as in `Evaluation`.
        keep_inputs: the same; with a `training_step`, places or keys of the batch itself.
        name: how the report calls it.
    """

    model: Any
    optimizer: Callable[[Any], Any] | None
    loss: Callable[[Any, Any], Any] | None
    train_data: Iterable[Any]
    eval_data: Iterable[Any]
    epochs: int = 1
    scheduler: Callable[[Any], Any] | None = None
    scheduler_step: str = "epoch"
    clip_grad_norm: float | None = None
    accumulate: int = 1
    training_step: Callable[[Any, Any], Any] | None = None
    task: str = "auto"
    metric: Callable[[Any, Any], Any] | None = None
    forward: Callable[[Any, Any], Any] | None = None
    ignore_index: int = -100
    name: str = "model"
    keep_inputs: Sequence[int | str] = ()

    def __post_init__(self) -> None:
        _checked(self)
        _functions(self, "optimizer", "loss", "scheduler", "training_step")
        if self.scheduler_step not in ("epoch", "step"):
            raise SettingError(
                f"scheduler_step must be epoch or step (got {self.scheduler_step!r})"
            )
        for name in ("epochs", "accumulate"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SettingError(f"{name} must be a whole number of at least 1 (got {value!r})")
        if self.clip_grad_norm is not None and not self.clip_grad_norm > 0:
            raise SettingError(
                f"clip_grad_norm must be a positive number or None (got {self.clip_grad_norm!r})"
            )


def _checked(subject: Evaluation | Training) -> None:
    """What both kinds of subject refuse."""
    if subject.task not in TASKS:
        raise SettingError(f"task must be one of {', '.join(TASKS)} (got {subject.task!r})")
    _functions(subject, "metric", "forward")
    labelled = getattr(subject, "labelled", None)
    if labelled not in (True, False, None):
        raise SettingError(f"labelled must be True, False or None (got {labelled!r})")
    if not isinstance(subject.name, str):
        raise SettingError(f"name must be a string (got {subject.name!r})")
    if not isinstance(subject.ignore_index, Integral):
        raise SettingError(f"ignore_index must be a whole number (got {subject.ignore_index!r})")
    keep = subject.keep_inputs
    if not isinstance(keep, (list, tuple)) or not all(type(k) in (int, str) for k in keep):
        raise SettingError(
            f'keep_inputs must be a list of places or keys, such as [1] or ["t"] (got {keep!r})'
        )


def _functions(subject: Evaluation | Training, *names: str) -> None:
    for name in names:
        value = getattr(subject, name)
        if value is not None and not callable(value):
            kind = type(value).__name__
            made_of = {"optimizer": "parameters", "scheduler": "optimizer"}.get(name)
            anew = f"; each run makes its own, lambda {made_of}: {kind}({made_of}, …)"
            raise SettingError(
                f"{name} must be a function or None (got {kind}){anew if made_of else ''}"
            )
        if name != "optimizer" and isinstance(value, type) and hasattr(value, "forward"):
            made = value.__name__
            raise SettingError(f"{name} is the class {made}; pass an instance of it: {made}()")


def of_trainer(value: object) -> str:
    """What to hand in instead of an object that trains a model (Lightning's, Transformers')."""
    fits = any(callable(getattr(value, name, None)) for name in ("fit", "train"))
    if callable(value) or not fits:
        return ""
    return (
        "; a trainer is not driven: hand in the module that it trains, and of a training its step, "
        "data and optimizer (docs/how-to/lightning.md)"
    )


def require_subject(subject: object, others: tuple[object, ...] = ()) -> None:
    """Refuse what is no subject, and its parts handed in one by one.

    Raises:
        SettingError: says how to wrap them.
    """
    if isinstance(subject, (Evaluation, Training)) and not others:
        return
    if isinstance(subject, (Evaluation, Training)):
        raise SettingError(
            "check takes one Evaluation or Training; the rest are keywords: precision=, budget=, …"
        )
    raise SettingError(
        f"check takes an Evaluation or a Training (got {type(subject).__name__}); "
        "wrap the model and its data: Evaluation(model=model, data=batches)" + of_trainer(subject)
    )
