"""A loss that is infinite in 16 bits: does it return before the training ends?"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from pytest_fp16.engine.gradients.origins.found import Found
from pytest_fp16.engine.gradients.points import Point
from pytest_fp16.engine.gradients.probes import infinite_loss as home
from pytest_fp16.engine.gradients.probes.infinite_loss import returns_into_range
from pytest_fp16.precision import PRECISIONS

SQUARES = Found("<loss>", "mse_loss", "overflow", 300.0, 80000.0)


class Replay:
    """Sees what left the range, and remembers with which batch it was asked."""

    precision, reference = PRECISIONS["16-true"], None

    def __init__(self, beyond, constant=SQUARES):
        self.seen, self.constant, self.asked = beyond, constant, None

    def here(self, batches, sure=None, drawn=0):
        self.asked, self.sure = (batches, drawn), sure
        return SimpleNamespace(beyond=self.seen if sure is None else self.constant)


@pytest.fixture(autouse=True)
def sums(monkeypatch):
    """What 32 bits add up, on their way to a loss of outputs that are half of their targets."""
    targets, held = torch.tensor([[1.0], [1.0], [10.0]]), [1e3]
    monkeypatch.setattr(home, "numbers", lambda reference, batch: (targets / 2, targets))
    monkeypatch.setattr(home, "gradients", lambda *given: torch.tensor(held).sum())
    return held


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
    course = SimpleNamespace(total=steps, every=1, extra=["a", "b"])
    found = returns_into_range(replay, points, [2e4] * 20, course)
    assert found is comes_back
    assert replay.asked == (["b"], 1)


def test_a_sum_behind_what_left_the_range_has_to_return_too(sums):
    points = [point(10, (2e4, math.inf)), point(20, (1e4, math.inf))]
    course = SimpleNamespace(total=40, every=1, extra=["a"])
    assert returns_into_range(Replay(SQUARES), points, [2e4] * 20, course)
    sums.append(3e5)
    assert not returns_into_range(Replay(SQUARES), points, [2e4] * 20, course)


@pytest.mark.parametrize(("beyond", "comes_back"), [(SQUARES, False), (None, True)])
def test_or_where_the_mean_of_the_targets_brings_it_back(beyond, comes_back):
    replay, course = Replay(SQUARES, beyond), SimpleNamespace(total=30, every=1, extra=["a"])
    points = [point(10, (2e4, math.inf)), point(20, (2e4, math.inf))]
    assert returns_into_range(replay, points, [2e4] * 20, course) is comes_back
    outputs = torch.zeros(3, 1, requires_grad=True)
    given = replay.sure.applied(outputs)
    assert given.flatten().tolist() == [4.0, 4.0, 4.0]
    assert given.requires_grad
    other = torch.zeros(2, 1)
    assert replay.sure.applied(other) is other


def test_a_loss_that_itself_falls_into_the_range_is_not_looked_into():
    losses = [1e5 * 0.99**step for step in range(20)]
    replay = Replay(None)
    points = [point(20, (losses[-1], math.inf))]
    course = SimpleNamespace(total=50, every=4, extra=["a"])
    assert returns_into_range(replay, points, losses, course)
    assert replay.asked is None
