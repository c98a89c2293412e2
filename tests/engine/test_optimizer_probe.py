"""An optimizer alone on a sample of the weights, beside what it does to all of them."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16 import Training
from pytest_fp16.engine.optimizer_probe import SAMPLE, Recorder, probe
from pytest_fp16.engine.trainee import Place, Trainee, initial_state
from pytest_fp16.precision import REFERENCE

SGD = partial(torch.optim.SGD, lr=0.1)
HALF, BRAIN = torch.float16, torch.bfloat16


def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(32, 20, generator=generator), torch.randint(
        0, 10, (32,), generator=generator
    )


def recorded(optimizer=SGD, steps=6, model=lambda: nn.Linear(20, 10), loss=F.cross_entropy):
    """A trainee that has made some steps, what was kept of its gradients, and its weights then."""
    subject = Training(
        model=model, optimizer=optimizer, loss=loss, train_data=[batch()], eval_data=[batch()]
    )
    trainee = Trainee(subject, REFERENCE, 0, initial_state(subject, 0), Place(torch.device("cpu")))
    recorder = Recorder(trainee)
    for _ in range(steps):
        trainee.step(batch(), last=True)
    recorder.handle.remove()
    return trainee, recorder


def test_the_sample_is_spread_over_each_tensor():
    trainee, recorder = recorded(steps=2)
    weight, bias = trainee.parameters()
    assert len(recorder.steps) == 2
    for p, size in ((weight, SAMPLE), (bias, 10)):
        index = recorder.index[id(p)]
        assert len(index) == len(recorder.start[id(p)]) == size
        assert index.unique().numel() == size
        assert int(index.max()) >= p.numel() // 2


def test_a_parameter_without_gradients_is_left_out():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(20, 10), nn.Linear(20, 10)

        def forward(self, x):
            return self.used(x)

    trainee, recorder = recorded(model=Unused)
    assert recorder.moved == {id(p) for p in trainee.model.used.parameters()}
    assert probe(trainee, recorder, 6, BRAIN, "cuda").moved.length > 0


@pytest.mark.parametrize(
    "optimizer", [SGD, partial(torch.optim.Adam, lr=1e-2, eps=1e-4)], ids=["SGD", "Adam"]
)
def test_in_32_bits_the_sample_goes_where_the_weights_went(optimizer):
    trainee, recorder = recorded(optimizer)
    found = probe(trainee, recorder, len(recorder.steps), torch.float32, "cuda")
    gone = torch.cat(
        [
            p.detach().flatten()[recorder.index[id(p)]] - recorder.start[id(p)]
            for p in trainee.parameters()
        ]
    )
    assert found.moved.length == pytest.approx(float(gone.norm()), rel=1e-5)
    assert (found.moved.gain, found.moved.size) == (pytest.approx(1), pytest.approx(1))
    assert (found.finite, found.broke_at, found.lost) == (True, -1, 0)
    assert all(value == 0 for value in found.states.values())


def test_the_users_optimizer_stays_as_it_was():
    adam = partial(torch.optim.Adam, lr=1e-2, eps=1e-4)
    trainee, recorder = recorded(adam)
    weights = [p.detach().clone() for p in trainee.parameters()]
    moments = [trainee.optimizer.state[p]["exp_avg"].clone() for p in trainee.parameters()]
    probe(trainee, recorder, 20, HALF, "cuda")
    for p, weight, moment in zip(trainee.parameters(), weights, moments, strict=True):
        assert torch.equal(p, weight)
        assert torch.equal(trainee.optimizer.state[p]["exp_avg"], moment)
    assert len(recorder.steps) == 6  # the probe's own steps are not recorded


def test_updates_below_half_an_ulp_are_lost():
    trainee, recorder = recorded(partial(torch.optim.SGD, lr=1e-5))
    found = probe(trainee, recorder, 32, BRAIN, "cuda")
    assert found.lost > 0.9
    assert found.moved.gain < 0.1
    assert found.finite
    healthy = probe(*recorded(SGD), 32, HALF, "cuda")
    assert healthy.lost < 0.1
    assert healthy.moved.gain > 0.9


def test_adams_default_epsilon_breaks_it_in_float16_alone():
    adam = partial(torch.optim.Adam, lr=1e-3)
    small = partial(recorded, adam, loss=lambda z, y: F.cross_entropy(z, y) / 1e4)
    broken = probe(*small(), 32, HALF, "cuda")
    assert not broken.finite
    assert broken.broke_at == 0
    sound = probe(*small(), 32, BRAIN, "cuda")
    assert sound.finite
    assert sound.zeroed["exp_avg_sq"] == 0


def test_a_second_moment_that_rounds_to_zero_is_counted():
    adam = partial(torch.optim.Adam, lr=1e-3, eps=1e-4)
    found = probe(*recorded(adam, loss=lambda z, y: F.cross_entropy(z, y) / 1e3), 16, HALF, "cuda")
    assert found.zeroed["exp_avg_sq"] > 0.9
    assert found.states["exp_avg_sq"] == float("-inf")


def test_state_that_is_zero_in_32_bits_too_says_nothing():
    momentum = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    found = probe(*recorded(momentum, loss=lambda z, y: F.cross_entropy(z, y) * 0), 4, HALF, "cuda")
    assert (found.states, found.zeroed, found.lost) == ({}, {}, 0)


def test_a_second_moment_in_bfloat16_cannot_decay():
    """β2 = 0.999 takes a thousandth off at each step, less than half an ulp of bfloat16."""

    def falling(z, y, seen=[]):  # noqa: B006 (it counts)
        seen.append(0)
        return F.cross_entropy(z, y) * (1.0 if len(seen) == 1 else 1e-3)

    adam = partial(torch.optim.Adam, lr=1e-4)
    found = probe(*recorded(adam, loss=falling), 3000, BRAIN, "cuda")
    assert found.states["exp_avg_sq"] > 1
