"""A loss that is infinite in 16 bits although its gradient is finite: does it return?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pytest_fp16.engine.emulation.operations import flat
from pytest_fp16.engine.gradients.origins.forward_lines import goes_backwards
from pytest_fp16.engine.gradients.points import Point, gradients
from pytest_fp16.engine.gradients.probes.course import Course
from pytest_fp16.engine.gradients.probes.late_failures import numbers
from pytest_fp16.engine.gradients.probes.watched_steps import Replays
from pytest_fp16.engine.tracing.recorder import largest_magnitude
from pytest_fp16.engine.uncompiled import FollowingMode
from pytest_fp16.theory.decline import falls_below, returns
from pytest_fp16.theory.rounding import FORMATS


@dataclass(frozen=True)
class Constant:
    """Outputs that are the same whatever the inputs are.

    Attributes:
        wanted: them, in the shape of the outputs.
        passes: as a `Confidence` has them.
    """

    wanted: Tensor
    passes: int = 0

    def applied(self, t: Tensor) -> Tensor:
        """An output of their shape, with these values and its own slope."""
        if t.shape != self.wanted.shape or not t.is_floating_point():
            return t
        return self.wanted.to(t) + (t - t.detach())


def returns_into_range(
    replays: Replays,
    points: Sequence[Point],
    losses: Sequence[float],
    course: Course,
) -> bool:
    """Whether the loss will be finite in 16 bits before the training ends.

    Args:
        replays: of the candidate, where the reference is now.
        points: so far; at the last one the loss is infinite.
        losses: of the reference's own steps.
        course: of the training.
    """
    largest = FORMATS[replays.precision.dtype].largest
    if returns(losses, largest, course.total * course.every):
        return True
    lost = [math.isfinite(r) and not math.isfinite(c) for r, c in points[-1].losses]
    number = lost.index(True)
    batch = course.extra[number]
    measured = [(p.step, p.losses[number][0]) for p in points if number < len(p.losses)]
    reached = _reached(replays, batch, number)
    if falls_below(measured, reached, largest, course.total):
        return True
    return _bears_a_constant(replays, batch, number)


def _reached(replays: Replays, batch: Any, seed: int) -> float:
    """The largest value on the way to the loss: squares leave the range where their mean does not.

    The first to leave it is named by the step in 16 bits, also within a kernel of several steps;
    what comes of it there is infinite, and has a size in 32 bits alone.
    """
    first = replays.here([batch], drawn=seed).beyond
    reach = Reach()
    with reach:
        gradients(replays.reference, batch, seed)
    if first is None or math.isnan(first.reached):
        return math.inf
    return max(reach.largest, first.reached)


class Reach(FollowingMode):
    """Remembers how far the values of a forward pass reach, in `largest`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not goes_backwards():
            made = [t for t in flat(out) if isinstance(t, Tensor) and t.is_floating_point()]
            self.largest = max([self.largest, *map(largest_magnitude, made)])
        return out


def _bears_a_constant(replays: Replays, batch: Any, seed: int) -> bool:
    """Whether the loss is finite once the mean of the targets is learned, and nothing else.

    A regression that does not come as far has learned nothing, and has no verdict.
    """
    found = numbers(replays.reference, batch)
    if found is None:
        return False
    _, targets = found
    constant = Constant(targets.mean(0, keepdim=True).expand_as(targets))
    return replays.here([batch], constant, drawn=seed).beyond is None
