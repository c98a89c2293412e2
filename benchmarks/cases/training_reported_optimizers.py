"""More optimizers, scales and averages after public reports, with sound twins.

As `training_reported`: written anew, and labelled by the judge before the gradient check answered.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, SGD, TRUE, case, cnn, mlp, recipe, text
from benchmarks.cases.training_reported_steps import by_hand, zeros
from benchmarks.data import batches


def orthogonal(p: Tensor, g: Tensor, state: dict, group: dict) -> None:
    (m,) = zeros(state, p, "m")
    m.mul_(0.9).add_(g)
    step = m
    if p.dim() == 2:
        step = m / (m.norm() + 1e-7)
        for _ in range(5):
            square = step @ step.T
            step = 3.4445 * step + (-4.775 * square + 2.0315 * square @ square) @ step
    p.sub_(group["lr"] * step)


@case(sound=f"{TRUE} {MIXED}")
def muon_by_hand() -> dict:
    """Muon: Newton-Schulz in the parameters' own type (pytorch/pytorch#159465)."""
    return by_hand(orthogonal, 0.02)


def preconditioned(p: Tensor, g: Tensor, state: dict, group: dict) -> None:
    if p.dim() != 2:
        p.sub_(group["lr"] * g)
        return
    if "left" not in state:
        state["left"], state["right"] = (1e-3 * torch.eye(n).to(p) for n in p.shape)
    step = g
    state["left"].add_(g @ g.T)
    state["right"].add_(g.T @ g)
    for side in ("left", "right"):
        values, vectors = torch.linalg.eigh(state[side])
        root = vectors @ torch.diag(values.clamp(min=1e-4) ** -0.25) @ vectors.T
        step = root @ step if side == "left" else step @ root
    p.sub_(group["lr"] * step)


@case("16-true bf16-true", MIXED)
def shampoo_by_hand() -> dict:
    """Shampoo's inverse roots: no eigenvectors in 16 bits (HomebrewML/HeavyBall#57)."""
    return by_hand(preconditioned, 0.1, epochs=6)


class Prodigy(torch.optim.Optimizer):
    """Finds its own rate: it grows from 1e-6 with the distance that the weights have come."""

    def __init__(self, params, lr: float = 1.0, start: float = 1e-6, eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr})
        self.d, self.eps, self.top = start, eps, 0.0

    @torch.no_grad()
    def step(self, closure=None) -> None:
        d, below, top = self.d, 0.0, 0.999**0.5 * self.top
        for p in (p for g in self.param_groups for p in g["params"]):
            state = self.state[p]
            m, v, s = zeros(state, p, "m", "v", "s")
            start = state.setdefault("start", p.clone())
            top += 0.0316 * d * d * float((p.grad * (start - p)).float().sum())
            m.mul_(0.9).add_(p.grad, alpha=0.1 * d)
            v.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001 * d * d)
            s.mul_(0.999**0.5).add_(p.grad, alpha=0.0316 * d * d)
            below += float(s.float().abs().sum())
        self.top = top
        if below > 0:
            self.d = max(d, min(top / below, 1.5 * d) if top > 0 else d)
        for p in (p for g in self.param_groups for p in g["params"]):
            state = self.state[p]
            p.sub_(d * state["m"] / (state["v"].sqrt() + d * self.eps))


@case("16-true", MIXED)
def prodigy_by_hand() -> dict:
    """Prodigy: d² is zero in float16 (bghira/SimpleTuner#1294)."""
    return recipe(optimizer=Prodigy, size=32, epochs=12)


def quantised(p: Tensor, g: Tensor, state: dict, group: dict) -> None:
    m = 0.9 * state["code"].to(p) * state["size"] + g if "code" in state else g
    state["size"] = m.abs().amax().clamp(min=1e-12) / 127
    state["code"] = (m / state["size"].clamp(min=1e-12)).round().to(torch.int8)
    p.sub_(group["lr"] * m)


@case(sound=f"{TRUE} {MIXED}")
def momentum_in_bytes() -> dict:
    """A momentum kept in eight bits (bitsandbytes-foundation/bitsandbytes#152)."""
    return by_hand(quantised, 0.1)


def centralised(p: Tensor, g: Tensor, state: dict, group: dict) -> None:
    (m,) = zeros(state, p, "m")
    g = g - g.mean(1, keepdim=True) if g.dim() > 1 else g
    m.mul_(0.9).add_(g.clamp(-0.05, 0.05))
    p.sub_(group["lr"] * m)


@case(sound=f"{TRUE} {MIXED}")
def centralised_and_clipped() -> dict:
    """Gradients without their mean, clipped by value."""
    return by_hand(centralised, 0.1)


@case("16-true", f"bf16-true {MIXED}")
def fused_adam() -> dict:
    """The fused kernel of Adam: its second moment underflows (pytorch/pytorch#26218)."""
    return recipe(optimizer=partial(torch.optim.Adam, lr=2e-3, fused=True))


@case(sound=f"{TRUE} {MIXED}")
def foreach_nesterov() -> dict:
    """Momentum by Nesterov over lists of tensors, with weight decay."""
    given = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4, "foreach": True}
    return recipe(cnn, optimizer=partial(torch.optim.SGD, **given), epochs=5)


@case(sound=f"{TRUE} {MIXED}")
def rprop() -> dict:
    """Rprop over the whole data: only the gradient's sign counts."""
    return recipe(size=1197, epochs=80, optimizer=partial(torch.optim.Rprop, lr=1e-3))


@case("16-true", "bf16-true")
def scale_too_large() -> dict:
    """A loss times 65536 by hand, which float16 does not hold (locuslab/ect#13)."""

    def unscaled(p: Tensor, g: Tensor, state: dict, group: dict) -> None:
        p.sub_(group["lr"] * (g / 65536))

    loss = lambda z, y: F.cross_entropy(z, y) * 65536  # noqa: E731
    return by_hand(unscaled, 0.3, loss=loss)


@case(sound=f"{TRUE} {MIXED}")
def summed_loss() -> dict:
    """The loss of a batch summed, at a rate to match (Nanne/pytorch-NetVlad#57)."""
    summed = partial(F.cross_entropy, reduction="sum")
    return recipe(loss=summed, optimizer=partial(SGD, lr=0.1 / 64))


@case(sound=f"{TRUE} {MIXED}")
def summed_over_range() -> dict:
    """A summed loss that is infinite in float16 at first, while its slopes are not."""
    (x, _), (a, _) = data.digits()
    ink = lambda x: x.flatten(1) * 16  # noqa: E731
    train, test = batches(x, ink(x), size=64), batches(a, ink(a), size=200)
    given = {"task": "regression", "loss": partial(F.mse_loss, reduction="sum"), "epochs": 25}
    given |= {"train_data": train, "eval_data": test, "optimizer": partial(SGD, lr=1e-5)}
    return recipe(lambda: mlp(64, 64, 64), **given)


@case(sound=f"{TRUE} {MIXED}")
def many_small_batches() -> dict:
    """Gradients of sixteen small batches added up (deepspeedai/DeepSpeed#2768)."""
    return recipe(size=8, accumulate=16, optimizer=partial(SGD, lr=0.02), epochs=15)


@case(sound=f"{TRUE} {MIXED}")
def warm_from_tiny() -> dict:
    """A rate that climbs from 1e-7, and then falls again (kyegomez/SingLoRA#6)."""

    def make(o: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        up = torch.optim.lr_scheduler.LinearLR(o, 1e-6, 1.0, 60)
        down = torch.optim.lr_scheduler.CosineAnnealingLR(o, 130)
        return torch.optim.lr_scheduler.SequentialLR(o, [up, down], [60])

    return recipe(scheduler=make, scheduler_step="step")


class Mean(nn.Module):
    """Evaluates with the plain mean of its weights since some step."""

    def __init__(self, start: int) -> None:
        super().__init__()
        self.body, self.mean = mlp(), mlp().requires_grad_(False)
        self.start, self.step = start, 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.mean(x)
        self.step += 1
        with torch.no_grad():
            for kept, new in zip(self.mean.parameters(), self.body.parameters(), strict=True):
                kept += (new - kept) / max(1, self.step - self.start)
        return self.body(x)


@case(sound=f"{TRUE} {MIXED}")
def mean_of_the_last() -> dict:
    """SWA: the mean of the last hundred weights (NVIDIA/Model-Optimizer#738)."""
    return recipe(lambda: Mean(90))


class Words(nn.Module):
    """A bag of words with sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(1200, 32, sparse=True, padding_idx=0)
        self.head = nn.Linear(32, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.words(ids))


@case(sound=MIXED)
def sparse_words() -> dict:
    """Sparse gradients of an embedding."""
    return text(Words, epochs=15, optimizer=partial(torch.optim.SGD, lr=5.0))


def noise(function: Callable[[Tensor], Tensor]) -> Callable:
    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        other = torch.randperm(len(y))
        share = 0.8
        z = model(share * x + (1 - share) * x[other])
        return share * function(z, y) + (1 - share) * function(z, y[other])

    return step


@case(sound=f"{TRUE} {MIXED}")
def mixed_up() -> dict:
    """Mix-up inside the user's own training step."""
    return recipe(loss=None, training_step=noise(F.cross_entropy))
