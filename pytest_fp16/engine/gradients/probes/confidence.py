"""A model made as sure as a trained one: its right decisions, with a trained classifier's margin.

Losses that take logarithms of probabilities by hand fail only then, long after the first steps.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pytest_fp16.engine.batching import split_batch
from pytest_fp16.engine.containers import map_tensors
from pytest_fp16.engine.models import call_as_is
from pytest_fp16.engine.outputs import main_output
from pytest_fp16.engine.training.modes import modes_kept
from pytest_fp16.engine.training.trainee import Trainee
from pytest_fp16.engine.untouched import untouched
from pytest_fp16.errors import DataError

#: Margins of well-trained classifiers reach 20 (a probability within 2e-9 of one).
TRAINED_MARGIN, MOST_CONFIDENT = 20.0, 64.0
#: The classes furthest from a trained classifier's best are about twice as far as the second.
FURTHEST = 2.0
#: Tried in this order, up to the first that float32 itself survives: a probability of 1 - 2e-9 is
#: 1 in float32 too, and a slope that is infinite there is infinite in any format.
MARGINS = (TRAINED_MARGIN, 10.0, 5.0)


class Changed(Protocol):
    """What makes other outputs of those that a model returns."""

    @property
    def passes(self) -> int:
        """How often the model has returned such outputs before."""

    def applied(self, t: Tensor) -> Tensor:
        """An output as it is to be."""


@dataclass(frozen=True)
class Confidence:
    """What makes outputs sure.

    Attributes:
        factor: of the logits, per decision, in the shape of the outputs' leading dimensions.
        probabilities: None where outputs are logits; ``"each"`` where every output is a
            probability of its own, ``"together"`` where those of a decision add up to one.
        classes: the dimension of the classes, where there are any.
        targets: what is right; each output is made sure where it is itself right, so that an
            old policy or a second head is not made sure of its mistakes.
        solved: whether what is wrong changes places with what is right.
        margin: of a trained classifier. A class further below the best than that, as one that is
            masked, keeps its distance: no training would move it further.
        passes: how often the model has been as sure of these inputs before: what it keeps of its
            own outputs has followed.
    """

    factor: Tensor
    probabilities: str | None = None
    classes: int = -1
    targets: Tensor | None = None
    solved: bool = False
    margin: float = TRAINED_MARGIN
    passes: int = 0

    def applied(self, t: Tensor) -> Tensor:
        """An output, made sure; one whose shape does not fit stays as it is."""
        factor = self.factor
        if not t.is_floating_point() or t.dim() < factor.dim():
            return t
        if any(f not in (1, n) for f, n in zip(factor.shape, t.shape, strict=False)):
            return t
        factor = factor.to(t.device)
        if self.targets is not None and self.targets.dim() == t.dim():
            t, factor = self._by_its_own(t, factor, self.targets.to(t.device))
        wide = factor.reshape(*factor.shape, *[1] * (t.dim() - factor.dim()))
        if self.probabilities is None:
            return self._scaled(t, wide.to(t.dtype))
        with torch.no_grad():
            sure = self._probability(t.float(), wide).to(t.dtype)
        return sure + (t - t.detach())  # the value of one, the slope of the other

    def _scaled(self, t: Tensor, factor: Tensor) -> Tensor:
        if t.dim() < 2 or (self.targets is not None and self.targets.is_floating_point()):
            return t * factor
        sure = t * factor + _between(t.detach(), self.classes) * (1 - factor)
        best, reached = (v.detach().amax(self.classes, keepdim=True) for v in (t, sure))
        gap = best - t.detach()
        sure = torch.where(gap > self.margin, t + (reached - best), sure)
        # A decision that was close would throw the classes that were not out of float32's range.
        furthest = torch.maximum(gap, torch.full_like(gap, FURTHEST * self.margin))
        return torch.where(
            reached - sure.detach() > furthest, t + (reached - furthest - t.detach()), sure
        )

    def _by_its_own(self, t: Tensor, factor: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """An output (righted, where that is wanted) and its factor, by what it has right itself."""
        own = t.detach()
        if targets.is_floating_point():
            right = (own > (0.5 if self.probabilities else 0)) == (targets > 0.5)
            return t, torch.where(right, factor, -factor if self.solved else 1.0)
        best = own.argmax(self.classes, keepdim=True)
        if self.solved:
            return t.gather(self.classes, _righted(own, targets, self.classes)), factor
        return t, torch.where(best == targets, factor, 1.0)

    def _probability(self, p: Tensor, factor: Tensor) -> Tensor:
        if self.probabilities == "each":
            return torch.sigmoid(factor * torch.logit(p))
        return torch.softmax(factor * p.log(), self.classes)


def _between(t: Tensor, classes: int) -> Tensor:
    """What no decision crosses as it becomes sure: zero, or the nearest between its best two.

    Scaled from zero, a class that is wrong would grow with one that is right.
    """
    if t.shape[classes] < 2:
        return torch.zeros_like(t)
    best, second = t.topk(2, classes).values.split(1, classes)
    return torch.maximum(second, torch.zeros_like(second)).minimum(best)


def scaling(confidence: Changed | None) -> Any:
    """A forward hook that makes what a model returns sure."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if confidence is None or not isinstance(output, (Tensor, list, tuple, dict)):
            return None
        if not isinstance(output, dict):
            return map_tensors(output, confidence.applied)
        changed = copy.copy(output)  # of its own type: a loss may read outputs.logits
        for key, value in output.items():
            changed[key] = map_tensors(value, confidence.applied)
        return changed

    return hook


@contextmanager
def scaled_outputs(model: nn.Module, confidence: Changed) -> Iterator[None]:
    """Make what the model returns sure."""
    handle = nn.Module.register_forward_hook(model, scaling(confidence))  # scripted ones, too
    try:
        yield
    finally:
        handle.remove()


def outputs(trainee: Trainee, batch: Any) -> Tensor | None:
    """What the model returns in training mode, if it is a floating tensor, in float32."""
    model = trainee.model
    with torch.no_grad(), untouched(model), modes_kept(model):
        try:
            inputs = trainee.placed(split_batch(batch, labelled=True)[0])
            found = main_output(call_as_is(model, inputs, trainee.subject.forward))
        except Exception:
            return None  # the user's own step calls the model, or reads the batch, in its own way
    return found.float() if found.is_floating_point() else None


def confidence_of(
    trainee: Trainee, batch: Any, wanted: float = TRAINED_MARGIN, solved: bool = False
) -> Confidence | None:
    """What makes a classifier's margins those of a trained one; None for others.

    A trained classifier is sure where it is right: decisions that are wrong so far are left as they
    are. Targets of whole numbers, or of zeros and ones, are read as classes. Outputs between zero
    and one (that add up to one, where there are classes) are read as probabilities, and their
    logarithms as logits.

    Args:
        trainee: the model, and how it is run.
        batch: inputs and targets.
        wanted: the margin; those that have it already keep theirs.
        solved: whether wrong decisions are turned into right ones, too.
    """
    try:
        _, targets = split_batch(batch, labelled=True)
    except DataError:
        return None
    if not isinstance(targets, Tensor) or not bool(
        ((targets == 0) | (targets == 1)).all() or not targets.is_floating_point()
    ):
        return None
    logits = outputs(trainee, batch)
    if logits is None:
        return None
    targets = targets.to(logits.device)
    kind = _probabilities(logits, targets)
    if kind is not None:
        logits = torch.logit(logits) if kind == "each" else logits.log()
    margins, right = decisions(logits, targets)
    if margins is None or right is None:
        return None
    if not 0 < float(margins.median()) < wanted:
        return None
    factor = (wanted / margins).clamp(1, MOST_CONFIDENT)
    classes = _class_dimension(logits, targets)
    if not targets.is_floating_point():
        targets = targets.unsqueeze(classes)
    if not solved:
        factor = torch.where(right, factor, 1.0)
    if targets.dim() != logits.dim():
        return None if solved else Confidence(factor, kind, classes, margin=wanted)
    return Confidence(factor, kind, classes, targets, solved, wanted)


def _righted(logits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Where each output is taken from, so that the largest and that of the label change places."""
    names = torch.arange(logits.shape[classes], device=logits.device)
    shape = [1] * logits.dim()
    shape[classes] = -1
    order = names.reshape(shape).expand_as(logits).clone()
    best = logits.argmax(classes, keepdim=True)
    known = (labels >= 0) & (labels < logits.shape[classes])  # others (padding) are no decisions
    labels = torch.where(known, labels, best)
    return order.scatter(classes, labels, best).scatter(classes, best, labels)


def _probabilities(outputs: Tensor, targets: Tensor) -> str | None:
    """How outputs are probabilities, if they are."""
    if not bool(((outputs >= 0) & (outputs <= 1)).all()):
        return None
    if targets.is_floating_point():
        return "each"
    if outputs.dim() < 2:
        return None
    total = outputs.sum(_class_dimension(outputs, targets))
    return "together" if bool(((total - 1).abs() < 1e-3).all()) else None


def _class_dimension(logits: Tensor, targets: Tensor) -> int:
    pixels = logits.dim() > 2 and targets.shape == logits.shape[:1] + logits.shape[2:]
    return 1 if pixels else -1


def decisions(logits: Tensor, targets: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """(margin, whether right) of each decision; None where outputs are no decisions."""
    if targets.is_floating_point():
        if logits.shape != targets.shape:
            return None, None
        return logits.abs(), (logits > 0) == (targets > 0.5)
    if logits.dim() < 2:
        return None, None
    classes = _class_dimension(logits, targets)
    if logits.shape[classes] < 2:
        return None, None
    top, found = logits.topk(2, classes)
    margins = (top.select(classes, 0) - top.select(classes, 1)).unsqueeze(classes)
    best = found.select(classes, 0)
    if best.shape != targets.shape:
        return margins, torch.ones(1, dtype=torch.bool, device=logits.device)
    return margins, (best == targets).unsqueeze(classes)
