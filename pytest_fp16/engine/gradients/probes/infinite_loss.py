"""A loss that is infinite in 16 bits although its gradient is finite: does it return?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pytest_fp16.engine.gradients.points import Point
from pytest_fp16.engine.gradients.probes.course import Course
from pytest_fp16.engine.gradients.probes.watched_steps import Replays
from pytest_fp16.theory.decline import falls_below, returns
from pytest_fp16.theory.rounding import FORMATS


def returns_into_range(
    replays: Replays,
    batches: Sequence[Any],
    points: Sequence[Point],
    losses: Sequence[float],
    course: Course,
) -> bool:
    """Whether the loss will be finite in 16 bits before the training ends.

    Args:
        replays: of the candidate, where the reference is now.
        batches: those of the points.
        points: so far; at the last one the loss is infinite.
        losses: of the reference's own steps.
        course: of the training.
    """
    largest = FORMATS[replays.precision.dtype].largest
    if returns(losses, largest, course.total * course.every):
        return True
    lost = [math.isfinite(r) and not math.isfinite(c) for r, c in points[-1].losses]
    number = lost.index(True)
    # The squares of a mean leave the range where their mean does not.
    beyond = replays.here([batches[number]], drawn=number).beyond
    if beyond is None:
        return False
    measured = [(p.step, p.losses[number][0]) for p in points if number < len(p.losses)]
    return falls_below(measured, beyond.reached, largest, course.total)
