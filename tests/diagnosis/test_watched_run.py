"""A run that is made again ends where it is asked to, or where something shows."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Settings
from pytest_fp16.diagnosis.watched_run import culprit_of, watched_run, when
from pytest_fp16.engine.training.runs import Runs
from pytest_fp16.engine.training.validation import validated
from pytest_fp16.precision import PRECISIONS

CPU = torch.device("cpu")
HALF = PRECISIONS["16-true"]


class Late(nn.Module):
    """Leaves the range, or raises, from its fifth training step on."""

    def __init__(self, raises):
        super().__init__()
        self.raises, self.steps = raises, 0

    def forward(self, x):
        self.steps += self.training
        if self.steps < 5 or x.dtype != torch.float16:
            return x
        if self.raises:
            raise ValueError("the fifth step")
        return x + 0 * (60000.0 * torch.ones_like(x) * 2)


@pytest.fixture
def runs(digits_training):
    def make(raises=False):
        model = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10), Late(raises))  # noqa: E731
        found = validated(digits_training(model=model), CPU)
        return Runs(found, Settings().with_(seeds=2), CPU)

    return make


def test_it_ends_where_a_watched_step_shows_something(runs):
    seen = watched_run(runs(), HALF, 0, lambda _: True, None)
    assert (seen.at, seen.error) == ((0, 4), None)
    culprit = culprit_of(seen.origin.found, HALF, 0, seen.at)
    assert (culprit.module, culprit.mechanism) == ("2", "overflow")
    assert culprit.evidence.endswith("; first in epoch 1, step 5 of seed 0")


def test_it_ends_where_it_is_asked_to_and_unwatched_steps_show_nothing(runs):
    seen = watched_run(runs(), HALF, 0, lambda _: False, (1, 2))
    assert (seen.at, seen.error, seen.origin.found) == ((1, 2), None, None)
    assert watched_run(runs(), PRECISIONS["32-true"], 0, lambda _: True, None) is None


def test_it_ends_where_the_program_raises(runs):
    seen = watched_run(runs(raises=True), HALF, 0, lambda _: False, None)
    assert seen.at == (0, 4)
    assert "the fifth step" in str(seen.error)


def test_a_step_that_is_not_known_has_no_words():
    assert when(3, None) == ""
    assert when(3, (1, 0)) == "; first in epoch 2, step 1 of seed 3"
