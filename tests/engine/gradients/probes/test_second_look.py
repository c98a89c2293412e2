"""Weights that go another way than in 32 bits: harmless where the model learns, and only there."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16 import Training
from pytest_fp16.engine.gradients.check import gradient_check
from pytest_fp16.engine.gradients.probes.second_look import (
    SecondLook,
    _lost,
    _worse,
    applied_step,
    losses,
)
from pytest_fp16.engine.training.place import Place
from pytest_fp16.engine.training.trainee import Trainee, initial_state
from pytest_fp16.precision import REFERENCE, precision
from pytest_fp16.settings import Settings


def convolutions():
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)),
    )


@pytest.fixture
def check(digits_training):
    """A function that makes the gradient check of a training with Adam at some rate."""

    def make(name, rate, **changes):
        given = {
            "model": convolutions,
            "optimizer": partial(torch.optim.Adam, lr=rate, eps=1e-4),
            "epochs": 5,
            **changes,
        }
        subject = digits_training(**given)
        return gradient_check(subject, precision(name), Settings(), torch.device("cpu"))

    return make


def test_a_second_moment_that_vanishes_ruins_a_training_that_is_near_its_largest_rate(check):
    """Its loss never doubles after the start, so the first steps alone do not show it."""
    found = check("16-true", 8e-3)
    assert found.verdict == "not equivalent"
    culprit = found.culprit
    assert (culprit.module, culprit.operation) == ("<optimizer>", "exp_avg_sq")
    assert culprit.mechanism == "underflow"
    assert "half the speed" in found.reason
    for name in ("bf16-true", "16-mixed"):
        healthy = check(name, 8e-3)
        assert healthy.verdict == "equivalent", healthy.reason
        assert not any("another way" in note for note in healthy.notes)


def test_longer_steps_are_harmless_where_the_model_learns(check):
    found = check("16-true", 1e-3)
    assert found.verdict == "equivalent", found.reason
    assert any("another way" in note and "still learn" in note for note in found.notes)


def test_weights_that_run_off_do_not_stand_still(check):
    """An epsilon that float16 holds, just: steps are thousands of times too long."""
    adam = partial(torch.optim.Adam, lr=1e-3, eps=1e-7)
    found = check("16-true", 0, optimizer=adam, loss=lambda z, y: F.cross_entropy(z, y) / 100)
    assert found.culprit.mechanism == "underflow"
    assert "stand still" not in found.reason


def test_a_loss_that_is_not_finite_is_no_learning():
    assert SecondLook(8, [2.0], [1.0], [0.5], [float("inf")]).slow
    assert not SecondLook(8, [2.0], [1.0], [0.5], [0.6]).slow


class Counting(nn.Module):
    """Counts the batches it is trained on."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.seen += 1
        return self.body(x)


def test_a_batch_that_the_scaler_makes_try_again_is_counted_once():
    batch = (torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(8).long())
    subject = Training(
        model=Counting,
        optimizer=partial(torch.optim.SGD, lr=1e-5),
        loss=lambda z, y: F.cross_entropy(z, y) * 300,
        train_data=[batch],
        eval_data=[batch],
    )
    place = Place(torch.device("cpu"), "cuda", emulated=True)
    trainee = Trainee(subject, precision("16-mixed"), 0, initial_state(subject, 0), place)
    with trainee.installed():
        applied_step(trainee, [batch], 0, 0)
    assert trainee.skipped > 0
    assert trainee.applied == 1
    assert float(trainee.model.seen) == 1


class Gated(nn.Module):
    """A gate at zero before a clamp at the very edge of the pixels: 16 bits bend its gradient."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        self.gate, self.head = nn.Parameter(torch.zeros(())), nn.Linear(64, 10)

    def forward(self, x):
        x = x.flatten(1)
        h = (x + self.gate * self.body(x)).clamp(0, 1)
        return self.head(h + ((h * 15).round() / 15 - h).detach())


@pytest.mark.parametrize("name", ["16-true", "bf16-true"])
def test_a_gradient_that_16_bits_bend_does_no_harm_where_the_model_learns(check, name):
    found = check(
        name, 0, model=Gated, optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9), epochs=10
    )
    assert found.verdict == "equivalent", found.reason


def test_a_loss_at_the_end_of_what_16_bits_can_tell_is_left_to_the_metric():
    look = SecondLook(20, [0.1, 0.12], [1.5e-5, 1.4e-5], [6e-6, 5e-6], [1.8e-5, 1.9e-5])
    assert look.slow
    assert not look.kept_up
    assert replace(look, metric=(0.95, 0.949, 0.01)).kept_up
    assert replace(look, metric=(0.95, 0.9, 0.01)).slow
    lost = replace(look, candidate=[math.nan], metric=(0.95, 0.95, 0.01))
    assert lost.slow


@pytest.mark.parametrize("name", ["16-true", "16-mixed"])
def test_an_infinite_loss_ends_nothing_while_weights_are_finite(name, digits_training):
    subject = digits_training()
    state, place = initial_state(subject, 0), Place(torch.device("cpu"), "cuda", emulated=True)
    low = Trainee(subject, precision(name), 0, state, place)
    pure = name == "16-true"  # a scaler skips such steps
    assert not _lost(low, 1.0)
    assert not _lost(low, math.inf)
    assert _lost(low, math.nan) == pure
    with torch.no_grad():
        next(iter(low.parameters())).view(-1)[0] = math.inf
    assert _lost(low, math.inf) == pure


def test_a_loss_that_returns_into_the_range_is_looked_at_to_the_end(check):
    """The largest of it is no part of the slope, and falls as the model learns."""

    def loss(z, y):
        return F.cross_entropy(z, y) + 3e4 * F.cross_entropy(z, y).detach()

    found = check("16-true", 1e-3, loss=loss)
    assert found.verdict == "equivalent", found.reason


def test_a_step_that_no_scale_saves_halves_it_once():
    batch = (torch.ones(4, 4), torch.zeros(4).long())
    subject = Training(
        model=lambda: nn.Linear(4, 3),
        optimizer=partial(torch.optim.SGD, lr=0.1),
        loss=lambda z, y: F.cross_entropy(z, y) + (z * 0).sum().sqrt(),
        train_data=[batch],
        eval_data=[batch],
    )
    place = Place(torch.device("cpu"), "cuda", emulated=True)
    # The slope of the root is infinite, its value is not.
    low = Trainee(subject, precision("16-mixed"), 0, initial_state(subject, 0), place)
    assert math.isfinite(applied_step(low, [batch], 0, 0))
    assert (low.applied, low.scale) == (0, 2.0**15)


def test_a_loss_that_has_lost_its_digits_is_no_learning():
    """Its variance by two sums goes below zero, and the loss far below any that is real."""

    def loss(z, y):
        far = z + 100
        spread = (far * far).mean(1) - far.mean(1) ** 2
        return F.cross_entropy(z, y) + 0.05 * (spread - (z - z.mean(1, keepdim=True)).var(1)).mean()

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 4, generator=generator)
    y = x[:, :3].argmax(1)
    data = list(zip(x.split(32), y.split(32), strict=True))
    sgd = partial(torch.optim.SGD, lr=0.1)
    given = {"loss": loss, "train_data": data, "eval_data": data, "epochs": 6}
    subject = Training(model=lambda: nn.Linear(4, 3), optimizer=sgd, **given)
    state, cpu = initial_state(subject, 0), torch.device("cpu")
    fresh = Trainee(subject, REFERENCE, 0, state, Place(cpu))
    low = Trainee(subject, precision("bf16-true"), 0, state, Place(cpu, "cuda", emulated=True))
    own = losses(low, data[:4])
    exact = losses(fresh, data[:4])
    told = _worse(own, fresh, low, data[:4])
    assert all(t >= o for t, o in zip(told, own, strict=True))
    assert any(o < e - 0.5 for o, e in zip(own, exact, strict=True)), (own, exact)
    assert all(t > e - 0.1 for t, e in zip(told, exact, strict=True))


class Carrying(nn.Module):
    """Goes on from the state of the batch before, in a plain attribute."""

    def __init__(self):
        super().__init__()
        self.body, self.state = nn.Linear(4, 3), None

    def forward(self, x):
        found = self.body(x) + (0 if self.state is None else 0.1 * self.state)
        self.state = found.detach()
        return found


@pytest.mark.parametrize("breaks", [False, True])
def test_a_state_in_16_bits_is_widened_with_the_weights(breaks):
    def loss(z, y):
        if breaks and seen and z.dtype == torch.float32:
            raise RuntimeError("not for a program in 32 bits")
        return F.cross_entropy(z, y)

    seen, x = [], torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    data = [(x, torch.arange(8) % 3)] * 2
    sgd = partial(torch.optim.SGD, lr=0.1)
    subject = Training(
        model=Carrying, optimizer=sgd, loss=loss, train_data=data, eval_data=data, epochs=2
    )
    state, cpu = initial_state(subject, 0), torch.device("cpu")
    fresh = Trainee(subject, REFERENCE, 0, state, Place(cpu))
    low = Trainee(subject, precision("bf16-true"), 0, state, Place(cpu, "cuda", emulated=True))
    low.step(data[0])
    own = losses(low, data)
    seen.append(True)
    told = _worse(own, fresh, low, data)
    assert all(t >= o for t, o in zip(told, own, strict=True))
    assert fresh.model.state.dtype == torch.float32
    assert torch.equal(fresh.model.body.weight, low.model.body.weight.float())
    if breaks:
        assert told == own


class Sinking(nn.Module):
    """A classifier beside two directions that are drawn together, by the root of what is left."""

    def __init__(self):
        super().__init__()
        self.body = convolutions()
        self.ways = nn.Parameter(torch.tensor([[1.0, 0.0], [0.6, 0.8]]))

    def forward(self, x):
        return self.body(x)


def test_what_ends_a_longer_look_is_named_by_its_operation(digits_training):
    """The second moment vanishes too, which is why there is a longer look; it is not to blame."""

    def step(model, batch):
        x, y = batch
        one, other = F.normalize(model.ways, dim=1)
        apart = torch.sqrt(2.00001 - 2 * (one * other).sum())
        return F.cross_entropy(model(x), y) + apart

    subject = digits_training(
        model=Sinking,
        loss=None,
        training_step=step,
        optimizer=partial(torch.optim.Adam, lr=8e-3, eps=1e-4),
        epochs=12,
    )
    found = gradient_check(subject, precision("16-true"), Settings(), torch.device("cpu"))
    assert found.verdict == "not equivalent"
    assert (found.culprit.module, found.culprit.operation) == ("<loss>", "sqrt"), found.reason
    assert "steps the loss is not finite" in found.reason
    assert "test_second_look.py" in found.culprit.source
