"""A second, longer look at a training whose weights go another way than in 32 bits.

Steps that are too long, too short or turned are no harm in themselves: where Adam's second moment
has rounded to zero a step is as long as epsilon allows, and many a model learns the faster for it.
What counts is whether it learns. So the steps are made in both precisions, twice as many as the
trajectory has, and the losses of batches that were held back are compared.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch

from pytest_fp16.engine.carried import carry_over
from pytest_fp16.engine.emulation.wording import told
from pytest_fp16.engine.gradients.origins.found import Found
from pytest_fp16.engine.gradients.points import gradients
from pytest_fp16.engine.gradients.probes.evaluated import scores
from pytest_fp16.engine.gradients.probes.watched_steps import watched
from pytest_fp16.engine.randomness import seed_everything
from pytest_fp16.engine.training.guard import all_finite
from pytest_fp16.engine.training.modes import to_train
from pytest_fp16.engine.training.order import step_seed
from pytest_fp16.engine.training.trainee import Trainee
from pytest_fp16.theory.gradient import learns_slowly, learnt

_RETRIES = 40
#: Of the loss at the start, where hardly anything is left to learn.
_LEFT = 0.1

Streams = tuple[Iterator[Any], Iterator[Any], Iterator[Any]]


@dataclass(frozen=True)
class SecondLook:
    """Losses of the batches held back.

    Attributes:
        steps: made in both precisions.
        start, half, end: the reference's losses before, after half of the steps (None where the
            training has no twice as many) and after all.
        candidate: the candidate's after all, or of its weights in 32 bits where that is more.
        metric: (reference's, candidate's, resolution) of the metric after all, where it was asked.
        ended: the step at which the candidate's loss was no longer finite, if that ended the look.
        origin: what made it so.
    """

    steps: int
    start: list[float]
    half: list[float] | None
    end: list[float]
    candidate: list[float]
    metric: tuple[float, float, float] | None = None
    ended: int | None = None
    origin: Found | None = None

    @property
    def slow(self) -> bool:
        """Whether 16 bits learn at less than half the speed, or not at all."""
        if not all(map(math.isfinite, self.candidate)):
            return True
        if self.metric is not None:
            reference, candidate, resolution = self.metric
            if reference - candidate <= resolution:
                return False
        return learns_slowly(self.start, self.half, self.end, self.candidate)

    @property
    def kept_up(self) -> bool:
        """Whether 32 bits have learnt, and 16 bits too."""
        return learnt(self.start, self.end) and not self.slow

    @property
    def settled(self) -> bool:
        """Whether 16 bits have learnt nearly all there is: a loss that is hardly more than zero."""
        least = min(*self.start, *self.candidate)
        return self.kept_up and least >= 0 and fmean(self.candidate) < _LEFT * fmean(self.start)

    def said(self) -> str:
        """The losses in words."""
        half = ""
        if self.half is not None:
            half = f"{fmean(self.half):.3g} after {self.steps // 2} and "
        return (
            f"after {self.steps} steps the loss is {fmean(self.candidate):.3g}; 32 bits have "
            f"{half}{fmean(self.end):.3g} after {self.steps}, from {fmean(self.start):.3g}"
        )


def losses(trainee: Trainee, batches: Sequence[Any]) -> list[float]:
    """The loss of each batch, in training mode; nothing of the trainee is changed."""
    return [gradients(trainee, batch, seed).loss for seed, batch in enumerate(batches)]


def exact_step(
    trainee: Trainee, batches: Sequence[Any], seed: int, step: int, observer: Any = None
) -> list[float]:
    """One optimizer step of the reference, with the seeds of the training's own."""
    found = []
    for number, batch in enumerate(batches):
        seed_everything(step_seed(seed, step, number))
        to_train(trainee.model)
        found.append(trainee.step(batch, observer=observer))
    return found


def applied_step(trainee: Trainee, batches: Sequence[Any], seed: int, step: int) -> float:
    """One applied step of the candidate: a scaler that skips tries again at half the scale.

    A step that no scale saves is left out, and halves the scale once.
    """
    loss, start = math.nan, trainee.scale
    scaled = trainee.scaler is not None
    held = [b.detach().clone() for b in trainee.model.buffers()] if scaled else []
    for _ in range(_RETRIES):
        before, come = trainee.applied, copy.copy(trainee.counted)
        loss = exact_step(trainee, batches, seed, step)[-1]
        if not scaled or trainee.left_out or trainee.applied > before:
            break
        with torch.no_grad():  # the batch will be seen again: averages and queues have it once
            for buffer, value in zip(trainee.model.buffers(), held, strict=True):
                buffer.copy_(value)
        trainee.counted.follow(come)
        if not math.isfinite(loss):
            break  # the scale has no part in it
    else:
        trainee.scaler.update(start / 2)  # type: ignore[union-attr]
    return loss


def second_look(
    exact: tuple[Trainee, Trainee],
    candidate: Trainee,
    streams: Streams,
    held: Sequence[Any],
    seed: int,
    steps: tuple[int, int],
) -> SecondLook:
    """Go on with the reference, make its steps with the candidate, and compare their losses.

    Args:
        exact: the reference as it starts (it takes the candidate's weights in the end), and as it
            is after the trajectory.
        candidate: as it starts.
        streams: the batches that follow the trajectory, and twice those from the training's start.
        held: batches that neither is trained on.
        seed: of the training.
        steps: of the trajectory, and of the look.
    """
    fresh, trained = exact
    after, again, _ = streams
    made, whole = steps
    every = trained.subject.accumulate
    start, half = losses(fresh, held), losses(trained, held)
    for step in range(made, whole):
        exact_step(trained, list(itertools.islice(after, every)), seed, step)
    ended = None
    for step in range(whole):
        loss = applied_step(candidate, list(itertools.islice(again, every)), seed, step)
        if _lost(candidate, loss):
            ended = step
            break
    skips = candidate.scaler is not None
    reached = losses(candidate, held) if ended is None else [loss]
    reached = _worse(reached, fresh, candidate, held)
    every_one = [start, half, losses(trained, held), reached]
    if skips:  # what it skips says nothing of what was learnt
        kept = [n for n, value in enumerate(reached) if math.isfinite(value)] or range(len(reached))
        every_one = [[found[n] for n in kept] for found in every_one]
    start, half, end, reached = every_one
    middle = half if whole >= 2 * made else None
    return SecondLook(whole, start, middle, end, reached, ended=ended)


def _lost(candidate: Trainee, loss: float) -> bool:
    """Whether a step ends a run: an infinite loss with a finite gradient may return."""
    if math.isfinite(loss) or candidate.scaler is not None:
        return False
    return math.isnan(loss) or not all_finite(candidate.parameters())


def _worse(
    own: list[float], fresh: Trainee, candidate: Trainee, held: Sequence[Any]
) -> list[float]:
    """The candidate's losses, or what 32 bits make of its weights where that is more.

    A loss that has lost its digits may be far below any that is real.
    """
    if not all(map(math.isfinite, own)):
        return own
    try:
        carry_over(candidate.model, fresh.model, torch.float32, weights=True)
        exact = losses(fresh, held)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return own  # what 16 bits have left behind is not for a program in 32
    return [max(o, e) if math.isfinite(e) else o for o, e in zip(own, exact, strict=True)]


def longer_look(
    exact: tuple[Trainee, Trainee],
    make: Callable[[], Trainee],
    streams: Streams,
    held: Sequence[Any],
    seed: int,
    steps: tuple[int, int],
    doubt: bool,
) -> SecondLook | str:
    """As `second_look`, with the metric where there is doubt; what the candidate raised, if it did.

    Args:
        make: makes the candidate.
        doubt: whether gradients are bent, so that the metric decides.
    """
    try:
        candidate = make()
        look = second_look(exact, candidate, streams, held, seed, steps)
        if look.ended is not None:
            look = replace(look, origin=_lost_at(look.ended, make(), streams[2], seed))
        return measured(look, exact[1], candidate) if doubt and look.slow else look
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return told(error)


def _lost_at(step: int, candidate: Trainee, stream: Iterator[Any], seed: int) -> Found | None:
    """What lost the loss of a step: those before it made once more, the last two watched."""
    every, since = candidate.subject.accumulate, max(step - 1, 0)
    for number in range(since):
        applied_step(candidate, list(itertools.islice(stream, every)), seed, number)
    batches = list(itertools.islice(stream, (step + 1 - since) * every))
    return watched(candidate, batches, seed, since=since).cause


def measured(look: SecondLook, trained: Trainee, candidate: Trainee) -> SecondLook:
    """The look with the metric of both, where it can be taken.

    Near its end a loss without noise is as small as 16 bits can tell, and the gradient with it.
    """
    found = scores(trained, candidate)
    if found is None or not all(score.finite for score in found):
        return look
    reference, low = found
    return replace(look, metric=(reference.value, low.value, reference.resolution))
