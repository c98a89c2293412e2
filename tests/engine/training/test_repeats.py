"""What a training keeps outside the model is shared by its runs, and told."""

import numpy as np
import pytest
import torch
from torch import nn

from pytest_fp16 import check
from pytest_fp16.engine.training.repeats import FirstStep
from pytest_fp16.engine.training.validation import validated
from pytest_fp16.errors import SettingError

CPU = torch.device("cpu")
LOSS = nn.functional.cross_entropy


def first_step(training):
    opening = validated(training, CPU).opening
    assert isinstance(opening, FirstStep)
    return opening


def run(training):
    for x, y in training.train_data:
        training.training_step(training.model(), (x, y))


def counting(until, weight):
    count = [0]

    def step(model, batch):
        count[0] += 1
        return LOSS(model(batch[0]), batch[1]) * weight(count[0], until)

    return step


@pytest.mark.parametrize(
    ("until", "weight"),
    [
        (12, lambda n, until: 1e5 if n <= until else 1.0),  # a warm-up that is over by then
        (2000, lambda n, until: n / until),  # and one that goes on
    ],
)
def test_steps_that_are_counted_outside_the_model_drift(digits_training, until, weight):
    training = digits_training(loss=None, training_step=counting(until, weight))
    opening = first_step(training)
    for _ in range(3):
        run(training)
    assert "the training remembers earlier runs: its first step" in opening.drift()


def test_what_the_model_counts_does_not(digits_training):
    class Counts(nn.Sequential):
        n = 0

    def step(model, batch):
        model.n += 1
        return LOSS(model(batch[0]), batch[1]) * min(1.0, model.n / 5)

    made = lambda: Counts(nn.Flatten(), nn.Linear(64, 10))  # noqa: E731
    training = digits_training(model=made, loss=None, training_step=step)
    opening = first_step(training)
    run(training)
    assert not opening.draws
    assert opening.drift() is None


def averaging(decay, start=None):
    """A step that pulls weights to their average, which it keeps outside the model."""
    average = {}

    def step(model, batch):
        for name, p in model.named_parameters():
            kept = average.get(name, p.detach() if start is None else torch.full_like(p, start))
            average[name] = decay * kept + (1 - decay) * p.detach()
        pull = sum(((p - average[name]) ** 2).sum() for name, p in model.named_parameters())
        return LOSS(model(batch[0]), batch[1]) + 0.1 * pull

    return step


def trained(training):
    model = training.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(10):
        for batch in training.train_data:
            optimizer.zero_grad()
            training.training_step(model, batch).backward()
            optimizer.step()


@pytest.mark.parametrize("start", [None, 0.5])
@pytest.mark.parametrize("decay", [0.7, 0.9, 0.99])
def test_an_average_outside_the_model_drifts(digits_training, decay, start):
    """It is moved by each step that is made to look at it, too."""
    training = digits_training(loss=None, training_step=averaging(decay, start))
    opening = first_step(training)
    trained(training)
    assert "the training remembers earlier runs: its first step" in opening.drift()


@pytest.mark.parametrize("chance", [0.1, 0.5])
def test_what_is_drawn_now_and_then_is_no_drift(digits_training, chance):
    for seed in range(20):
        own = np.random.default_rng(seed)

        def step(model, batch, own=own):
            return LOSS(model(batch[0]), batch[1]) * (2.0 if own.random() < chance else 1.0)

        opening = first_step(digits_training(loss=None, training_step=step))
        assert opening.drift() is None, seed


def test_a_training_that_repeats_makes_one_step_more(digits_training, monkeypatch):
    opening = first_step(digits_training())
    monkeypatch.setattr(opening, "_losses", lambda n: opening.before[:1] * n if n == 1 else 1 / 0)
    assert opening.drift() is None


def test_what_is_logged_outside_the_model_does_no_harm(digits_training):
    seen = []

    def step(model, batch):
        loss = LOSS(model(batch[0]), batch[1])
        seen.append(float(loss.detach()))
        return loss

    training = digits_training(loss=None, training_step=step)
    opening = first_step(training)
    run(training)
    assert opening.drift() is None


def test_draws_of_a_generator_of_its_own_are_told_and_are_no_drift(digits_training):
    own = np.random.default_rng(0)

    def step(model, batch):
        noise = torch.tensor(own.standard_normal(batch[0].shape), dtype=batch[0].dtype)
        return LOSS(model(batch[0] + 0.3 * noise), batch[1])

    training = digits_training(loss=None, training_step=step)
    found = validated(training, CPU)
    assert found.opening.draws
    assert any("draws from a generator of its own" in note for note in found.notes)
    run(training)
    assert found.opening.drift() is None


def test_a_model_with_dropout_repeats(digits_training):
    def model():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 10))

    opening = first_step(digits_training(model=model))
    assert not opening.draws
    assert opening.drift() is None


def test_a_broken_training_behind_a_count_does_not_pass(digits_training):
    training = digits_training(
        loss=None,
        training_step=counting(45, lambda n, until: 1e5 if n <= until else 1.0),
        optimizer=lambda params: torch.optim.Adam(params, lr=3e-3, eps=1e-4),
        epochs=3,
    )
    report = check(training, precision="16-true", seeds=2)
    assert report.verdict == "inconclusive", str(report)
    assert "the training remembers earlier runs" in str(report)


@pytest.mark.parametrize("beside", [False, True])
def test_parameters_that_are_not_the_models_are_refused(digits_training, beside):
    torch.manual_seed(0)
    outside = nn.Linear(64, 10)
    centres = nn.Parameter(torch.zeros(10, 10))

    def optimizer(params):
        held = [*params, centres] if beside else outside.parameters()
        return torch.optim.SGD(held, lr=0.1)

    message = (
        rf"holds {1 if beside else 2} parameter\(s\) that are not the model's \(of shape \(10, "
    )
    with pytest.raises(SettingError, match=message):
        validated(digits_training(optimizer=optimizer), CPU)


def test_copies_that_each_optimizer_makes_are_its_own(digits_training):
    class Masters(torch.optim.SGD):
        """Keeps copies of the weights, and writes them back."""

        def __init__(self, params, lr):
            self.given = list(params)
            super().__init__([p.detach().clone().requires_grad_() for p in self.given], lr=lr)

        def zero_grad(self, set_to_none=True):
            for p in self.given:
                p.grad = None

        def step(self, closure=None):
            masters = self.param_groups[0]["params"]
            for master, p in zip(masters, self.given, strict=True):
                master.grad = None if p.grad is None else p.grad.clone()
            super().step()
            with torch.no_grad():
                for master, p in zip(masters, self.given, strict=True):
                    p.copy_(master)

    training = digits_training(optimizer=lambda params: Masters(params, 0.1))
    assert validated(training, CPU).opening.drift() is None
