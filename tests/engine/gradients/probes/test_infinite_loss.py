"""A loss that is infinite in 16 bits: does it return before the training ends?"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from pytest_fp16.engine.gradients.origins.found import Found
from pytest_fp16.engine.gradients.points import Point
from pytest_fp16.engine.gradients.probes.infinite_loss import returns_into_range
from pytest_fp16.precision import PRECISIONS

SQUARES = Found("<loss>", "mse_loss", "overflow", 300.0, 80000.0)


class Replay:
    """Sees what left the range, and remembers with which batch it was asked."""

    precision = PRECISIONS["16-true"]

    def __init__(self, beyond):
        self.beyond, self.asked = beyond, None

    def here(self, batches, drawn):
        self.asked = batches, drawn
        return self


def point(step, *losses):
    return Point(step, list(losses), 0.0, {}, {}, [], 1.0, True, 0, 0.0, False)


@pytest.mark.parametrize(
    ("beyond", "steps", "comes_back"),
    [(SQUARES, 40, True), (SQUARES, 22, False), (None, 40, False)],
)
def test_it_returns_where_what_left_the_range_does(beyond, steps, comes_back):
    """The mean halves in ten steps, and the squares are beyond float16 by a fifth."""
    points = [point(10, (9e4, 1.0), (2e4, math.inf)), point(20, (9e4, 1.0), (1e4, math.inf))]
    replay = Replay(beyond)
    course = SimpleNamespace(total=steps, every=1)
    found = returns_into_range(replay, ["a", "b"], points, [2e4] * 20, course)
    assert found is comes_back
    assert replay.asked == (["b"], 1)


def test_a_loss_that_itself_falls_into_the_range_is_not_looked_into():
    losses = [1e5 * 0.99**step for step in range(20)]
    replay = Replay(None)
    points = [point(20, (losses[-1], math.inf))]
    course = SimpleNamespace(total=50, every=4)
    assert returns_into_range(replay, ["a"], points, losses, course)
    assert replay.asked is None
