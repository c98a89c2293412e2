"""Precision at a rank, invariance, survival, cut points, robustness and several groups in 16 bits.

As `training_reported`: written anew, labelled before the check answered, and asked of the judge.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from sklearn.datasets import load_wine
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, TRUE, case, mlp, recipe
from benchmarks.data import batches

ADAM = partial(torch.optim.Adam, lr=3e-3, eps=1e-4)

# Ranks --------------------------------------------------------------------------------------------


class Ranked(nn.Module):
    """Classes, and in training features of length one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU())
        self.embed, self.head = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Any:
        features = self.embed(self.body(x))
        z = self.head(features)
        return (z, F.normalize(features, eps=1e-4)) if self.training else z


def smooth_average(squash: Any) -> dict:
    """Cross entropy, and one less a smooth average precision of who is nearest."""

    def loss(out: Any, y: Tensor) -> Tensor:
        z, f = out
        near = f @ f.t()
        apart = near.unsqueeze(1) - near.unsqueeze(2)
        own = torch.eye(len(y), device=y.device, dtype=torch.bool)
        ahead = squash(apart / 0.01).masked_fill(own.unsqueeze(0), 0)
        same = (y.unsqueeze(0) == y.unsqueeze(1)).to(ahead.dtype)
        rank = ahead.sum(2) + 1
        among = (ahead * same.unsqueeze(1)).sum(2) + 1
        precision = (same * among / rank).sum(1) / same.sum(1)
        return F.cross_entropy(z, y) + 1 - precision.mean()

    return recipe(Ranked, loss=loss, optimizer=ADAM)


@case("16-true", "bf16-true bf16-mixed")
def smooth_precision() -> dict:
    """1 / (1 + exp(x)) of x up to 50: its slope is 0 times ∞ (after Andrew-Brown1/Smooth_AP)."""
    return smooth_average(lambda x: 1.0 / (1.0 + torch.exp(torch.clamp(-x, min=-50, max=50))))


@case(sound=f"{TRUE} {MIXED}")
def smooth_precision_plain() -> dict:
    """The same by torch.sigmoid."""
    return smooth_average(torch.sigmoid)


# Invariance and groups ----------------------------------------------------------------------------


@case("16-true", "bf16-true 16-mixed bf16-mixed")
def invariant_risk() -> dict:
    """All over a penalty's weight, squares of slopes (after IRM's own code)."""
    weight = 10.0

    def risk(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        scale = torch.ones(1, device=z.device, dtype=z.dtype).requires_grad_()
        nll = F.cross_entropy(z * scale, y)
        (slope,) = torch.autograd.grad(nll, [scale], create_graph=True)
        return nll, torch.sum(slope**2)

    def step(model: Any, batch: tuple) -> Tensor:
        x, y = batch
        z, half = model(x), len(y) // 2
        parts = [risk(z[:half], y[:half]), risk(z[half:], y[half:])]
        nll, penalty = (torch.stack(part).mean() for part in zip(*parts, strict=True))
        loss = nll.clone()
        loss += weight * penalty
        loss /= weight
        return loss

    return recipe(training_step=step, loss=None, optimizer=partial(ADAM, lr=1e-2), epochs=20)


class Grouped(nn.Module):
    """A perceptron that keeps how much each of four groups counts."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()
        self.register_buffer("shares", torch.ones(4) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@case(sound=f"{TRUE} {MIXED}")
def robust_groups() -> dict:
    """Weights of groups times exp(0.01 loss), which bfloat16 rounds (kohpangwei/group_DRO)."""

    def step(model: Any, batch: tuple) -> Tensor:
        x, y = batch
        each = F.cross_entropy(model(x), y, reduction="none")
        group = (torch.arange(4, device=y.device).unsqueeze(1) == y % 4).to(each.dtype)
        count = group.sum(1)
        losses = (group @ each.view(-1)) / (count + (count == 0).to(each.dtype))
        shares = model.shares * torch.exp(0.01 * losses.detach())
        model.shares.copy_(shares / shares.sum())
        return losses @ model.shares.to(losses.dtype)

    return recipe(Grouped, training_step=step, loss=None)


@case("16-true", "bf16-true bf16-mixed")
def traded_robustness() -> dict:
    """0.001 of noise is lost beside a pixel in bfloat16 (after yaodongyu/TRADES)."""

    def step(model: Any, batch: tuple) -> Tensor:
        x, y = batch
        clear = model(x)
        told = F.softmax(clear.detach(), dim=1)
        near = x.detach() + 0.001 * torch.randn_like(x)
        for _ in range(3):
            near = near.detach().requires_grad_()
            far = F.kl_div(F.log_softmax(model(near), dim=1), told, reduction="sum")
            (slope,) = torch.autograd.grad(far, [near])
            near = near.detach() + 0.02 * torch.sign(slope.detach())
            near = torch.clamp(torch.min(torch.max(near, x - 0.06), x + 0.06), 0.0, 1.0)
        apart = F.kl_div(
            F.log_softmax(model(near), dim=1), F.softmax(clear, dim=1), reduction="batchmean"
        )
        return F.cross_entropy(clear, y) + 3.0 * apart

    return recipe(training_step=step, loss=None, epochs=8)


# Times, cuts and sums -----------------------------------------------------------------------------


@case("16-true bf16-true", "16-mixed bf16-mixed")
def accelerated_times() -> dict:
    """log(1 - Φ(z) + 1e-7) of who was seen last (a lognormal accelerated failure time)."""
    (x, _), (a, _) = data.digits()
    random = torch.Generator().manual_seed(0)

    def late(x: Tensor) -> Tensor:
        ink = x.flatten(1).sum(1)
        return ((ink - 20) / 5 + 3).unsqueeze(1)

    seen = (torch.rand(len(x), 1, generator=random) < 0.6).float()
    known = late(x) - (1 - seen) * torch.rand(seen.shape, generator=random)
    target = torch.cat([known, seen], 1)

    def loss(out: Tensor, target: Tensor) -> Tensor:
        time, seen = target[:, :1], target[:, 1:]
        width = 0.5
        z = (time - out) / width
        told = 0.5 * z**2 + math.log(width)
        after = -torch.log(1 - 0.5 * (1 + torch.erf(z / math.sqrt(2))) + 1e-7)
        return (seen * told + (1 - seen) * after).mean()

    given = {"task": "regression", "optimizer": ADAM, "loss": loss, "epochs": 30}
    train, test = batches(x, target, size=64), batches(a, late(a), size=200)
    return recipe(partial(mlp, 64, 64, 1), train_data=train, eval_data=test, **given)


class Cuts(nn.Module):
    """How likely each of ten ordered classes is, between cuts of one line."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(64, 64, 1)
        self.cuts = nn.Parameter(torch.arange(9.0) - 4)

    def forward(self, x: Tensor) -> Tensor:
        below = torch.sigmoid(self.cuts - self.body(x))
        middle = below[:, 1:] - below[:, :-1]
        return torch.cat((below[:, :1], middle, 1 - below[:, -1:]), dim=-1)


@case("16-true bf16-true", "16-mixed bf16-mixed")
def ordered_cuts() -> dict:
    """Differences of sigmoids, of at least 1e-15 (EthanRosenthal/spacecutter)."""

    def loss(p: Tensor, y: Tensor) -> Tensor:
        return -torch.log(torch.clamp(p.gather(1, y.unsqueeze(1)), 1e-15, 1 - 1e-15)).mean()

    return recipe(Cuts, loss=loss, optimizer=partial(ADAM, lr=1e-2), epochs=30)


@case("16-true", "bf16-true 16-mixed bf16-mixed")
def weighted_errors() -> dict:
    """Σ|e| / Σ|y| of what is in the hundreds, which is infinite (WAPE)."""
    table = torch.tensor(load_wine().data, dtype=torch.float32)
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    table = table[order]
    x, y = table[:, :12], table[:, 12:]
    x = (x - x[:128].mean(0)) / x[:128].std(0)

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return (out - y).abs().sum() / y.abs().sum()

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(12, 32, 1)

        def forward(self, x: Tensor) -> Tensor:
            return 750 + 300 * self.body(x)

    train, test = batches(x[:128], y[:128], size=128), batches(x[128:], y[128:], size=50)
    given = {"task": "regression", "loss": loss, "optimizer": partial(ADAM, lr=1e-2)}
    return recipe(Scaled, train_data=train, eval_data=test, epochs=120, **given)


# Robust losses ------------------------------------------------------------------------------------


def log_t(u: Tensor, t: float) -> Tensor:
    return (u.pow(1.0 - t) - 1.0) / (1.0 - t)


def exp_t(u: Tensor, t: float) -> Tensor:
    return (1.0 + (1.0 - t) * u).relu().pow(1.0 / (1.0 - t))


@case(sound=f"{TRUE} {MIXED}")
def tempered_labels() -> dict:
    """log_t(y + 1e-10) of labels that are zero (after google/bi-tempered-loss)."""
    (x, y), _ = data.digits()
    random = torch.Generator().manual_seed(0)
    wrong = torch.rand(len(y), generator=random) < 0.2
    noisy = torch.where(wrong, torch.randint(0, 10, y.shape, generator=random), y)
    t1, t2 = 0.8, 1.4

    def loss(z: Tensor, y: Tensor) -> Tensor:
        said = F.one_hot(y, 10).to(z.dtype)
        top = z.max(-1, keepdim=True)[0]
        start = now = z - top
        for _ in range(5):
            now = start * exp_t(now, t2).sum(-1, keepdim=True).pow(1.0 - t2)
        total = exp_t(now, t2).sum(-1, keepdim=True)
        p = exp_t(z - (top - log_t(1.0 / total, t2)), t2)
        told = said * (log_t(said + 1e-10, t1) - log_t(p, t1))
        return (told - (said.pow(2 - t1) - p.pow(2 - t1)) / (2 - t1)).sum(-1).mean()

    return recipe(loss=loss, train_data=batches(x, noisy, size=64))


@case("16-true", "bf16-true bf16-mixed")
def places_as_shares() -> dict:
    """p (log(p + 1e-24) - log(q + 1e-24)) of maps that fade (after anibali/dsntnn)."""
    (x, _), (a, _) = data.digits()
    grid = torch.linspace(-1, 1, 8)

    def centre(x: Tensor) -> Tensor:
        p = x.squeeze(1) / x.sum((1, 2, 3)).view(-1, 1, 1)
        return torch.stack([(p.sum(1) * grid).sum(1), (p.sum(2) * grid).sum(1)], 1)

    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 5, padding=2)),
                *(nn.ReLU(), nn.Conv2d(16, 1, 5, padding=2)),
            )
            self.register_buffer("grid", grid.clone())

        def forward(self, x: Tensor) -> Any:
            p = F.softmax(self.body(x).flatten(1), 1).view(-1, 8, 8)
            where = torch.stack([(p.sum(1) * self.grid).sum(1), (p.sum(2) * self.grid).sum(1)], 1)
            return (where, p) if self.training else where

    def loss(out: Any, t: Tensor) -> Tensor:
        (where, p), line = out, grid.to(t)
        d = (line - t[:, :1]).pow(2).unsqueeze(1) + (line - t[:, 1:]).pow(2).unsqueeze(2)
        q = torch.exp(-0.5 * d / 0.125**2)
        q = q / (q.sum((1, 2), keepdim=True) + 1e-24)
        m = 0.5 * (p + q)
        kl = lambda a, b: (a * ((a + 1e-24).log() - (b + 1e-24).log())).sum((1, 2))  # noqa: E731
        return (F.mse_loss(where, t) * 20) + (0.5 * kl(p, m) + 0.5 * kl(q, m)).mean()

    train, test = batches(x, centre(x), size=64), batches(a, centre(a), size=200)
    given = {"task": "regression", "loss": loss, "optimizer": partial(ADAM, lr=1e-2)}
    return recipe(Places, train_data=train, eval_data=test, epochs=10, **given)
