"""One training run: what it starts from, what a step does, and how it ends."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from pytest_fp16.engine.randomness import preserved_state
from pytest_fp16.engine.training.guard import COLLAPSED
from pytest_fp16.engine.training.place import Amendment, Place
from pytest_fp16.engine.training.train import train, trained
from pytest_fp16.engine.training.trainee import initial_state
from pytest_fp16.precision import PRECISIONS

CPU = torch.device("cpu")
EMULATED = Place(CPU, "cuda", emulated=True)
NATIVE = Place(CPU, "cpu", emulated=False)


@pytest.fixture(autouse=True)
def _state():
    with preserved_state():
        yield


def run(subject, precision="32-true", seed=0, place=EMULATED, **keywords):
    state = initial_state(subject, seed)
    return train(subject, PRECISIONS[precision], seed, state, place, **keywords)


def test_the_trained_model_is_the_one_that_a_run_scores(digits_training, digits):
    subject = digits_training()
    model = trained(subject, PRECISIONS["32-true"], 0, initial_state(subject, 0), EMULATED)
    _, (x, y) = digits
    share = float((model(x).argmax(-1) == y).float().mean())
    assert not model.training
    assert share == pytest.approx(run(subject).metric)


@pytest.mark.parametrize("name", ["32-true", "16-true", "16-mixed", "bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("place", [EMULATED, NATIVE], ids=["emulated", "native"])
def test_every_precision_learns_and_keeps_its_dtypes(digits_training, name, place):
    result = run(digits_training(), name, place=place)
    precision = PRECISIONS[name]
    assert result.ended == "finished", result.error
    assert result.metric > 0.85
    held = "float32" if precision.mixed else precision.dtype_name
    assert result.state_dtypes == {"parameters": [held], "optimizer": [held]}
    assert result.dtypes[precision.dtype_name] > 0


def test_the_mixed_precisions_compute_in_both_formats(digits_training):
    for name in ("16-mixed", "bf16-mixed"):
        dtypes = run(digits_training(), name).dtypes
        assert dtypes["float32"] > 0
        assert dtypes[PRECISIONS[name].dtype_name] > 0


def test_pure_16_bit_optimizer_state_never_sees_float32(digits_training):
    result = run(digits_training(), "16-true")
    assert set(result.dtypes) == {"float16"}


def test_a_run_is_repeated_exactly(digits_training, digits):
    (x, y), _ = digits
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), batch_size=64, shuffle=True
    )
    subject = digits_training(train_data=loader)
    first, second, other = run(subject), run(subject), run(subject, seed=1)
    assert first.losses == second.losses
    assert first.losses != other.losses


def test_dropout_drops_the_same_in_every_precision(digits_training):
    def noisy():
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))

    subject = digits_training(model=noisy, epochs=1)
    first = {}
    for name in ("32-true", "16-true", "bf16-mixed"):
        seen = []
        run(subject, name, tell=lambda epoch, step, loss, seen=seen: seen.append(loss))
        first[name] = seen[:3]
    # Another mask moves the loss by several per cent; rounding moves it by less than one.
    assert first["16-true"] == pytest.approx(first["32-true"], rel=2e-3)
    assert first["bf16-mixed"] == pytest.approx(first["32-true"], rel=1e-2)


@pytest.mark.parametrize("keywords", [{}, {"foreach": True}, {"fused": True}], ids=str)
def test_adam_with_a_sound_epsilon_in_each_of_its_forms(digits_training, keywords):
    def adam(params):
        return torch.optim.Adam(params, lr=3e-3, eps=1e-4, **keywords)

    result = run(digits_training(optimizer=adam), "16-true")
    assert result.ended == "finished"
    assert result.metric > 0.75
    assert result.state_dtypes["optimizer"] == ["float16"]


def test_adams_default_epsilon_is_zero_in_float16(digits_training):
    subject = digits_training(optimizer=lambda params: torch.optim.Adam(params, lr=1e-3))
    assert run(subject).ended == "finished"
    result = run(subject, "16-true")
    assert result.ended == "nan"
    assert result.failed_at == (0, 0)


def test_an_optimizer_that_asks_for_the_loss_itself(digits_training, digits):
    (x, y), _ = digits
    subject = digits_training(
        optimizer=lambda params: torch.optim.LBFGS(params, lr=0.5, max_iter=8),
        train_data=[(x[:400], y[:400])],
        epochs=6,
    )
    result = run(subject)
    assert result.ended == "finished", result.error
    assert result.losses[-1] < 0.5 * result.losses[0]


def test_the_scaler_skips_and_goes_on(digits_training):
    def loud(outputs, targets):
        return 50 * nn.functional.cross_entropy(outputs, targets)

    gentle = lambda params: torch.optim.SGD(params, lr=0.002)  # noqa: E731
    result = run(digits_training(loss=loud, optimizer=gentle), "16-mixed")
    assert result.ended == "finished"
    assert result.skipped > 0
    assert result.scale == 2.0 ** (16 - result.skipped)


def test_a_loss_scale_that_only_falls_has_collapsed(digits_training):
    class Square(nn.Module):
        def forward(self, x):
            far = x * 1e3
            return far * far / 1e6

    def model():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), Square(), nn.Linear(64, 10))

    subject = digits_training(model=model, epochs=4)
    result = run(subject, "16-mixed")
    assert result.ended == "collapsed scale"
    assert result.skipped == COLLAPSED
    assert run(subject).ended == "finished"


def test_a_short_run_whose_every_step_was_skipped_has_lost_its_scale(digits_training):
    subject = digits_training(loss=lambda o, t: nn.functional.cross_entropy(o, t) * math.inf)
    short = replace(subject, train_data=subject.train_data[:3], epochs=1)
    assert run(short, "16-mixed").ended == "collapsed scale"


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_loss_that_is_lost_while_its_gradient_is_not_ends_a_scaled_run(
    digits_training, accumulate
):
    """0 log 0 of the targets' own is NaN, and a constant: no step is skipped for it."""

    def divergence(outputs, targets):
        soft = torch.full_like(outputs, 1e-9).scatter(1, targets[:, None], 1.0)
        return (soft * (soft.log() - outputs.log_softmax(-1))).sum(-1).mean()

    subject = digits_training(loss=divergence, accumulate=accumulate)
    assert run(subject, "bf16-mixed").ended == "finished"
    result = run(subject, "16-mixed")
    assert result.ended == "nan"
    assert result.failed_at == (0, accumulate - 1)


def test_a_loss_beyond_the_format_ends_the_run(digits_training):
    def far(outputs, targets):
        return (outputs - 300).square().mean() / 1e5

    subject = digits_training(loss=far)
    assert run(subject).ended == "finished"
    assert run(subject, "bf16-true").ended == "finished"
    assert run(subject, "16-true").ended == "infinite loss"


def test_a_loss_that_runs_away_has_diverged(digits_training, digits):
    (x, _), (tx, _) = digits
    data = list(zip(x.split(64), x.flatten(1).sum(1, keepdim=True).split(64), strict=True))

    def subject(rate):
        return digits_training(
            model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 1)),
            optimizer=lambda params: torch.optim.SGD(params, lr=rate),
            loss=nn.functional.mse_loss,
            train_data=data,
            eval_data=[(tx, tx.flatten(1).sum(1, keepdim=True))],
        )

    result = run(subject(0.12))
    assert result.ended == "diverged"
    assert result.failed_at == (0, len(data) - 1)
    assert run(subject(0.01)).ended == "finished"


def test_a_loss_that_runs_away_and_returns_has_not(digits_training, digits):
    (x, y), _ = digits

    class Overshoots(torch.optim.SGD):
        """A first step that is far too long, and half of it back in each of the next."""

        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                state = self.state[p]
                if "start" not in state:
                    state["start"] = p.detach().clone()
                    p.data.add_(1e3 * torch.randn(p.shape))
                else:
                    p.data.lerp_(state["start"], 0.9)

    def subject(epochs, data):
        return digits_training(optimizer=Overshoots, train_data=data, epochs=epochs)

    assert run(subject(12, [(x, y)]), usual=3.0).ended == "finished"
    assert run(subject(2, [(x, y)]), usual=3.0).ended == "diverged"


def test_a_loss_that_starts_later_has_not_run_away(digits_training):
    """A curriculum: an epoch without loss says nothing of the size of those that follow."""

    def subject():
        steps = iter(range(10**6))
        count = len(digits_training().train_data)

        def step(model, batch):
            weight = float(next(steps) >= count)
            return weight * nn.functional.cross_entropy(model(batch[0]), batch[1])

        return digits_training(training_step=step, loss=None, epochs=2)

    assert run(subject()).ended == "finished"


def test_what_a_16_bit_run_raises_is_its_end(digits_training):
    class Strict(nn.Module):
        def forward(self, x):
            if x.dtype == torch.float16:
                raise RuntimeError("no kernel for float16")
            return x

    def model():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), Strict())

    result = run(digits_training(model=model), "16-true")
    assert result.ended == "raised"
    assert result.error == "RuntimeError: no kernel for float16"
    assert run(digits_training(model=model)).ended == "finished"


def test_a_constant_loss_scale_is_taken_out_of_the_gradients(digits_training):
    subject = digits_training()
    plain, scaled = (
        run(subject, "16-true", amendment=Amendment(loss_scale=scale)) for scale in (None, 64.0)
    )
    assert scaled.losses == pytest.approx(plain.losses, rel=1e-2)


def test_the_users_own_training_step(digits_training):
    def step(model, batch):
        x, y = batch
        return nn.functional.cross_entropy(model(x), y)

    plain = run(digits_training())
    assert run(digits_training(loss=None, training_step=step)).losses == plain.losses


def test_regression_is_judged_by_r_squared(digits_training, digits):
    (x, _), (tx, _) = digits
    target = x.flatten(1).mean(1, keepdim=True)
    subject = digits_training(
        model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 1)),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.01),
        loss=nn.functional.mse_loss,
        train_data=list(zip(x.split(64), target.split(64), strict=True)),
        eval_data=[(tx, tx.flatten(1).mean(1, keepdim=True))],
        epochs=10,
    )
    result = run(subject, "16-true")
    assert result.score.name == "R²"
    assert result.metric == pytest.approx(run(subject).metric, abs=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["16-true", "16-mixed", "bf16-true", "bf16-mixed"])
def test_native_training_on_a_gpu(digits_training, convolutional, name):
    place = Place(torch.device("cuda"), "cuda", emulated=False)
    subject = digits_training(model=convolutional)
    native, emulated = run(subject, name, place=place), run(subject, name)
    assert native.ended == "finished", native.error
    assert native.metric == pytest.approx(emulated.metric, abs=0.03)


def test_a_sum_that_leaves_the_range_and_returns_is_no_end(digits_training):
    """What is trained feels the gradient, which is finite all along."""

    def summed(outputs, targets):
        wanted = 3 * nn.functional.one_hot(targets, 10).to(outputs.dtype)
        return 300 * (outputs - wanted).square().sum()

    given = {"loss": summed, "optimizer": partial(torch.optim.SGD, lr=3e-6, momentum=0.9)}
    subject = digits_training(**given, epochs=6)
    result = run(subject, "16-true")
    assert result.ended == "finished"
    assert math.isinf(result.losses[0])
    assert math.isfinite(result.losses[-1])
    assert abs(result.metric - run(subject).metric) < 0.03
