"""Optimizer and scheduler of a training, whoever brings them."""

import pytest
import torch
from torch import nn

from pytest_fp16 import check
from pytest_fp16.engine.training.optimization import (
    needs_closure,
    needs_gradients_too,
    optimization,
)
from pytest_fp16.errors import SettingError


def halving(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)


@pytest.mark.parametrize(
    ("kind", "asks"),
    [(torch.optim.LBFGS, True), (torch.optim.SGD, False), (torch.optim.Adam, False)],
)
def test_who_asks_for_the_loss_itself(kind, asks):
    assert needs_closure(kind([nn.Parameter(torch.zeros(2))], lr=0.1)) is asks


def test_the_function_gets_the_models_parameters(digits_training):
    model = digits_training().model()
    optimizer, scheduler, interval = optimization(digits_training(), model)
    held = [id(p) for p in optimizer.param_groups[0]["params"]]
    assert held == [id(p) for p in model.parameters()]
    assert (scheduler, interval) == (None, "epoch")


def by_name(model):
    named = list(model.named_parameters())
    biases = [p for n, p in named if n.endswith("bias")]
    others = [p for n, p in named if not n.endswith("bias")]
    groups = [{"params": biases}, {"params": others, "weight_decay": 1e-3}]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def test_and_may_ask_for_their_names(digits_training):
    model = digits_training().model()
    optimizer, _, _ = optimization(digits_training(optimizer=by_name), model)
    biases, others = (group["params"] for group in optimizer.param_groups)
    assert [id(p) for p in biases] == [id(model[1].bias), id(model[3].bias)]
    assert [id(p) for p in others] == [id(model[1].weight), id(model[3].weight)]


def test_groups_by_name_are_trained(digits_training):
    subject = digits_training(optimizer=by_name)
    report = check(subject, precision="16-mixed", seeds=3, budget="5pt")
    assert report.verdict == "equivalent", report


class Configures(nn.Sequential):
    """Makes its own optimizer, and is no Lightning module."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))

    def configure_optimizers(self, rate):
        return torch.optim.SGD(self.parameters(), lr=rate)


def test_a_model_that_makes_its_own_optimizer_is_no_lightning_module(digits_training):
    subject = digits_training(model=Configures, optimizer=None)
    with pytest.raises(SettingError, match=r"has configure_optimizers\(\), but no training_step"):
        check(subject, precision="16-mixed")
    subject = digits_training(model=Configures, optimizer=lambda m: m.configure_optimizers(0.3))
    optimizer, _, _ = optimization(subject, subject.model())
    assert optimizer.param_groups[0]["lr"] == 0.3


def test_a_scheduler_belongs_to_the_optimizer(digits_training):
    subject = digits_training(scheduler=halving, scheduler_step="step")
    optimizer, scheduler, interval = optimization(subject, subject.model())
    assert interval == "step"
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


class Lit(nn.Linear):
    def __init__(self):
        super().__init__(2, 2)

    def training_step(self, batch, batch_idx):
        raise NotImplementedError

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.3)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def test_a_lightning_module_brings_both_and_the_user_may_replace_them(digits_training):
    optimizer, scheduler, interval = optimization(digits_training(optimizer=None), Lit())
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert interval == "step"
    assert scheduler is not None
    optimizer, scheduler, interval = optimization(digits_training(), Lit())
    assert (optimizer.param_groups[0]["lr"], scheduler, interval) == (0.1, None, "epoch")
    _, scheduler, interval = optimization(digits_training(optimizer=None, scheduler=halving), Lit())
    assert (scheduler.gamma, interval) == (0.5, "epoch")


def _two(params):
    return [torch.optim.SGD(params[:1], lr=0.1), torch.optim.SGD(params[1:], lr=0.1)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": None}, "the model has no configure_optimizers"),
        ({"optimizer": lambda params: "sgd"}, r"optimizer must be .* returned str\)$"),
        ({"optimizer": _two}, "returned list.*automatic_optimization = False.*a group of"),
        ({"scheduler": lambda optimizer: 3}, "scheduler must be .* returned int"),
    ],
)
def test_what_is_neither_says_what_to_pass(digits_training, changes, said):
    with pytest.raises(SettingError, match=said):
        optimization(digits_training(**changes), nn.Linear(2, 2))


class Sharp(torch.optim.Optimizer):
    """SAM as it is widely copied: closure=None, and an assertion; gradients come before it."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        self.base = torch.optim.SGD(self.param_groups, lr=lr)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is not None, "sharpness-aware minimisation needs a closure"
        held = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in held]).norm()
        for p in held:
            self.state[p]["old"] = p.clone()
            p.add_(p.grad * 0.05 / (norm + 1e-12))
        torch.enable_grad()(closure)()
        for p in held:
            p.copy_(self.state[p]["old"])
        self.base.step()


class Evaluates(Sharp):
    """The same, which makes its first gradient itself."""

    def step(self, closure):
        torch.enable_grad()(closure)()
        super().step(closure)


class Raises(Sharp):
    """The same, with an exception."""

    def step(self, closure=None):
        if closure is None:
            raise RuntimeError("a closure is needed")
        super().step(closure)


class Trusts(torch.optim.SGD):
    """Takes it for granted that it is given one."""

    def step(self, closure=None):
        closure = torch.enable_grad()(closure)
        closure()
        super().step()


class HandsOn(torch.optim.SGD):
    """Has effects of its own, and needs none; nobody tries it out."""

    def step(self, closure=None):
        ByHand.steps += 1
        return super().step(closure)


class ByHand(torch.optim.SGD):
    """Takes a closure, and needs none; nobody tries it out."""

    steps = 0

    def step(self, closure=None):
        if closure is not None:
            torch.enable_grad()(closure)()
        ByHand.steps += 1
        super().step()


@pytest.mark.parametrize(
    ("optimizer", "asks", "primed"),
    [
        (torch.optim.SGD, False, False),
        (torch.optim.LBFGS, True, False),
        (ByHand, False, False),
        (Sharp, True, True),
        (Raises, True, True),
        (Evaluates, True, False),
        (Trusts, True, False),
        (HandsOn, False, False),
    ],
)
def test_who_asks_for_the_loss_and_who_for_gradients_before(optimizer, asks, primed):
    weight = nn.Parameter(torch.ones(3))
    made = optimizer([weight], lr=0.1)
    assert needs_closure(made) is asks
    assert (asks and needs_gradients_too(made)) is primed
    assert torch.equal(weight.detach(), torch.ones(3))
    assert ByHand.steps == 0


@pytest.mark.parametrize("optimizer", [Sharp, Evaluates])
def test_a_sharpness_aware_training(digits_training, optimizer):
    report = check(
        digits_training(optimizer=lambda params: optimizer(params, lr=0.3), epochs=2),
        precision="16-true",
        seeds=2,
    )
    assert report.verdict != "not equivalent"
    assert report.metric.reference > 0.5
