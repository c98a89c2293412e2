"""Train a fresh model at one precision with one seed, and say how it ended."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pytest_fp16.engine.emulation.wording import told
from pytest_fp16.engine.models import parameter_dtypes
from pytest_fp16.engine.training.guard import Ended, Guard
from pytest_fp16.engine.training.modes import to_train
from pytest_fp16.engine.training.order import ordered
from pytest_fp16.engine.training.place import Amendment, Place
from pytest_fp16.engine.training.score import Score, score
from pytest_fp16.engine.training.trainee import Trainee
from pytest_fp16.engine.training.untaught import learned_nothing
from pytest_fp16.engine.uncompiled import FollowingMode
from pytest_fp16.errors import DataError
from pytest_fp16.precision import REFERENCE, Precision
from pytest_fp16.subject import Training
from pytest_fp16.task import Task
from pytest_fp16.theory.decline import comes_down

#: An untrained loss of this size may be a GradScaler's work, which begins at 65536.
_SCALED = 1e4


class StepCallback(Protocol):
    """Told after every step: epoch, step within it, loss."""

    def __call__(self, epoch: int, step: int, loss: float) -> None:
        """Show it."""


@dataclass
class RunResult:
    """One training run.

    Attributes:
        precision: its name.
        seed: its seed.
        ended: ``"finished"``, ``"nan"`` (a loss, parameter or output is not finite),
            ``"infinite loss"`` (all else is finite), ``"diverged"``, ``"collapsed scale"``,
            ``"raised"`` or ``"out of memory"``.
        score: metric and predictions of the trained model; None where it could not be evaluated.
        losses: mean training loss of each epoch.
        error: what was raised, or by how much a 32-bit run has diverged.
        failed_at: (epoch, step) of the step that ended it early.
        steps: optimizer steps applied.
        skipped: optimizer steps a gradient scaler skipped.
        lost: of these, the ones after it had found a scale.
        scale: the last loss scale.
        dtypes: how many results of each dtype the operations of the first step had.
        state_dtypes: dtypes of parameters, gradients and optimizer state.
    """

    precision: str
    seed: int
    ended: str = "finished"
    score: Score | None = None
    losses: list[float] = field(default_factory=list)
    error: str | None = None
    failed_at: tuple[int, int] | None = None
    steps: int = 0
    skipped: int = 0
    lost: int = 0
    scale: float = 1.0
    dtypes: dict[str, int] = field(default_factory=dict)
    state_dtypes: dict[str, list[str]] = field(default_factory=dict)

    @property
    def broke(self) -> bool:
        """Whether the run did not come to a proper end."""
        return self.ended not in ("finished", "out of memory")

    @property
    def metric(self) -> float:
        """The metric of the trained model; NaN where there is none."""
        return math.nan if self.score is None else self.score.value


class DtypeCounter(FollowingMode):
    """Counts the dtypes of floating results: the proof of what a step really ran in."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtypes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, (list, tuple)) else (out,):
            if isinstance(item, Tensor) and item.is_floating_point():
                self.dtypes[str(item.dtype).removeprefix("torch.")] += 1
        return out


def train(
    subject: Training,
    precision: Precision,
    seed: int,
    state: Mapping[str, Any],
    place: Place,
    task: Task | None = None,
    tell: StepCallback | None = None,
    amendment: Amendment | None = None,
    usual: float | None = None,
) -> RunResult:
    """Train at `precision` from the weights `state`, then evaluate.

    A run that raises, is not finite, diverges or loses its scale is a result, not an exception.
    Only Ctrl-C and the like pass through. A loss that has grown far beyond `usual`, the largest
    that the 32-bit run came through, ends a run; without it, see `_judge_away`.
    """
    result = RunResult(precision.name, seed)
    trainee: Trainee | None = None
    try:
        with torch.enable_grad():
            trainee = Trainee(subject, precision, seed, state, place, amendment)
            with trainee.installed():
                guard = Guard(trainee.model, usual)
                try:
                    _epochs(trainee, seed, result, tell, guard)
                except Ended as end:
                    result.ended, result.failed_at = end.ended, end.at
                with trainee.tables.lent():
                    result.score, _ = score(subject, trainee.model, precision, place, task)
                if not result.score.finite and not result.broke:
                    result.ended = "nan"
            if guard.away_at is not None and not result.broke:
                _judge_away(result, guard, untrained(subject, seed, state, place, task))
    except torch.OutOfMemoryError as error:
        result.ended, result.error = "out of memory", told(error)
    except Exception as error:
        result.ended, result.error = "raised", told(error)
    if trainee is not None:
        result.steps, result.skipped = trainee.applied, trainee.skipped
        result.lost = trainee.lost
        result.scale = trainee.scale
        result.state_dtypes = _state_dtypes(trainee)
    return result


def _judge_away(result: RunResult, guard: Guard, start: Score | None) -> None:
    """Whether a 32-bit run has diverged whose loss is far beyond that of the untrained model.

    It has where it ends in guesses, or where its metric is no better than at the start and the loss
    does not come down: that of the start may be small by its nature (an empty queue of negatives, a
    constant that fits all) and say nothing of the size of those that follow.
    """
    if start is None or result.score is None:
        return
    gained = result.metric > start.value + start.resolution
    guesses = learned_nothing([result.score]) is not None
    if not guesses and (gained or (math.isfinite(result.metric) and comes_down(guard.losses))):
        return
    result.ended, result.failed_at = "diverged", guard.away_at
    first = guard.first or 0.0
    result.error = (
        f"it diverged: its loss is {guard.tail:.3g} in the last quarter of an epoch, "
        f"{first:.3g} untrained{_scaled(first)}; {start.name} {result.metric:.4g}, "
        f"{start.value:.4g} before"
    )


def _scaled(untrained: float) -> str:
    """What an untrained loss of that size may be, where a loop's own GradScaler was taken along."""
    if abs(untrained) < _SCALED:
        return ""
    return " (is it scaled already? The check scales it itself)"


def trained(
    subject: Training, precision: Precision, seed: int, state: Mapping[str, Any], place: Place
) -> nn.Module:
    """The model of a run that comes to a proper end, trained once more."""
    with torch.enable_grad():
        trainee = Trainee(subject, precision, seed, state, place)
        with trainee.installed():
            _epochs(trainee, seed, RunResult(precision.name, seed), None, Guard(trainee.model))
    return trainee.model.eval()


def untrained(
    subject: Training, seed: int, state: Mapping[str, Any], place: Place, task: Task | None
) -> Score | None:
    """The score, in 32 bits, of the weights that training starts from; None where it has none."""
    try:
        trainee = Trainee(subject, REFERENCE, seed, state, place)
        return score(subject, trainee.model, REFERENCE, place, task)[0]
    except Exception:  # a metric may be undefined before any training
        return None


def _epochs(
    trainee: Trainee, seed: int, result: RunResult, tell: StepCallback | None, guard: Guard
) -> None:
    for epoch in range(trainee.subject.epochs):
        to_train(trainee.model)
        losses = _epoch(trainee, seed, epoch, result, guard, tell)
        trainee.end_epoch(result.losses[-1])
        guard.after_epoch(trainee, epoch, losses)
    guard.at_the_end()
    if trainee.scaler is not None and trainee.skipped and trainee.applied == 0:
        raise Ended("collapsed scale", (trainee.subject.epochs - 1, trainee.skipped - 1))


def _epoch(
    trainee: Trainee,
    seed: int,
    epoch: int,
    result: RunResult,
    guard: Guard,
    tell: StepCallback | None,
) -> list[float]:
    losses: list[float] = []
    batches = with_last(ordered(trainee.subject.train_data, seed, epoch))
    for step, (batch, last) in enumerate(batches):
        observer = DtypeCounter() if epoch == 0 and step == 0 else None
        try:
            loss = trainee.step(batch, last, observer)
        except Exception:
            result.failed_at = epoch, step
            raise
        if observer is not None:
            result.dtypes = dict(observer.dtypes)
        losses.append(loss)
        guard.after_step(trainee, epoch, step, loss)
        if tell is not None:
            tell(epoch, step, loss)
    if not losses:
        raise DataError("train_data yields no batches")
    result.losses.append(sum(losses) / len(losses))
    return losses


def with_last(batches: Any) -> Any:
    """Each batch with whether it is the last."""
    held: list[Any] = []
    for batch in batches:
        if held:
            yield held.pop(), False
        held.append(batch)
    if held:
        yield held.pop(), True


def _state_dtypes(trainee: Trainee) -> dict[str, list[str]]:
    state = [v for s in trainee.optimizer.state.values() if isinstance(s, dict) for v in s.values()]
    # A step count stays in float32 whatever the parameters are: it is no state that rounds.
    moments = [t for t in state if isinstance(t, Tensor) and t.is_floating_point() and t.dim()]
    return {
        "parameters": sorted(parameter_dtypes(trainee.model)),
        "optimizer": sorted({str(t.dtype).removeprefix("torch.") for t in moments}),
    }
