"""Counts and schedules in buffers, followed to the end of the training.

What grows by the same number at every step, or by the same factor, stands still where half a
spacing of the format is more than that: one by one bfloat16 counts to 256, and a temperature that
falls by a five-hundredth hardly falls at all. Where a buffer would be is played alone; that the
program itself does so is asked of single steps; and whether it matters, of the model: its gradient
with the one value and the other, then a short training through the whole of either way.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pytest_fp16.engine.emulation.operations import LOW
from pytest_fp16.engine.gradients.points import gradients
from pytest_fp16.engine.gradients.probes.second_look import (
    SecondLook,
    exact_step,
    losses,
    measured,
)
from pytest_fp16.engine.training.trainee import Trainee
from pytest_fp16.engine.untouched import untouched
from pytest_fp16.theory.pace import Pace, pace_of

#: A buffer that ends off by a tenth of its way, and with it the gradient by a quarter of its size.
_OFF, _CHANGED = 0.1, 0.25
#: Parts of the training after which the gradient is taken.
_LOOKS = (0.25, 0.5, 0.75, 1.0)

Values = dict[str, Tensor]


class SteadyRecorder:
    """Keeps floating buffers after each step, while they go on as they began."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.kept = {n: [b.detach().clone()] for n, b in _floating(model)}

    def keep(self) -> None:
        """Add the buffers as they are now."""
        now = dict(_floating(self.model))
        for name, seen in list(self.kept.items()):
            value = now.get(name)
            if value is None or value.shape != seen[0].shape:
                del self.kept[name]
                continue
            seen.append(value.detach().clone())
            if pace_of(seen[-3:]) is None:
                del self.kept[name]

    def paces(self) -> dict[str, Pace]:
        """What a step does to those that have gone evenly all the way."""
        found = {n: pace_of(seen) for n, seen in self.kept.items() if len(seen) > 3}
        return {n: pace for n, pace in found.items() if pace is not None}


@dataclass(frozen=True)
class Stalled:
    """A buffer that ends elsewhere in 16 bits, and changes the gradient with it.

    Attributes:
        name: the buffer's qualified name.
        wide, low: where it ends in 32 bits and in 16: of several numbers, that which is furthest.
        still: steps after which it no longer moves; None where it moves on, at another pace.
        total: steps of the training.
        look: losses of two 32-bit trainings through either way, shortened.
    """

    name: str
    wide: float
    low: float
    still: int | None
    total: int
    look: SecondLook

    @property
    def harms(self) -> bool:
        """Whether the model learns at less than half the speed for it."""
        return all(map(math.isfinite, self.look.end)) and self.look.slow

    def said(self) -> str:
        """What becomes of it, in words."""
        ends = f"{self.name} ends at {self.low:.4g} in 16 bits, at {self.wide:.4g} in 32"
        if self.still is None:
            return ends
        return f"{ends}: it stands still after {self.still} of {self.total} steps"


@dataclass(frozen=True)
class _Way:
    """Where a buffer is after some step, in both formats."""

    pace: Pace
    reach: int
    low: list[Tensor]

    def wide_at(self, step: int) -> Tensor:
        return self.pace.at(min(step, self.reach))

    def low_at(self, step: int) -> Tensor:
        return self.low[min(step, len(self.low) - 1)]


class Steady:
    """What is asked about the steady buffers of one training.

    Args:
        make: makes the reference and the candidate as they start.
        trained: the reference after the trajectory.
        stream: gives the batches of the training from its first.
        held: batches that are not trained on.
        steps: of the trajectory, and of the whole training.
        seed: of the training.
    """

    def __init__(
        self,
        make: tuple[Callable[[], Trainee], Callable[[], Trainee]],
        trained: Trainee,
        stream: Callable[[], Iterator[Any]],
        held: list[Any],
        steps: tuple[int, int],
        seed: int,
    ) -> None:
        self.make, self.trained, self.stream, self.held = make, trained, stream, held
        (self.length, self.total), self.seed = steps, seed
        self.every = trained.subject.accumulate

    def stalled(self, paces: Mapping[str, Pace]) -> Stalled | None:
        """The buffer that stands still and changes what is learned; None where none does."""
        try:
            found = {n: w for n, p in paces.items() if (w := self._way(n, p)) is not None}
            changed = {n: self._effect(n, way) for n, way in found.items()}
            ways = {n: way for n, way in found.items() if changed[n] > _CHANGED}
            if not ways:
                return None
            name = max(ways, key=lambda n: changed[n])
            return self._told(name, ways[name], self._look(ways))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # a program that does not take a buffer set from outside
            return None

    def _way(self, name: str, pace: Pace) -> _Way | None:
        """Where a buffer goes, if the program moves it from wherever it is, and 16 bits differ."""
        low = self.make[1]()
        dtype = dict(low.model.named_buffers())[name].dtype
        if dtype not in LOW or self.total <= self.length:
            return None
        if not self._off(pace, self.total, pace.played(self.total, dtype, self.every)):
            return None
        reach = self._reach(name, pace)
        if reach is None:
            return None
        played = pace.played(self.total, dtype, self.every, stop=pace.at(reach))
        if not self._off(pace, reach, played) or not self._as_played(name, low, played):
            return None
        return _Way(pace, reach, played)

    def _off(self, pace: Pace, reach: int, played: list[Tensor]) -> bool:
        end = pace.at(reach)
        way = (end - pace.at(0)).norm()
        return bool((played[-1].double() - end).norm() > _OFF * way)

    def _reach(self, name: str, pace: Pace) -> int | None:
        """The step up to which it goes on as it began: a schedule may end at a bound.

        None where it does not go on from a later place: something else counts, and sets it.
        """
        exact, batches = self.make[0](), list(itertools.islice(self.stream(), self.every))

        def goes_on(step: int) -> bool:
            value, wanted = pace.at(step), pace.at(step + 1)
            found = self._stepped(exact, name, value, batches).double()
            return bool(((found - wanted).abs() <= (wanted - value).abs() / 2).all())

        low, high = self.length, self.total - 1
        if high > low and goes_on(high):
            return self.total
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if goes_on(middle) else (low, middle)
        return low + 1 if low > self.length else None

    def _as_played(self, name: str, low: Trainee, played: list[Tensor]) -> bool:
        """Whether a step of the candidate itself leaves the buffer where it has been played to."""
        batches = list(itertools.islice(self.stream(), self.every))
        with low.installed():
            return torch.equal(self._stepped(low, name, played[-2], batches), played[-1])

    def _stepped(self, trainee: Trainee, name: str, value: Tensor, batches: list[Any]) -> Tensor:
        _place(trainee.model, {name: value})
        exact_step(trainee, batches, self.seed, 0)
        return dict(trainee.model.named_buffers())[name].detach().float().clone()

    def _effect(self, name: str, way: _Way) -> float:
        """How far the gradient is off for its size, at the worst."""
        found = 0.0
        for step in (round(part * self.total) for part in _LOOKS):
            wide, low = (self._gradient({name: at(step)}) for at in (way.wide_at, way.low_at))
            size = max(float(wide.norm()), torch.finfo(torch.float32).tiny)
            found = max(found, float((low - wide).norm()) / size)
        return found

    def _gradient(self, values: Values) -> Tensor:
        model = self.trained.model
        with untouched(model):
            _place(model, values)
            found = gradients(self.trained, self.held[0], self.seed).by_name
        every = [p for p in model.named_parameters() if p[1].requires_grad]
        zeros = (found.get(n, torch.zeros_like(p)).detach().double().flatten() for n, p in every)
        return torch.cat(list(zeros))

    def _look(self, ways: Mapping[str, _Way]) -> SecondLook:
        """Two 32-bit trainings as long as the trajectory, through the whole of either way."""
        wide, low = self.make[0](), self.make[0]()
        last = {n: way.wide_at(self.total) for n, way in ways.items()}
        _place(wide.model, last)
        start, stream = losses(wide, self.held), self.stream()
        for step in range(self.length):
            batches = list(itertools.islice(stream, self.every))
            at = round((step + 1) / self.length * self.total)
            for trainee, exact in ((wide, True), (low, False)):
                found = {n: w.wide_at(at) if exact else w.low_at(at) for n, w in ways.items()}
                _place(trainee.model, found)
                exact_step(trainee, batches, self.seed, step)
        _place(wide.model, last)
        _place(low.model, last)  # what counts is the loss that 32 bits end with
        look = SecondLook(self.length, start, None, losses(wide, self.held), losses(low, self.held))
        _place(low.model, {n: way.low_at(self.total) for n, way in ways.items()})
        return measured(look, wide, low) if look.slow else look

    def _told(self, name: str, way: _Way, look: SecondLook) -> Stalled:
        wide, low = way.wide_at(self.total), way.low_at(self.total).double()
        furthest = int((low - wide).abs().flatten().argmax())
        ends = float(wide.flatten()[furthest]), float(low.flatten()[furthest])
        steps = len(way.low) - 2 if len(way.low) <= self.total else None
        return Stalled(name, *ends, steps, self.total, look)


def _floating(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(n, b) for n, b in model.named_buffers() if b.is_floating_point() and b.numel()]


def _place(model: nn.Module, values: Values) -> None:
    buffers = dict(model.named_buffers())
    with torch.no_grad():
        for name, value in values.items():
            buffers[name].copy_(value)
