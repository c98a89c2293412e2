"""An optimizer alone on a sample of the weights, beside what it does to all of them."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16 import Training
from pytest_fp16.engine.gradients.check import gradient_check
from pytest_fp16.engine.gradients.probes.optimizer_probe import SAMPLE, Recorder, probe
from pytest_fp16.engine.training.place import Place
from pytest_fp16.engine.training.trainee import Trainee, initial_state
from pytest_fp16.precision import REFERENCE, precision
from pytest_fp16.settings import Settings

CPU = torch.device("cpu")
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


STEPS = 8


class ByHand(torch.optim.Optimizer):
    """Adam or Lion, with attributes of its own and other names for its state."""

    def __init__(self, params, lr, epsilon=1e-8, *, lion=False):
        super().__init__(params, {"lr": lr, "epsilon": epsilon})
        self.lion, self.decay = lion, 0.9

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                m = state.setdefault("mean", torch.zeros_like(p))
                if self.lion:
                    p.sub_(group["lr"] * (self.decay * m + 0.1 * p.grad).sign())
                m.mul_(self.decay).add_(p.grad, alpha=0.1)
                if not self.lion:
                    v = state.setdefault("power", torch.zeros_like(p))
                    v.mul_(0.99).addcmul_(p.grad, p.grad, value=0.01)
                    p.sub_(group["lr"] * m / (v.sqrt() + group["epsilon"]))


class Wrapped(torch.optim.Optimizer):
    """Steps through another optimizer, and averages."""

    def __init__(self, params):
        self.base = torch.optim.SGD(params, lr=0.1)
        super().__init__(self.base.param_groups, {})

    @torch.no_grad()
    def step(self, closure=None):
        self.base.step()
        for group in self.param_groups:
            for p in group["params"]:
                slow = self.state[p].setdefault("slow", p.clone())
                slow.lerp_(p, 0.5)


def training(optimizer, **changes):
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (256,), generator=generator)
    x = 2.0 * torch.eye(4)[y] + torch.randn(256, 4, generator=generator)
    data = list(zip(x.split(16), y.split(16), strict=True))
    return Training(
        model=lambda: nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)),
        optimizer=optimizer,
        loss=F.cross_entropy,
        train_data=data,
        eval_data=data,
        **{"epochs": 4, **changes},
    )


def probed(optimizer, dtype=torch.float16, **changes):
    subject = training(optimizer, **changes)
    trainee = Trainee(subject, REFERENCE, 0, initial_state(subject, 0), Place(CPU, "cuda"))
    recorder = Recorder(trainee)
    for batch in subject.train_data[:STEPS]:
        trainee.step(batch)
    recorder.handle.remove()
    before = [p.detach().clone() for p in trainee.parameters()]
    found = probe(trainee, recorder, STEPS, dtype, "cuda")
    after = trainee.parameters()
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True)), "the original moved"
    return found, trainee, recorder


T = torch.optim


@pytest.mark.parametrize(
    ("optimizer", "kinds"),
    [
        (partial(T.SGD, lr=0.1, momentum=0.9), set()),
        (partial(T.Adam, eps=1e-4, amsgrad=True), {"exp_avg_sq", "max_exp_avg_sq"}),
        (partial(T.Adam, eps=1e-4, weight_decay=0.1), {"exp_avg_sq"}),
        (partial(T.Adamax, eps=1e-4), {"exp_inf"}),
        (partial(T.RMSprop, eps=1e-4, centered=True, momentum=0.9), {"square_avg"}),
        (partial(T.Adadelta, eps=1e-4), {"square_avg"}),
        (partial(T.Adagrad, eps=1e-4), {"sum"}),
        (T.Rprop, set()),
        (partial(ByHand, lr=1e-2), {"power"}),
        (partial(ByHand, lr=1e-2, lion=True), set()),
        (Wrapped, set()),
    ],
)
def test_what_measures_gradients_is_told_by_what_it_does(optimizer, kinds):
    found, _, _ = probed(optimizer)
    assert found.magnitudes == kinds


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(ByHand, lr=1e-2, epsilon=1e-4),
        partial(ByHand, lr=1e-2, lion=True),
        Wrapped,
        partial(T.Adagrad, lr=1e-2, initial_accumulator_value=0.5),
    ],
)
def test_the_copy_goes_the_way_of_the_original(optimizer):
    found, trainee, recorder = probed(optimizer, torch.float32)
    start = torch.cat([recorder.start[id(p)] for p in trainee.parameters()])
    end = torch.cat([p.detach().flatten() for p in trainee.parameters()])
    assert found.moved.length == pytest.approx(float((end - start).norm()), rel=1e-4)
    assert found.moved.gain == pytest.approx(1)


def test_a_scheduler_does_not_tie_the_copy_to_the_original():
    def scheduler(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)

    found, _, _ = probed(partial(T.SGD, lr=0.1), scheduler=scheduler, scheduler_step="step")
    assert found.moved.length > 0


def check(optimizer, name, **changes):
    return gradient_check(training(optimizer, **changes), precision(name), Settings(), CPU)


def test_an_optimizer_by_hand_that_stands_still():
    found = check(partial(ByHand, lr=2e-5, lion=True), "bf16-true", epochs=30)
    assert found.verdict == "not equivalent"
    assert (found.culprit.module, found.culprit.mechanism) == ("<optimizer>", "absorption")
    assert check(partial(ByHand, lr=5e-3, lion=True), "bf16-true").verdict == "equivalent"


def test_an_epsilon_by_another_name():
    found = check(partial(ByHand, lr=1e-2), "16-true", epochs=30)
    assert (found.culprit.module, found.culprit.mechanism) == ("<optimizer>", "eps-underflow")
    assert "epsilon 1e-08 is zero in float16" in found.reason


class Betting(torch.optim.Optimizer):
    """A coin bettor: the further it has gone along the gradient, the more it stakes."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            state, g = self.state[p], p.grad
            if not state:
                state.update(sum=torch.zeros_like(p), size=torch.ones_like(p), won=p * 0 + 0.1)
                state["gone"] = torch.zeros_like(p)
            state["won"].sub_(g * state["gone"]).clamp_(min=0.1)
            state["sum"].add_(g)
            state["size"].add_(g.abs())
            gone = -state["sum"] / state["size"] * state["won"]
            p.add_(gone - state["gone"])
            state["gone"].copy_(gone)


def test_what_bets_on_gradients_that_do_not_answer_is_followed_no_further():
    trainee, recorder = recorded(Betting, steps=12)
    long = probe(trainee, recorder, 400, HALF, "cuda")
    assert long.finite
    assert long.broke_at == -1
    assert 0.9 < long.moved.gain < 1.1


def test_what_is_lost_before_it_is_away_is_told():
    trainee, recorder = recorded(partial(torch.optim.Adam, lr=1e-2), steps=12)
    assert not probe(trainee, recorder, 400, HALF, "cuda").finite
