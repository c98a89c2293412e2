"""Random numbers that a model draws from a generator of its own: the same in each run."""

import copy
import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.candidate import Candidate, fresh_model
from pytest_fp16.engine.own_randomness import as_before, generators, put_back
from pytest_fp16.precision import precision


class Sampler:
    def __init__(self, generator):
        self.generator = generator


def from_torch(generator, h):
    return torch.randn(h.shape, generator=generator).to(h)


def from_numpy(generator, h):
    return torch.tensor(generator.standard_normal(size=tuple(h.shape))).to(h)


def from_python(generator, h):
    return torch.tensor([generator.gauss(0, 1) for _ in range(h.numel())]).view_as(h).to(h)


SOURCES = [
    (lambda: torch.Generator().manual_seed(0), from_torch),
    (lambda: np.random.default_rng(0), from_numpy),
    (lambda: np.random.RandomState(0), from_numpy),
    (lambda: random.Random(0), from_python),
]


class Noisy(nn.Module):
    def __init__(self, source, place):
        super().__init__()
        make, draw = source
        self.a, self.b = nn.Linear(16, 8), nn.Linear(8, 4)
        generator = make()
        if place == "attribute":
            self.generator = generator
            self.noise = lambda h: draw(self.generator, h)
        elif place == "object":
            self.table = [{"one": Sampler(generator)}]
            self.noise = lambda h: draw(self.table[0]["one"].generator, h)
        elif place == "partial":
            self.noise = partial(draw, generator)
        else:
            self.noise = lambda h: draw(generator, h)

    def forward(self, x):
        h = self.a(x)
        return self.b(h + 0.3 * self.noise(h))


@pytest.mark.parametrize("place", ["attribute", "object", "partial", "closure"])
@pytest.mark.parametrize("source", SOURCES)
def test_every_precision_draws_the_same(source, place):
    torch.manual_seed(0)
    model = Noisy(source, place).eval()
    report = check(
        Evaluation(model, [torch.randn(64, 16)] * 2, labelled=False), precision="16-true"
    )
    assert report.equivalent
    assert report.run.deterministic
    assert report.flips <= 2


def test_one_that_forward_draws_from_is_put_back():
    generator = torch.Generator().manual_seed(0)

    def forward(model, x):
        return model(x + torch.randn(x.shape, generator=generator).to(x))

    before = generator.get_state()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 4)).eval()
    data = [torch.randn(64, 16)]
    report = check(Evaluation(model, data, labelled=False, forward=forward), precision="16-true")
    assert report.run.deterministic
    assert torch.equal(generator.get_state(), before)


def test_a_run_that_raises_puts_it_back_as_well():
    model = Noisy(SOURCES[0], "attribute")
    put_back(model, None)
    before = model.generator.get_state()
    with pytest.raises(RuntimeError), as_before(model):
        model(torch.ones(2, 3, 5))
    with as_before(model):
        model(torch.ones(2, 16))
    assert torch.equal(model.generator.get_state(), before)


def test_one_that_is_no_candidates_goes_on():
    """A training draws other numbers in each step."""
    model = Noisy(SOURCES[0], "attribute")
    before = model.generator.get_state()
    with as_before(model):
        model(torch.ones(2, 16))
    assert not torch.equal(model.generator.get_state(), before)


def test_the_default_generator_is_not_the_models():
    model = nn.Linear(2, 2)
    model.generator = torch.default_generator
    assert generators(model, lambda: None, None) == []


def test_a_candidate_repeats_itself():
    model = Noisy(SOURCES[0], "attribute")
    subject = Evaluation(model=model, data=[])
    made = Candidate(
        fresh_model(model), precision("16-mixed"), subject, torch.device("cpu"), "cuda"
    )
    x = torch.randn(4, 16)
    assert torch.equal(made.outputs(x, 0), made.outputs(copy.copy(x), 0))
