"""The metric of a trained model, and its predictions, reduced batch by batch."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pytest_fp16.engine.batching import count_inputs, split_batch, to_device
from pytest_fp16.engine.emulation.cast_cache import nothing_kept
from pytest_fp16.engine.emulation.wording import misses_a_gradient
from pytest_fp16.engine.fast_path import zero_padding
from pytest_fp16.engine.fast_path_refusal import with_refusal
from pytest_fp16.engine.models import call, taking_gradients
from pytest_fp16.engine.outputs import main_output, others
from pytest_fp16.engine.randomness import seed_everything
from pytest_fp16.engine.training.lightning import is_lightning
from pytest_fp16.engine.training.modes import modes_kept
from pytest_fp16.engine.training.order import step_seed
from pytest_fp16.engine.training.place import Place
from pytest_fp16.errors import DataError
from pytest_fp16.metric.own import UserTally, tally_of
from pytest_fp16.metric.tallies import Accuracy, RSquared, metric_name, right, summed
from pytest_fp16.precision import Precision
from pytest_fp16.subject import Training
from pytest_fp16.task import Task, check_labels
from pytest_fp16.telling import are_probabilities, task_of
from pytest_fp16.theory.budget import clamp

#: Numbers of a run's predictions that are kept for δ and Γ; a pair needs them side by side.
KEPT = 2**20
#: Classes that are told apart at most: a vocabulary is none.
CLASSES = 1000


@dataclass
class Score:
    """A metric on evaluation data.

    Attributes:
        name: of the metric.
        value: the metric, higher is better.
        resolution: its standard error on this data, clamped where the metric has a natural scale.
        inputs: how many inputs there were.
        finite: every output was a finite number.
        predictions: canonical logits of the first inputs, float32 [n, P, C] on the CPU.
        grain: the smallest step of the metric, 0 where there is none.
        majority: share of the commonest label; None where there are no classes.
        own: the metric is the user's own.
        remarks: what to warn of, of the first batch's outputs.
        right: right answers by class; empty where there are none, or too many to tell apart.
    """

    name: str
    value: float
    resolution: float
    inputs: int
    finite: bool
    predictions: Tensor
    grain: float = 0.0
    majority: float | None = None
    own: bool = False
    remarks: list[str] = field(default_factory=list)
    right: list[float] = field(default_factory=list)


@dataclass
class _Sums:
    """What is known so far: the metric's tally, predictions, and how often each label came."""

    tally: Any = None
    kept: list[Tensor] = field(default_factory=list)
    room: int = KEPT
    finite: bool = True
    probabilities: bool = True
    inputs: int = 0
    counts: Tensor | None = None
    remarks: list[str] | None = None
    right: Tensor | None = None

    def keep(self, logits: Tensor) -> None:
        rows = self.room // max(logits[0].numel(), 1)
        part = logits[:rows].detach().float().cpu()
        self.kept.append(part)
        self.room = self.room - part.numel() if rows >= logits.shape[0] else 0

    def count(self, labels: Tensor, right: Tensor, classes: int) -> None:
        """Count labels and right answers by class, both [n]."""
        found = torch.bincount(labels.cpu(), minlength=classes)
        answered = torch.bincount(labels.cpu(), right.cpu().double(), minlength=classes)
        self.counts = summed(self.counts, found)
        self.right = summed(self.right, answered)


def score(
    subject: Training, model: nn.Module, precision: Precision, place: Place, task: Task | None
) -> tuple[Score, Task]:
    """Evaluate `model`, in eval mode at `precision`, on the subject's eval data.

    Args:
        task: how to read outputs, or None to tell from the first batch.

    Raises:
        DataError: no data, or labels that do not fit the outputs.
        ModelError: outputs that cannot be read as predictions.
    """
    sums = _Sums()
    try:
        real = issubclass(type(model), nn.Module)  # no stand-in, which tells whether it is used
        zeros = zero_padding(model, real and not precision.mixed)  # autocast switches it off
        if real:
            with_refusal(model, precision, place.target)  # but not a CPU's
        with modes_kept(model), torch.no_grad(), place.arithmetic(precision), zeros:
            model.eval()
            seed_everything(step_seed(0, 0))
            called = subject
            for batch in subject.eval_data:
                try:
                    task = _add(sums, called, model, precision, place, task, batch)
                except RuntimeError as error:
                    if not misses_a_gradient(error) or called is not subject:
                        raise
                    called = replace(subject, forward=taking_gradients(subject.forward))
                    task = _add(sums, called, model, precision, place, task, batch)
    finally:
        torch.clear_autocast_cache()
    if task is None or not sums.inputs:
        raise DataError("eval_data yields no batches; it must yield (inputs, targets), every time")
    if task.threshold and not sums.probabilities:  # they were by chance, untrained or at first
        return score(subject, model, precision, place, replace(task, threshold=0.0))
    return _finished(sums, subject, task), task


def _add(
    sums: _Sums,
    subject: Training,
    model: nn.Module,
    precision: Precision,
    place: Place,
    task: Task | None,
    batch: Any,
) -> Task:
    output, labels, n = _run(sums, subject, model, precision, place, batch)
    if task is None:
        task = task_of(subject, output, labels, n)
        if task.kind == "embedding" and subject.metric is None:
            raise DataError(
                "task='embedding' has no metric of its own in a training; pass metric=, a function "
                "of (outputs, labels) with one score per input"
            )
    sums.inputs += n
    sums.finite = sums.finite and bool(output.isfinite().all())
    sums.probabilities = sums.probabilities and are_probabilities(output)
    logits = task.canonical(output)
    if not task.batchwise:
        sums.keep(logits)
    if subject.metric is not None:
        sums.tally = sums.tally or tally_of(subject.metric)
        sums.tally.take(output, labels, n, not precision.low)
        return task
    targets = task.canonical_labels(labels, n)
    assert targets is not None, "unreachable: labels were required"
    check_labels(task, targets, logits.shape[-1])
    if task.kind == "regression":
        sums.tally = sums.tally or RSquared()
        sums.tally.add(logits[:, 0], targets)
        return task
    sums.tally = sums.tally or Accuracy()
    valid = task.valid(targets, logits[..., 0])
    answered = right(logits, targets)
    sums.tally.add(answered, valid)
    sums.count(targets[valid], answered[valid], logits.shape[-1])
    return task


def _run(
    sums: _Sums,
    subject: Training,
    model: nn.Module,
    precision: Precision,
    place: Place,
    batch: Any,
) -> tuple[Tensor, Any, int]:
    """The outputs of a batch in float32, its labels, and how many inputs it holds."""
    inputs, labels = split_batch(batch, labelled=True)
    labels = to_device(labels, torch.device("cpu"))
    n = count_inputs(inputs, labels)
    inputs = to_device(inputs, place.device)
    lightning = issubclass(type(model), nn.Module) and is_lightning(model)  # a stand-in is none
    kept = nothing_kept() if lightning else nullcontext()  # as a Trainer validates
    with kept, place.region(precision):
        returned = call(model, inputs, precision, subject)
    output = main_output(returned)
    if sums.remarks is None:
        sums.remarks = others(returned, output).unsure(output.shape, labelled=True)
    output = output.detach().float().cpu()
    if subject.metric is not None and output.dim():
        n = output.shape[0]  # its labels may come in any number: all boxes in one table
    return output, labels, n


def _finished(sums: _Sums, subject: Training, task: Task) -> Score:
    tally = sums.tally
    value, own = tally.value, isinstance(tally, UserTally)
    if own and tally.refused is not None:  # the run ends so, and its twin's stands
        raise DataError(tally.refused)
    return Score(
        name=metric_name(task, subject.metric, labelled=True),
        value=value,
        resolution=clamp(tally.standard_error, tally.scale),
        inputs=sums.inputs,
        finite=sums.finite,
        predictions=torch.cat(sums.kept) if sums.kept else torch.empty(0, 1, 1),
        grain=tally.grain,
        majority=None if sums.counts is None else float(sums.counts.max() / sums.counts.sum()),
        own=own,
        remarks=sums.remarks or [],
        right=[] if sums.right is None or len(sums.right) > CLASSES else sums.right.tolist(),
    )
