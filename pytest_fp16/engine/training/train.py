"""Train a fresh model at one precision with one seed, and say how it ended."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_fp16.engine.emulation.wording import told
from pytest_fp16.engine.models import parameter_dtypes
from pytest_fp16.engine.training.order import ordered
from pytest_fp16.engine.training.place import Amendment, Place
from pytest_fp16.engine.training.score import Score, score
from pytest_fp16.engine.training.trainee import Trainee
from pytest_fp16.errors import DataError
from pytest_fp16.precision import Precision
from pytest_fp16.subject import Training
from pytest_fp16.task import Task

#: Steps in a row without one applied after which a loss scale has collapsed: from its start at
#: 2^16 each halves it, and 2^-24, float16's smallest number, is 40 halvings away.
COLLAPSED = 40

#: A run has diverged when the loss of an epoch's last quarter is this many times that of the
#: untrained model, and short epochs after it, up to so many steps, did not bring it back.
DIVERGED, AWAY = 10.0, 16


class Told(Protocol):
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
            ``"diverged"``, ``"collapsed scale"``, ``"raised"`` or ``"out of memory"``.
        score: metric and predictions of the trained model; None where it could not be evaluated.
        losses: mean training loss of each epoch.
        error: what was raised.
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


class Witness(TorchDispatchMode):
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


class _Ended(Exception):  # noqa: N818 (the end of a run is no error)
    def __init__(self, ended: str, at: tuple[int, int]) -> None:
        super().__init__(ended)
        self.ended, self.at = ended, at


def train(
    subject: Training,
    precision: Precision,
    seed: int,
    state: Mapping[str, Any],
    place: Place,
    task: Task | None = None,
    tell: Told | None = None,
    amendment: Amendment | None = None,
) -> RunResult:
    """Train at `precision` from the weights `state`, then evaluate.

    A run that raises, is not finite, diverges or loses its scale is a result, not an exception.
    Only Ctrl-C and the like pass through.
    """
    result = RunResult(precision.name, seed)
    trainee: Trainee | None = None
    try:
        with torch.enable_grad():
            trainee = Trainee(subject, precision, seed, state, place, amendment)
            with trainee.installed():
                try:
                    _epochs(trainee, seed, result, tell)
                except _Ended as end:
                    result.ended, result.failed_at = end.ended, end.at
                result.score, _ = score(subject, trainee.model, precision, place, task)
                if not result.score.finite and not result.broke:
                    result.ended = "nan"
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


def trained(
    subject: Training, precision: Precision, seed: int, state: Mapping[str, Any], place: Place
) -> nn.Module:
    """The model of a run that comes to a proper end, trained once more."""
    with torch.enable_grad():
        trainee = Trainee(subject, precision, seed, state, place)
        with trainee.installed():
            _epochs(trainee, seed, RunResult(precision.name, seed), None)
    return trainee.model.eval()


def _epochs(trainee: Trainee, seed: int, result: RunResult, tell: Told | None) -> None:
    guard = Guard(trainee.model)
    for epoch in range(trainee.subject.epochs):
        trainee.model.train()
        losses = _epoch(trainee, seed, epoch, result, guard, tell)
        trainee.end_epoch(result.losses[-1])
        guard.after_epoch(trainee, epoch, losses)
    guard.at_the_end()
    if trainee.scaler is not None and trainee.skipped and trainee.applied == 0:
        raise _Ended("collapsed scale", (trainee.subject.epochs - 1, trainee.skipped - 1))


def _epoch(
    trainee: Trainee,
    seed: int,
    epoch: int,
    result: RunResult,
    guard: Guard,
    tell: Told | None,
) -> list[float]:
    losses: list[float] = []
    batches = with_last(ordered(trainee.subject.train_data, seed, epoch))
    for step, (batch, last) in enumerate(batches):
        witness = Witness() if epoch == 0 and step == 0 else None
        try:
            loss = trainee.step(batch, last, witness)
        except Exception:
            result.failed_at = epoch, step
            raise
        if witness is not None:
            result.dtypes = dict(witness.dtypes)
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


class Guard:
    """Watches a run for its bad ends.

    Buffers that hold infinities from the start (masks) are left out.
    """

    def __init__(self, model: nn.Module) -> None:
        self.first: float | None = None
        self.beyond: tuple[int, int] | None = None
        self.away = 0
        self.lost = False
        self.in_a_row = 0
        self.applied = 0
        self.finite = {n for n, b in model.named_buffers() if all_finite([b])}

    def after_step(self, trainee: Trainee, epoch: int, step: int, loss: float) -> None:
        """Raises `_Ended` where the loss or a parameter is lost, or no step is applied any more.

        A scaler skips the steps of a loss that is not finite, so there a single one is no end, if
        it does. Nor is an infinite one whose gradient is finite (a sum that leaves the range): what
        is trained does not feel it, and it may return.
        """
        if math.isfinite(loss):
            self.beyond = None
            self.first = self.first or loss  # zero, of a term that starts later, has no size
        elif trainee.scaler is None:
            self.beyond = self.beyond or (epoch, step)
            if math.isnan(loss):
                raise _Ended("nan", (epoch, step))
        if trainee.scaler is not None and not trainee.left_out:
            self._after_scaled(trainee, (epoch, step), loss)
        if not all_finite(trainee.parameters()):
            raise _Ended("nan", (epoch, step))

    def _after_scaled(self, trainee: Trainee, at: tuple[int, int], loss: float) -> None:
        self.lost = self.lost or math.isnan(loss)
        applied = trainee.applied > self.applied
        if applied and self.lost:  # no gradient tells of it, and every loss may be as this one
            raise _Ended("nan", at)
        self.lost &= bool(trainee.pending)
        self.in_a_row = 0 if applied or trainee.pending else self.in_a_row + 1
        self.applied = trainee.applied
        if self.in_a_row >= COLLAPSED:
            raise _Ended("collapsed scale", at)

    def after_epoch(self, trainee: Trainee, epoch: int, losses: list[float]) -> None:
        """Raises `_Ended` where running statistics are lost, or the loss has run away."""
        at = (epoch, len(losses) - 1)
        buffers = [b for n, b in trainee.model.named_buffers() if n in self.finite]
        if not all_finite(buffers):
            raise _Ended("nan", at)
        tail = [loss for loss in losses[-max(1, len(losses) // 4) :] if math.isfinite(loss)]
        if not tail:
            return
        mean = sum(tail) / len(tail)
        if self.first is None or mean <= self.first + (DIVERGED - 1) * abs(self.first):
            self.away = 0
            return
        # An optimizer that looks for its own steps may overshoot once, and return.
        self.away += len(losses)
        if self.away >= AWAY or epoch + 1 == trainee.subject.epochs:
            raise _Ended("diverged", at)

    def at_the_end(self) -> None:
        """Raises `_Ended` where the loss stayed infinite."""
        if self.beyond is not None:
            raise _Ended("nan", self.beyond)


def all_finite(tensors: list[Any]) -> bool:
    """Whether every number in floating tensors is finite."""
    floating = [t.detach() for t in tensors if t.is_floating_point() and t.numel()]
    if not floating:
        return True
    # The largest absolute value is NaN where any value is, and costs one pass for all tensors.
    return bool(torch.isfinite(nn.utils.get_total_norm(floating, math.inf)))


def _state_dtypes(trainee: Trainee) -> dict[str, list[str]]:
    state = [v for s in trainee.optimizer.state.values() if isinstance(s, dict) for v in s.values()]
    # A step count stays in float32 whatever the parameters are: it is no state that rounds.
    moments = [t for t in state if isinstance(t, Tensor) and t.is_floating_point() and t.dim()]
    return {
        "parameters": sorted(parameter_dtypes(trainee.model)),
        "optimizer": sorted({str(t.dtype).removeprefix("torch.") for t in moments}),
    }
