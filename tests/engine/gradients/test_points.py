"""Gradients of the same batches at the same weights, on trainings whose gradients are known."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16 import Training
from pytest_fp16.engine.gradients.points import (
    Point,
    examine_point,
    gradients,
    loss_is_off,
    scaled_gradients,
)
from pytest_fp16.engine.training.place import Place
from pytest_fp16.engine.training.trainee import Trainee, initial_state
from pytest_fp16.precision import REFERENCE, precision
from pytest_fp16.theory.gradient import Noise
from pytest_fp16.theory.rounding import BFLOAT16, FLOAT16

CPU = torch.device("cpu")


def batches(count=4):
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(16, 4, generator=generator), torch.randint(0, 3, (16,), generator=generator))
        for _ in range(count)
    ]


def trainee(name, model=lambda: nn.Linear(4, 3), loss=F.cross_entropy, **more):
    subject = Training(
        model=model,
        optimizer=partial(torch.optim.SGD, lr=0.1),
        loss=loss,
        train_data=batches(),
        eval_data=batches(),
        **more,
    )
    wanted = REFERENCE if name == "32-true" else precision(name)
    place = Place(CPU, "cuda", emulated=name != "32-true")
    return Trainee(subject, wanted, 0, initial_state(subject, 0), place)


class Restless(nn.Module):
    """Draws, and keeps a running average."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.head = nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.drop(self.norm(x)))


@pytest.mark.parametrize("scale", [1.0, 256.0])
def test_gradients_are_those_of_autograd_whatever_the_scale(scale):
    pupil, (x, y) = trainee("32-true"), batches()[0]
    found = gradients(pupil, (x, y), 0, scale)
    loss = F.cross_entropy(pupil.model(x), y)
    wanted = torch.autograd.grad(loss, list(pupil.model.parameters()))
    assert found.loss == pytest.approx(float(loss.detach()))
    assert list(found.by_name) == ["weight", "bias"]
    for have, want in zip(found.by_name.values(), wanted, strict=True):
        torch.testing.assert_close(have, want)


@pytest.mark.parametrize("name", ["32-true", "16-true", "16-mixed"])
def test_nothing_of_the_trainee_is_changed_and_the_seed_says_what_is_drawn(name):
    pupil, batch = trainee(name, Restless), batches()[0]
    before = {k: v.clone() for k, v in pupil.model.state_dict().items()}
    first, again, other = (gradients(pupil, batch, seed) for seed in (0, 0, 1))
    assert all(torch.equal(v, before[k]) for k, v in pupil.model.state_dict().items())
    assert all(p.grad is None for p in pupil.model.parameters())
    assert torch.equal(first.by_name["head.weight"], again.by_name["head.weight"])
    assert not torch.equal(first.by_name["head.weight"], other.by_name["head.weight"])


def test_frozen_parameters_have_no_gradient_here():
    def frozen():
        model = nn.Linear(4, 3)
        model.bias.requires_grad_(False)
        return model

    assert list(gradients(trainee("32-true", frozen), batches()[0], 0).by_name) == ["weight"]


def test_parameters_that_no_optimizer_steps_have_none_either():
    """Nor does what one batch leaves there reach the next."""
    pupil = trainee("32-true", lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)))
    pupil.optimizer = torch.optim.SGD([p for p in pupil.model.parameters() if p.dim() == 2], lr=0.1)
    for batch in batches():
        assert list(gradients(pupil, batch, 0, 1024.0).by_name) == ["0.weight", "1.weight"]
        assert all(p.grad is None for p in pupil.model.parameters())


def test_a_scale_is_halved_until_gradients_are_finite():
    large = trainee("16-mixed", loss=lambda z, y: F.cross_entropy(z, y) * 16)
    assert not gradients(large, batches()[0], 0, 2.0**16).finite
    found = scaled_gradients(large, batches()[0], 0)
    assert found.finite
    assert found.scale < 2.0**16
    assert not gradients(large, batches()[0], 0, 2 * found.scale).finite  # not one halving more


def test_without_a_scaler_nothing_is_scaled():
    assert scaled_gradients(trainee("16-true"), batches()[0], 0).scale == 1.0


@pytest.mark.parametrize("name", ["16-true", "bf16-true", "16-mixed"])
def test_the_error_of_a_linear_layer_is_of_the_order_of_rounding(name):
    fmt = BFLOAT16 if name.startswith("bf16") else FLOAT16
    point = examine_point(trainee("32-true"), trainee(name), batches(), 7, fmt.unit_roundoff)
    assert point.step == 7
    assert point.finite
    assert set(point.tensors) == {"weight", "bias"}
    assert len(point.losses) == 2
    # A handful of roundings on the way, each of at most one roundoff.
    assert 0 < point.total.relative < 8 * fmt.unit_roundoff
    assert abs(point.total.gain - 1) < 8 * fmt.unit_roundoff


def test_a_point_is_taken_at_the_references_weights():
    exact, low = trainee("32-true"), trainee("16-true")
    with torch.no_grad():
        low.model.weight.add_(1.0)
    point = examine_point(exact, low, batches(), 0, FLOAT16.unit_roundoff)
    assert point.total.relative < 8 * FLOAT16.unit_roundoff


def test_the_reference_keeps_its_weights():
    exact = trainee("32-true")
    before = exact.model.weight.detach().clone()
    examine_point(exact, trainee("16-true"), batches(), 0, FLOAT16.unit_roundoff)
    assert torch.equal(exact.model.weight, before)


def test_a_bias_before_a_normalisation_has_no_meaning():
    def net():
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    exact, low = trainee("32-true", net), trainee("16-true", net)
    point = examine_point(exact, low, batches(), 0, FLOAT16.unit_roundoff)
    assert point.meaningless == ["0.bias"]
    assert "0.bias" not in point.tensors
    assert "0.weight" in point.tensors


def test_batches_that_are_accumulated_share_their_noise():
    one = examine_point(
        trainee("32-true"), trainee("bf16-true"), batches(), 0, BFLOAT16.unit_roundoff
    )
    four = examine_point(
        trainee("32-true", accumulate=4), trainee("bf16-true"), batches(), 0, BFLOAT16.unit_roundoff
    )
    assert four.total.rho == pytest.approx(4 * one.total.rho)


@pytest.mark.parametrize(
    ("pair", "off"),
    [
        ((1.0, 1.4), False),
        ((1.0, 1.6), True),
        ((1.0, float("nan")), True),
        ((float("nan"), 1.0), False),
        ((0.0, 1e-6), False),  # beside a loss of zero, rounding is all there is
        ((0.0, 1e-3), True),
        ((-2.0, -0.5), True),
    ],
)
def test_a_loss_is_off_by_half_of_itself(pair, off):
    point = Point(0, [(1.0, 1.0), pair], Noise(0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0))
    assert loss_is_off(point, FLOAT16.unit_roundoff) is off


def test_a_loss_that_differs_as_much_from_batch_to_batch_is_not_off():
    still = Noise(0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0)
    for pair, spread, off in (
        ((0.01, 0.05), 0.0, True),
        ((0.01, 0.05), 0.03, False),
        ((0.01, 0.1), 0.03, True),
        ((0.01, float("nan")), 0.03, True),
    ):
        point = Point(0, [pair], still, loss_spread=spread)
        assert loss_is_off(point, FLOAT16.unit_roundoff) is off


def test_the_spread_of_the_loss_is_that_of_the_batches():
    exact, low = trainee("32-true"), trainee("16-true")
    losses = [gradients(exact, batch, seed).loss for seed, batch in enumerate(batches())]
    point = examine_point(exact, low, batches(), 0, FLOAT16.unit_roundoff)
    assert point.loss_spread == pytest.approx(torch.tensor(losses).std().item())


def half_lost(z, y):
    """Not finite in 16 bits where the labels are 1."""
    return F.cross_entropy(z, y) / (1e-9 + (y[0] != 1)).to(z.dtype)


#: By the batches' labels: how many are skipped, and whether others are left.
SKIPS = [
    ("16-mixed", (0, 2, 1, 1), 0, True),
    ("16-mixed", (1, 2, 0, 1), 1, True),
    ("16-mixed", (1, 1, 0, 0), 0, False),
    ("16-true", (1, 2, 0, 0), 0, False),
]


@pytest.mark.parametrize(("name", "first", "skipped", "finite"), SKIPS)
def test_batches_that_a_scaler_skips_are_left_out(name, first, skipped, finite):
    held = [(x, torch.full_like(y, label)) for (x, y), label in zip(batches(), first, strict=True)]
    exact, low = trainee("32-true", loss=half_lost), trainee(name, loss=half_lost)
    point = examine_point(exact, low, held, 0, 2.0**-11)
    assert (point.skipped, point.finite) == (skipped, finite)
    if finite:
        assert all(math.isfinite(c) for _, c in point.losses)
        assert point.total.rho < 0.1


def leaving_out(low, high):
    """A step that leaves out batches whose first number is between two bounds."""

    def step(model, batch):
        x, y = batch
        return None if low < float(x[0, 0]) < high else F.cross_entropy(model(x), y)

    return step


def test_batches_that_32_bits_leave_out_are_not_compared():
    drawn = batches()
    firsts = sorted(float(x[0, 0]) for x, _ in drawn)
    given = {"loss": None, "training_step": leaving_out(firsts[0] - 1, firsts[1] + 1e-3)}
    point = examine_point(
        trainee("32-true", **given), trainee("16-true", **given), drawn, 0, 2**-11
    )
    assert len(point.losses) == 2
    assert point.total.rho > 0
    assert not point.left_out


def test_batches_that_16_bits_alone_leave_out():
    def step(model, batch):
        x, y = batch
        return None if x.dtype != torch.float32 else F.cross_entropy(model(x), y)

    given = {"loss": None, "training_step": step}
    point = examine_point(
        trainee("32-true", **given), trainee("16-true", **given), batches(), 0, 2**-11
    )
    assert point.left_out
    assert point.skipped == 0
