"""What ends a training run early: a loss that runs away, and one that only grows."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn

from pytest_fp16 import check
from pytest_fp16.engine.randomness import preserved_state
from pytest_fp16.engine.training.guard import Ended, Guard, all_finite
from pytest_fp16.engine.training.place import Place
from pytest_fp16.engine.training.train import train
from pytest_fp16.engine.training.trainee import Trainee, initial_state
from pytest_fp16.errors import ModelError
from pytest_fp16.precision import PRECISIONS
from pytest_fp16.report.message import message

EMULATED = Place(torch.device("cpu"), "cuda", emulated=True)


@pytest.fixture(autouse=True)
def _state():
    with preserved_state():
        yield


class Weighed(nn.Module):
    """A linear layer that counts its steps, so that a term can be weighed ever more."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.seen += self.training
        return self.head(x.flatten(1))


def growing(model, batch):
    """A curriculum: what is learned is weighed a hundred times more at the end."""
    x, y = batch
    loss = nn.functional.cross_entropy(model(x), y)
    return loss * (0.01 + (model.seen / 20) ** 2)


def late(model, batch):
    """A queue of negatives that is empty at first: the first loss is small by its nature."""
    x, y = batch
    outputs = model(x)
    weight = 1e-3 if model.seen == 1 else 1.0
    return weight * nn.functional.cross_entropy(outputs, y)


def the_same(outputs, labels):
    """A metric that ties with its start."""
    return torch.full((len(outputs),), 0.9)


def run(subject, precision, **keywords):
    state = initial_state(subject, 0)
    return train(subject, PRECISIONS[precision], 0, state, EMULATED, **keywords)


def test_one_batch_that_is_far_out_is_no_divergence(digits_training):
    trainee = Trainee(
        digits_training(), PRECISIONS["bf16-true"], 0, initial_state(digits_training(), 0), EMULATED
    )
    usual = [0.5] * 40
    for spikes, ended in ((1, False), (2, False), (8, True)):
        guard = Guard(trainee.model, usual=0.6)
        guard.first = 0.5
        losses = [*usual[spikes:], *[400.0] * spikes]
        if ended:
            with pytest.raises(Ended, match="diverged"):
                guard.after_epoch(trainee, 0, losses)
        else:
            guard.after_epoch(trainee, 0, losses)
            assert guard.away_at is None


def test_a_loss_that_grows_while_the_metric_does_is_no_divergence(digits_training):
    subject = digits_training(model=Weighed, training_step=growing, loss=None)
    result = run(subject, "32-true")
    assert max(result.losses) > 12 * 0.01 * math.log(10)
    assert result.ended == "finished"
    report = check(subject, precision="bf16-mixed", seeds=2)
    assert report.verdict in ("equivalent", "inconclusive")
    assert "diverged" not in message(report)


def test_a_loss_that_is_small_at_first_and_comes_down_is_no_divergence(digits_training):
    subject = digits_training(model=Weighed, training_step=late, loss=None, metric=the_same)
    result = run(subject, "32-true")
    assert result.losses[-1] > 12 * 1e-3 * math.log(10)
    assert result.ended == "finished"


def test_a_divergence_is_told_with_its_figures(digits_training):
    subject = digits_training(model=Weighed, training_step=growing, loss=None, metric=the_same)
    with pytest.raises(ModelError) as refused:
        check(subject, precision="16-mixed", seeds=3)
    said = str(refused.value)
    assert re.search(r"it diverged: its loss is \d\S* in the last quarter of an epoch, 0.0", said)
    assert "untrained; the_same 0.9, 0.9 before (seed 0)" in said


@pytest.mark.parametrize("precision", ["16-true", "bf16-mixed"])
def test_a_loss_that_ran_away_into_guesses_is_the_32_bit_trainings_own(digits_training, precision):
    """One story for all precisions, whether they break, too, or not: steps are far too long."""
    subject = digits_training(optimizer=lambda params: torch.optim.SGD(params, lr=3e3))
    with pytest.raises(ModelError, match=r"the 32-bit training itself fails.*it diverged"):
        check(subject, precision=precision, seeds=3)


def test_a_loss_that_the_step_has_scaled_is_asked_for(digits_training):
    scaler = torch.amp.GradScaler("cpu")

    def scaled(model, batch):
        return scaler.scale(nn.functional.cross_entropy(model(batch[0]), batch[1]))

    subject = digits_training(training_step=scaled, loss=None)
    with pytest.raises(ModelError, match=r"untrained \(is it scaled already\? The check scales it"):
        check(subject, precision="16-mixed", seeds=3)


def test_beside_a_32_bit_run_the_loss_is_held_against_its_largest(digits_training):
    subject = digits_training(model=Weighed, training_step=growing, loss=None)
    ended = run(subject, "bf16-true", usual=1e-4)
    assert ended.ended == "diverged"
    assert ended.failed_at is not None
    assert run(subject, "bf16-true", usual=1.0).ended == "finished"


def test_a_run_beside_another_ends_at_once_and_the_32_bit_run_at_its_end(digits_training):
    subject = digits_training(epochs=8)
    model = Trainee(subject, PRECISIONS["32-true"], 0, initial_state(subject, 0), EMULATED)
    beside, alone = Guard(model.model, usual=1.0), Guard(model.model)
    for guard in (beside, alone):
        guard.after_step(model, 0, 0, 1.0)
        guard.after_epoch(model, 0, [9.0] * 20)
    with pytest.raises(Ended, match="diverged") as end:
        beside.after_epoch(model, 1, [11.0] * 20)
    assert end.value.at == (1, 19)
    alone.after_epoch(model, 1, [11.0] * 20)
    assert alone.away_at == (1, 19)
    alone.after_epoch(model, 2, [2.0] * 20)
    assert alone.away_at is None


def test_a_tensor_of_integers_or_none_is_finite():
    assert all_finite([torch.arange(3), torch.ones(0)])
    assert not all_finite([torch.ones(2), torch.tensor([1.0, math.nan])])
