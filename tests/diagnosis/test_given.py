"""What a cast takes from the inputs, from a buffer or from a weight."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pytest_fp16.diagnosis.given import Lost, lost_as_cast
from pytest_fp16.diagnosis.origin import find_origin


class Noise(nn.Module):
    """One minus a product that a cast makes one."""

    def __init__(self, kind):
        super().__init__()
        alphas = torch.tensor([0.9991, 0.99, 0.98, 0.97])
        self.register_buffer("beside", torch.ones(4))
        if kind == "weight":
            self.alphas = nn.Parameter(alphas)
        else:
            self.register_buffer("alphas", alphas)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x * self.beside) / (1 - self.alphas).min() ** 0.5


class Ids(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6000, 3)

    def forward(self, x):
        return self.embed(x[:, 0].long())


class Sum(nn.Module):
    """Nothing is lost before it is computed."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x) + 3000 - 3000


def found(comparison, model, inputs, name="bf16-true"):
    torch.manual_seed(0)
    few = comparison(model.eval(), name, inputs)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trials = SimpleNamespace(precision=name, model=model, rerun=lambda *_: few)
    lost = lost_as_cast(trials, find_origin(few))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    return lost


@pytest.mark.parametrize("kind", ["buffer", "weight"])
def test_a_buffer_or_weight_among_others(kind, comparison):
    assert found(comparison, Noise(kind), torch.randn(8, 4)) == Lost(kind, "alphas")


def test_inputs(comparison):
    ids = torch.randint(3001, 6000, (8, 1)).float()
    assert found(comparison, Ids(), ids) == Lost("inputs")


class Looked(nn.Module):
    """A number that is looked up beside features, which rounding does no harm."""

    def __init__(self):
        super().__init__()
        self.ids, self.head = Ids(), nn.Linear(4, 3)

    def forward(self, features, ids):
        return self.ids(ids) + 1e-3 * self.head(features)


def test_of_several_inputs_the_one_is_named(comparison):
    torch.manual_seed(0)
    ids = torch.randint(3001, 6000, (8, 1)).float()
    inputs = {"features": torch.randn(8, 4), "ids": ids}
    assert found(comparison, Looked(), inputs) == Lost("inputs", key="ids")


def test_inputs_that_are_kept_are_not_cast(comparison):
    few = comparison(Ids().eval(), "bf16-true", torch.randint(3001, 6000, (8, 1)).float())
    origin, model = find_origin(few), Ids().eval()
    model.load_state_dict(few.candidate.model.float().state_dict())
    trials = SimpleNamespace(precision="bf16-true", model=model, rerun=lambda *_: few)
    assert lost_as_cast(trials, origin) == Lost("inputs")
    few.candidate.subject = replace(few.candidate.subject, keep_inputs=[0])
    assert lost_as_cast(trials, origin) != Lost("inputs")


def test_what_is_lost_in_the_arithmetic(comparison):
    assert found(comparison, Sum(), torch.randn(8, 4)) is None


def test_a_mixed_precision_casts_neither(comparison):
    assert found(comparison, Noise("buffer"), torch.randn(8, 4), "bf16-mixed") is None


def test_a_program_that_stops_for_its_rounded_inputs(comparison):
    few = comparison(Ids(), "16-true", torch.full((8, 1), 5999.0))
    model = few.candidate.model.float()
    trials = SimpleNamespace(precision="16-true", model=model, rerun=lambda *_: few)
    assert lost_as_cast(trials, None) == Lost("inputs")
