"""Optimizers, schedules and averages after what public issue trackers report, with sound twins.

As `training_reported`: written anew, and labelled by the judge before the gradient check answered.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks.cases.training import MIXED, SGD, TRUE, Stream, case, mlp, recipe
from benchmarks.data import batches


class ByHand(torch.optim.Optimizer):
    """An optimizer made of a function of (parameter, gradient, its state, its settings)."""

    def __init__(self, params, rule: Callable, lr: float, eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})
        self.rule = rule

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    state["t"] = state.get("t", 0) + 1
                    self.rule(p, p.grad, state, group)


def zeros(state: dict, p: Tensor, *names: str) -> list[Tensor]:
    return [state.setdefault(n, torch.zeros_like(p)) for n in names]


def adamw(p: Tensor, g: Tensor, state: dict, group: dict) -> None:
    m, v = zeros(state, p, "m", "v")
    m.mul_(0.9).add_(g, alpha=0.1)
    v.mul_(0.999).addcmul_(g, g, value=0.001)
    p.mul_(1 - group["lr"] * 0.01)
    one, two = 1 - 0.9 ** state["t"], 1 - 0.999 ** state["t"]
    p.sub_(group["lr"] * (m / one) / ((v / two).sqrt() + group["eps"]))


def lamb(p: Tensor, g: Tensor, state: dict, group: dict) -> None:
    first, second = zeros(state, p, "first", "second")
    first.mul_(0.9).add_(g, alpha=0.1)
    second.mul_(0.999).addcmul_(g, g, value=0.001)
    step = first / (second.sqrt() + group["eps"]) + 0.01 * p
    size, length = p.norm(), step.norm()
    ratio = torch.where((size > 0) & (length > 0), size / length, torch.ones_like(size))
    p.sub_(group["lr"] * ratio * step)


def lion(p: Tensor, g: Tensor, state: dict, group: dict) -> None:
    (m,) = zeros(state, p, "m")
    p.sub_(group["lr"] * (0.9 * m + 0.1 * g).sign())
    m.mul_(0.99).add_(g, alpha=0.01)


def belief(p: Tensor, g: Tensor, state: dict, group: dict) -> None:
    m, s = zeros(state, p, "mean", "belief")
    m.mul_(0.9).add_(g, alpha=0.1)
    s.mul_(0.999).addcmul_(g - m, g - m, value=0.001).add_(1e-16)
    two = 1 - 0.999 ** state["t"]
    p.sub_(group["lr"] * m / (1 - 0.9 ** state["t"]) / ((s / two).sqrt() + group["eps"]))


def sophia(p: Tensor, g: Tensor, state: dict, group: dict) -> None:
    m, h = zeros(state, p, "m", "curvature")
    m.mul_(0.96).add_(g, alpha=0.04)
    h.mul_(0.99).addcmul_(g, g, value=0.01 * 64)
    p.sub_(group["lr"] * (m / (0.04 * h).clamp(min=1e-15)).clamp(-1, 1))


def clipped(p: Tensor, g: Tensor, state: dict, group: dict) -> None:
    (m,) = zeros(state, p, "m")
    allowed = 0.1 * p.norm().clamp(min=1e-3) / g.norm().clamp(min=1e-6)
    m.mul_(0.9).add_(g * allowed.clamp(max=1))
    p.sub_(group["lr"] * m)


def by_hand(rule: Callable, lr: float, eps: float = 1e-8, **changes) -> dict:
    return recipe(optimizer=lambda params: ByHand(params, rule, lr, eps), **changes)


@case("16-true", "bf16-true 16-mixed bf16-mixed")
def adamw_by_hand() -> dict:
    """AdamW written by hand, eps 1e-8."""
    return by_hand(adamw, 2e-3)


@case(sound="16-true bf16-true 16-mixed bf16-mixed")
def adamw_by_hand_safe() -> dict:
    """The same with an eps of 1e-3."""
    return by_hand(adamw, 2e-3, 1e-3)


@case("16-true", "bf16-true 16-mixed bf16-mixed")
def lamb_by_hand() -> dict:
    """LAMB written by hand, eps 1e-6."""
    return by_hand(lamb, 1e-2, 1e-6)


@case("16-true bf16-true", "16-mixed bf16-mixed")
def lamb_after_a_bad_batch() -> dict:
    """A bad first batch fills LAMB's second moment, and bfloat16 cannot decay it."""
    given = by_hand(lamb, 1e-3, 1e-6, size=32, epochs=1)
    first, *rest = given["train_data"]
    return {**given, "train_data": Stream([(first[0] * 2000, first[1]), *(rest * 20)])}


@case(sound=f"{TRUE} {MIXED}")
def lion_by_hand() -> dict:
    """Lion at 2e-3."""
    return by_hand(lion, 2e-3)


@case("bf16-true", "16-true 16-mixed bf16-mixed")
def lion_too_small() -> dict:
    """Lion at 5e-5: below half an ulp of most weights in bfloat16."""
    return by_hand(lion, 5e-5, size=32, epochs=25)


@case("16-true", "bf16-true 16-mixed bf16-mixed")
def adabelief_by_hand() -> dict:
    """AdaBelief with its 1e-16 and 1e-8."""
    return by_hand(belief, 2e-3)


@case("16-true", "bf16-true 16-mixed bf16-mixed")
def sophia_by_hand() -> dict:
    """Sophia's step over max(curvature, 1e-15)."""
    return by_hand(sophia, 2e-3)


@case(sound=f"{TRUE} {MIXED}")
def adaptive_clipping() -> dict:
    """Adaptive gradient clipping with its 1e-3 and 1e-6."""
    return by_hand(clipped, 0.1)


@case(sound=f"{TRUE} {MIXED}")
def adafactor() -> dict:
    """torch's Adafactor as it comes."""
    return recipe(optimizer=partial(torch.optim.Adafactor, lr=2e-2))


class SAM(torch.optim.Optimizer):
    """Sharpness-aware: climbs by rho along the gradient, and steps with the one found there."""

    def __init__(self, params, rho: float = 0.05, eps: float = 1e-12, **settings) -> None:
        self.base = torch.optim.SGD(params, **settings)
        super().__init__(self.base.param_groups, {})
        self.rho, self.tiny = rho, eps

    def step(self, closure) -> Tensor:
        closure = torch.enable_grad()(closure)
        loss = closure()
        with torch.no_grad():
            moved = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
            norm = torch.stack([p.grad.norm() for p in moved]).norm()
            climb = [p.grad * (self.rho / (norm + self.tiny)) for p in moved]
            torch._foreach_add_(moved, climb)
        closure()
        with torch.no_grad():
            torch._foreach_sub_(moved, climb)
        self.base.step()
        return loss


@case(sound=f"{TRUE} bf16-mixed")
def sharpness_aware() -> dict:
    """SAM: two gradients per step, the second where the first one leads."""
    return recipe(optimizer=lambda params: SAM(params, lr=0.1, momentum=0.9))


def sharp_step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    held = {n: p.detach().requires_grad_(True) for n, p in model.named_parameters()}
    first = F.cross_entropy(functional_call(model, held, (x,)), y)
    slopes = torch.autograd.grad(first, list(held.values()))
    norm = torch.stack([s.norm() for s in slopes]).norm()
    there = {
        n: p + 0.05 * s / (norm + 1e-12)
        for (n, p), s in zip(model.named_parameters(), slopes, strict=True)
    }
    return F.cross_entropy(functional_call(model, there, (x,)), y)


@case(sound=f"{TRUE} {MIXED}")
def sharpness_aware_by_hand() -> dict:
    """SAM inside the user's own training step."""
    return recipe(loss=None, training_step=sharp_step)


@case(sound=f"{TRUE} {MIXED}")
def warm_up() -> dict:
    """A linear warm-up from nothing, step by step, then a cosine."""

    def rate(step: int) -> float:
        return step / 60 if step < 60 else 0.5 * (1 + math.cos(math.pi * (step - 60) / 320))

    make = lambda o: torch.optim.lr_scheduler.LambdaLR(o, rate)  # noqa: E731
    return recipe(size=32, scheduler=make, scheduler_step="step")


class Teacher(nn.Module):
    """Values of a walk's places, learned from a target network that follows slowly."""

    def __init__(self, tau: float) -> None:
        super().__init__()
        self.body, self.target = mlp(9, 32, 1), mlp(9, 32, 1).requires_grad_(False)
        self.target.load_state_dict(self.body.state_dict())
        self.tau = tau

    def forward(self, at: Tensor, to: Tensor, reward: Tensor):
        if not self.training:
            return self.body(at)
        with torch.no_grad():
            for kept, new in zip(self.target.parameters(), self.body.parameters(), strict=True):
                kept.lerp_(new, self.tau)
            aim = reward + (reward == 0) * 0.9 * self.target(to)
        return self.body(at), aim


def walk(tau: float, **changes) -> dict:
    """Temporal differences on a walk of 9 places that ends to the right with a reward of 1."""
    random = torch.Generator().manual_seed(0)
    places = torch.randint(0, 8, (2560,), generator=random)
    hot = torch.eye(9)
    reward = (places == 7).float()[:, None]
    true = 0.9 ** (7 - places).float()[:, None]
    inputs = hot[places], hot[places + 1], reward
    given = {"task": "regression", "optimizer": partial(SGD, lr=0.05), "epochs": 25}
    loss = lambda out, _: F.mse_loss(*out)  # noqa: E731
    return recipe(
        lambda: Teacher(tau),
        loss=loss,
        train_data=batches(*inputs, true, size=64),
        eval_data=batches(*(t[:200] for t in inputs), true[:200], size=200),
        **{**given, **changes},
    )


@case("16-true bf16-true", "16-mixed bf16-mixed")
def slow_target() -> dict:
    """A target network that follows by 0.003 of the way: bfloat16 rounds it away."""
    return walk(0.004, epochs=60)


@case(sound=f"16-true {MIXED}")
def quick_target() -> dict:
    """The same by 0.1."""
    return walk(0.1)


class Lookahead(torch.optim.Optimizer):
    """Slow weights that go half of the way every five steps."""

    def __init__(self, params, **settings) -> None:
        self.base = torch.optim.SGD(params, **settings)
        super().__init__(self.base.param_groups, {})
        self.count = 0

    @torch.no_grad()
    def step(self, closure=None) -> None:
        self.base.step()
        self.count += 1
        for group in self.param_groups:
            for p in group["params"]:
                slow = self.state[p].setdefault("slow", p.clone())
                if self.count % 5 == 0:
                    slow.lerp_(p, 0.5)
                    p.copy_(slow)


@case(sound=f"{TRUE} {MIXED}")
def lookahead() -> dict:
    """Lookahead around SGD."""
    return recipe(optimizer=lambda params: Lookahead(params, lr=0.1, momentum=0.9))
