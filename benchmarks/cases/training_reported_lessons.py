"""Adversaries, noisy labels, groups, scalers and skipped batches in 16 bits, after issue trackers.

As `training_reported`: written anew, labelled before the check answered, and asked of the judge.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe
from benchmarks.data import batches

# Virtual adversaries ------------------------------------------------------------------------------


def virtual(near: float, eps: float) -> dict:
    """The direction in which an answer changes most is looked for, and the answer held there."""

    def unit(d: Tensor) -> Tensor:
        return d / (d.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + eps)

    def step(model: nn.Module, batch: tuple) -> Tensor:
        x, y = batch
        z = model(x)
        told = z.detach().softmax(-1)
        d = (near * unit(torch.randn_like(x))).requires_grad_()
        away = F.kl_div(model(x + d).log_softmax(-1), told, reduction="batchmean")
        worst = unit(torch.autograd.grad(away, d)[0])
        held = F.kl_div(model(x + 0.5 * worst).log_softmax(-1), told, reduction="batchmean")
        return F.cross_entropy(z, y) + held

    return recipe(training_step=step, loss=None, optimizer=partial(SGD, lr=0.05))


@case("16-true", f"bf16-true {MIXED}")
def virtual_adversary() -> dict:
    """A first step of 1e-6, which is none, over 1e-16 (after 9310gaurav; naoto0804's VAT#1)."""
    return virtual(1e-6, 1e-16)


@case(sound=f"{TRUE} {MIXED}")
def virtual_adversary_far() -> dict:
    """The same with a first step of 0.5, over 1e-4."""
    return virtual(0.5, 1e-4)


# Noisy labels -------------------------------------------------------------------------------------


class Remembering(nn.Module):
    """A perceptron, and what it has said of each picture so far."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.body = mlp(64, 96)
        self.register_buffer("said", torch.zeros(count, 10))

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        return self.body(x)


def early(highest: float) -> dict:
    """A fifth of the labels is wrong; what was said early is held on to (ELR)."""
    (x, y), (a, b) = data.digits()
    random = torch.Generator().manual_seed(0)
    wrong = torch.rand(len(y), generator=random) < 0.2
    y = torch.where(wrong, torch.randint(0, 10, y.shape, generator=random), y)

    def step(model: nn.Module, batch: tuple) -> Tensor:
        (x, index), y = batch
        z = model(x)
        told = torch.clamp(z.softmax(1), 1e-4, highest)
        now = told.detach()
        kept = 0.3 * model.said[index] + 0.7 * now / now.sum(1, keepdim=True)
        model.said[index] = kept
        return F.cross_entropy(z, y) + 3 * (1 - (kept * told).sum(1)).log().mean()

    train = batches(x, torch.arange(len(x)), y, size=64)
    test = batches(a, b, size=200)
    given = {"optimizer": partial(SGD, lr=0.05), "epochs": 25, "loss": None}
    return recipe(
        partial(Remembering, len(x)), training_step=step, train_data=train, eval_data=test, **given
    )


@case("16-true bf16-true")
def early_targets() -> dict:
    """log(1 - Σ tp) of p below 1 - 1e-4, which is one (after shengliu66/ELR)."""
    return early(1 - 1e-4)


@case(sound=f"{TRUE} {MIXED}")
def early_targets_safe() -> dict:
    """The same of p below 1 - 1/64."""
    return early(1 - 1 / 64)


# Groups -------------------------------------------------------------------------------------------


def sparse(eps: float) -> dict:
    """Which pixels count: a penalty on the length of each pixel's weights."""

    def step(model: nn.Module, batch: tuple) -> Tensor:
        x, y = batch
        length = (model[1].weight.pow(2).sum(0) + eps).sqrt().sum()
        return F.cross_entropy(model(x), y) + 5e-3 * length

    return recipe(training_step=step, loss=None)


@case("16-true", f"bf16-true {MIXED}")
def dying_groups() -> dict:
    """√(Σw² + 1e-12) of pixels that never vary, whose weights die out: a group lasso."""
    return sparse(1e-12)


@case(sound=f"{TRUE} {MIXED}")
def dying_groups_safe() -> dict:
    """The same with 1e-5."""
    return sparse(1e-5)


# A scaler that looks at the first batch -----------------------------------------------------------


class FirstBatch(nn.Module):
    """Standardises by the mean and spread of the first batch that it sees."""

    def __init__(self, count: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("scale", torch.ones(count))
        self.register_buffer("ready", torch.tensor(0, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        if self.ready.item() == 0:
            with torch.no_grad():
                self.mean.copy_(x.mean(0))
                self.scale.copy_(1 / (x.std(0) + self.eps))
                self.ready.fill_(1)
        return self.scale * (x - self.mean)


def bordered(eps: float) -> dict:
    """The middle of digits within a border of zeros."""
    (x, y), (a, b) = data.digits()
    cut = lambda x: F.pad(x[..., 2:6], (1, 1, 1, 1)).flatten(1)  # noqa: E731
    train, test = batches(cut(x), y, size=64), batches(cut(a), b, size=200)
    make = lambda: nn.Sequential(FirstBatch(60, eps), *list(mlp(60, 64))[1:])  # noqa: E731
    given = {"train_data": train, "eval_data": test, "optimizer": partial(SGD, lr=0.02)}
    return recipe(make, **given)


@case("16-true", f"bf16-true {MIXED}")
def first_batch_scales() -> dict:
    """1 / (std + 1e-6) of a border is infinite (after vislearn/FrEIA#121's ActNorm)."""
    return bordered(1e-6)


@case(sound=f"{TRUE} {MIXED}")
def first_batch_scales_safe() -> dict:
    """The same with 1e-3."""
    return bordered(1e-3)


# Skipped batches ----------------------------------------------------------------------------------


class Bytes(nn.Module):
    """An autoencoder of pixels up to 255."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(64, 32, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x / 255) * 255


@case("16-true", f"bf16-true {MIXED}")
def skipped_by_hand() -> dict:
    """Every batch is skipped, as its loss is infinite (after sanghyun-son/EDSR-PyTorch#36)."""
    (x, _), (a, _) = data.digits()
    x, a = 255 * x.flatten(1), 255 * a.flatten(1)

    def step(model: nn.Module, batch: tuple) -> Tensor:
        x, y = batch
        loss = (model(x) - y).pow(2).sum(1).mean()
        if not torch.isfinite(loss):
            return torch.zeros((), device=x.device, requires_grad=True)
        return loss

    adam = partial(torch.optim.Adam, lr=3e-3, eps=1e-4)
    train, test = batches(x, x, size=64), batches(a, a, size=200)
    given = {"training_step": step, "loss": None, "task": "regression", "optimizer": adam}
    return recipe(Bytes, train_data=train, eval_data=test, **given)
