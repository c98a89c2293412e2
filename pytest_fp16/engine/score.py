"""The metric of a trained model, and its predictions, reduced batch by batch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pytest_fp16.engine.batching import count_inputs, split_batch, to_device
from pytest_fp16.engine.models import autocast, call, main_output
from pytest_fp16.engine.order import step_seed
from pytest_fp16.engine.randomness import seed_everything
from pytest_fp16.engine.trainee import Place
from pytest_fp16.errors import DataError
from pytest_fp16.precision import Precision
from pytest_fp16.subject import Training
from pytest_fp16.task import Task, check_labels, infer_task

#: Numbers of a run's predictions that are kept for δ and Γ; a pair needs them side by side.
KEPT = 2**20

#: A default budget lies between a tenth of a point and a point of the metric (a convention).
SMALLEST, LARGEST = 0.001, 0.01


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
        majority: share of the commonest label; None where there are no classes.
    """

    name: str
    value: float
    resolution: float
    inputs: int
    finite: bool
    predictions: Tensor
    majority: float | None = None


@dataclass
class _Sums:
    """Running sums of the scores of inputs, and of labels and residuals for R²."""

    scores: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)
    room: int = KEPT
    finite: bool = True
    counts: Tensor | None = None

    def keep(self, logits: Tensor) -> None:
        rows = self.room // max(logits[0].numel(), 1)
        part = logits[:rows].detach().float().cpu()
        self.kept.append(part)
        self.room = self.room - part.numel() if rows >= logits.shape[0] else 0

    def count(self, labels: Tensor, classes: int) -> None:
        found = torch.bincount(labels.reshape(-1).cpu(), minlength=classes)
        self.counts = found if self.counts is None else self.counts + found


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
    was_training = model.training
    model.eval()
    sums = _Sums()
    try:
        with torch.no_grad(), place.arithmetic(precision):
            seed_everything(step_seed(0, 0))
            for batch in subject.eval_data:
                task = _add(sums, subject, model, precision, place, task, batch)
    finally:
        model.train(was_training)
    if task is None or not sums.scores:
        raise DataError("eval_data yields no batches; it must yield (inputs, targets), every time")
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
    inputs, labels = split_batch(to_device(batch, place.device), labelled=True)
    n = count_inputs(inputs, labels)
    with autocast(precision, place.device, place.target):
        raw = call(model, inputs, precision, subject.forward)
    output = main_output(raw).float()
    if task is None:
        task = infer_task(subject.task, output, labels, n, subject.ignore_index)
        if task.kind == "embedding" and subject.metric is None:
            raise DataError(
                "task='embedding' has no metric of its own in a training; pass metric=, a function "
                "of (outputs, labels) with one score per input"
            )
    sums.finite = sums.finite and bool(output.isfinite().all())
    logits = task.canonical(output)
    if not task.batchwise:
        sums.keep(logits)
    if subject.metric is not None:
        sums.scores.append(_own_scores(subject, raw, labels, n))
        return task
    targets = task.canonical_labels(labels, n)
    assert targets is not None, "unreachable: labels were required"
    if task.kind == "regression":
        residual = logits[:, 0] - targets.to(output.device)
        sums.scores.append(residual.square().mean(-1).double().cpu())
        sums.labels.append(targets.double().cpu())
        return task
    check_labels(task, targets, logits.shape[-1])
    valid = task.valid(targets, logits[..., 0])
    right = task.correct(logits, targets, logits.nan_to_num(nan=-torch.inf).argmax(-1)) & valid
    per_input = right.sum(-1).double() / valid.sum(-1).clamp(min=1)
    weight = valid.sum(-1).double()
    sums.scores.append(torch.stack([per_input, weight], -1).cpu())
    sums.count(targets[valid], logits.shape[-1])
    return task


def _own_scores(subject: Training, raw: Any, labels: Any, n: int) -> Tensor:
    assert subject.metric is not None
    found = subject.metric(raw, labels)
    scores = torch.as_tensor(found).detach().double().cpu().reshape(-1)
    if scores.numel() != n:
        raise DataError(
            f"metric returned {scores.numel()} scores for {n} inputs; it must return one per input"
        )
    return scores


def _finished(sums: _Sums, subject: Training, task: Task) -> Score:
    scores = torch.cat(sums.scores)
    predictions = torch.cat(sums.kept) if sums.kept else torch.empty(0, 1, 1)
    n = scores.shape[0]
    majority = None
    if subject.metric is not None:
        name = getattr(subject.metric, "__name__", "metric")
        value, resolution = float(scores.mean()), _standard_error(scores)
    elif task.kind == "regression":
        name = task.metric_name
        value, resolution = _r_squared(scores, torch.cat(sums.labels))
        resolution = clamped(resolution)
    else:
        name = task.metric_name
        value, resolution = _accuracy(scores)
        assert sums.counts is not None
        majority = float(sums.counts.max() / sums.counts.sum().clamp(min=1))
    return Score(name, value, resolution, n, sums.finite, predictions, majority)


def clamped(standard_error: float) -> float:
    """A standard error held between a tenth of a point and a point."""
    if not math.isfinite(standard_error):
        return LARGEST
    return min(max(standard_error, SMALLEST), LARGEST)


def _accuracy(scores: Tensor) -> tuple[float, float]:
    """Accuracy over all decisions, and √(ã(1−ã)/n) with ã = (na+2)/(n+4), n the inputs."""
    per_input, weight = scores.unbind(-1)
    accuracy = float((per_input * weight).sum() / weight.sum().clamp(min=1))
    n = scores.shape[0]
    shrunk = (n * accuracy + 2) / (n + 4)
    return accuracy, clamped((shrunk * (1 - shrunk) / n) ** 0.5)


def _r_squared(squares: Tensor, labels: Tensor) -> tuple[float, float]:
    spread = (labels - labels.mean(0)).square().mean()
    spread = spread.clamp(min=torch.finfo(spread.dtype).tiny)
    return float(1 - squares.mean() / spread), _standard_error(squares) / float(spread)


def _standard_error(scores: Tensor) -> float:
    return float(scores.std() / len(scores) ** 0.5) if len(scores) > 1 else 0.0
