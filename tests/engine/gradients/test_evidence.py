"""The small questions the gradient check asks of a training."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16 import Training, check
from pytest_fp16.engine.gradients.check import gradient_check
from pytest_fp16.engine.gradients.evidence import (
    Evidence,
    count_in,
    float_tensors,
    least_epsilon,
    lost_epsilon,
    lost_in_the_cast,
    trained_weights,
    weight_names,
    weights_finite,
)
from pytest_fp16.engine.training.place import Place
from pytest_fp16.engine.training.trainee import Trainee, initial_state
from pytest_fp16.precision import precision
from pytest_fp16.settings import Settings
from pytest_fp16.theory.rounding import FLOAT16

X, Y = torch.arange(12.0).reshape(12, 1), torch.zeros(12)


def training(data=None, **changes):
    data = [(X[:6], Y[:6]), (X[6:], Y[6:])] if data is None else data
    given = {
        "model": lambda: nn.Linear(1, 1),
        "optimizer": partial(torch.optim.SGD, lr=0.1),
        "loss": F.mse_loss,
    }
    return Training(**{**given, "train_data": data, "eval_data": data, **changes})


def trainee(name="16-true", **changes):
    subject = training(**changes)
    place = Place(torch.device("cpu"))
    return Trainee(subject, precision(name), 0, initial_state(subject, 0), place)


def test_inputs_are_counted_by_the_first_tensor_that_has_rows():
    assert count_in((X, Y)) == 12
    assert count_in({"scale": torch.tensor(1.0), "x": X[:5]}) == 5
    assert count_in(("text", 3)) == 0


@pytest.mark.parametrize(
    ("name", "eps", "found"),
    [
        ("16-true", 1e-8, ("eps", 1e-8)),
        ("16-true", 1e-4, None),
        ("bf16-true", 1e-8, None),
        ("16-mixed", 1e-8, None),  # its weights are float32
        ("16-true", 0.0, None),  # meant to be zero
    ],
)
def test_an_epsilon_is_lost_where_the_weights_format_has_no_such_number(name, eps, found):
    adam = partial(torch.optim.Adam, lr=1e-3, eps=eps)
    assert lost_epsilon(trainee(name, optimizer=adam)) == found


def test_a_fused_optimizer_adds_its_epsilon_in_float32():
    adam = partial(torch.optim.Adam, lr=1e-3, fused=True)
    assert lost_epsilon(trainee(optimizer=adam)) is None


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor([1e6, 1.0]))
        self.register_buffer("mask", torch.tensor([float("-inf"), 0.0]))
        self.register_buffer("index", torch.arange(3))


def test_a_tied_weight_has_all_its_names_and_a_frozen_one_none():
    model = Tied()
    assert weight_names(model) == {"embed.weight", "head.weight"}
    model.embed.weight.requires_grad_(False)
    assert weight_names(model) == set()


def test_what_the_cast_loses_was_finite_before():
    subject = training(model=Tied)
    state = initial_state(subject, 0)
    for name, lost in (("16-true", ["scale"]), ("bf16-true", []), ("16-mixed", [])):
        cast = Trainee(subject, precision(name), 0, state, Place(torch.device("cpu")))
        assert lost_in_the_cast(state, cast) == lost


def test_floating_state_is_copied_as_float32():
    low = trainee(model=Tied)
    found = float_tensors(low)
    assert set(found) == {"embed.weight", "head.weight", "scale", "mask"}
    assert all(t.dtype == torch.float32 for t in found.values())
    found["mask"][1] = 5.0
    assert low.model.mask[1] == 0


class Spectral(nn.Module):
    """Weighs frequencies by complex numbers, as a Fourier neural operator does."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, dtype=torch.complex64))

    def forward(self, x):
        return torch.fft.irfft(torch.fft.rfft(x.float()) * self.weight, n=6).to(x.dtype)


@pytest.mark.parametrize("name", ["16-true", "bf16-mixed"])
def test_complex_weights_are_followed_as_pairs_of_numbers(name):
    assert float_tensors(trainee(model=Spectral))["weight"].shape == (4, 2)
    data = [(X.reshape(2, 6) / 12, Y.reshape(2, 6))] * 4
    settings = Settings(device="cpu")
    subject = training(data, model=Spectral)
    found = gradient_check(subject, precision(name), settings, torch.device("cpu"))
    assert found.verdict == "equivalent", found.reason
    assert check(subject, precision=name, device="cpu", seeds=1).training["ended"] == ["finished"]


class Averaging(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
        self.register_buffer("average", torch.zeros(4))


def state(weight, average, var=1.0):
    return {
        "body.weight": torch.full((2, 2), weight),
        "average": torch.full((4,), average),
        "norm.running_var": torch.full((2,), var),
    }


def compared(reached, end=None, total_steps=8):
    evidence = Evidence(FLOAT16, total_steps=total_steps)
    ends = [state(3.0, 1.0), state(3.5, 1.5), end or state(4.0, 2.0)]
    evidence.compare(Averaging(), (state(3.0, 1.0), reached), ends, 8)
    return evidence


def test_weights_and_averages_are_held_against_their_32_bit_way():
    found = compared(state(3.25, 1.1))
    assert found.weights.gain == pytest.approx(0.25)
    moved, lag = found.statistics["average"]
    assert moved.gain == pytest.approx(0.1)
    # It goes from 1 to 2, and ends 0.9 behind beside a size of 1 + 1.
    assert lag == pytest.approx(0.45)
    assert list(found.statistics) == ["average"]  # batch norms have a run of their own
    assert found.lost_buffers == []


def test_a_longer_training_would_leave_an_average_further_behind():
    lags = [compared(state(4.0, 1.1), total_steps=n).statistics["average"][1] for n in (8, 80)]
    assert lags[0] < lags[1]


def test_buffers_that_are_lost_are_those_finite_in_32_bits():
    lost = state(4.0, float("inf"), float("nan"))
    assert compared(lost).lost_buffers == ["average", "norm.running_var"]
    assert compared(lost, end=state(4.0, float("inf"), 1.0)).lost_buffers == ["norm.running_var"]


@pytest.mark.parametrize(
    ("total_steps", "cast", "lost"),
    [(8000, True, []), (800_000, True, ["average"]), (800_000, False, [])],
)
def test_what_grows_evenly_out_of_the_range_is_noted(total_steps, cast, lost):
    evidence = Evidence(FLOAT16, cast=cast, total_steps=total_steps)
    ends = [state(3.0, 1.0), state(3.5, 1.5), state(4.0, 2.0)]
    evidence.compare(Averaging(), (state(3.0, 1.0), state(4.0, 2.0)), ends, 8)
    assert list(evidence.outgrown) == lost


def test_a_frozen_weight_is_no_matter():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False).requires_grad_(False))
    tensors = dict(model.named_parameters())
    assert trained_weights(model) == ["0.weight", "0.bias"]
    assert weights_finite(model, tensors | {"1.weight": torch.tensor(torch.nan)})
    assert not weights_finite(model, tensors | {"0.bias": torch.tensor(torch.inf)})


def test_the_least_epsilon_of_all_groups_is_known():
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    groups = [{"params": first.parameters()}, {"params": second.parameters(), "eps": 1e-6}]
    adam = torch.optim.Adam(groups, eps=1e-4)
    assert least_epsilon(SimpleNamespace(optimizer=adam)) == 1e-6
    plain = torch.optim.SGD(first.parameters(), lr=0.1)
    assert least_epsilon(SimpleNamespace(optimizer=plain)) is None
