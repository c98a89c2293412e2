"""Holes, histograms, windows and splats in 16 bits, after what public issue trackers report.

As `training_reported`: written anew, labelled before the check answered, and asked of the judge.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, TRUE, case, recipe
from benchmarks.data import batches

ADAM = partial(torch.optim.Adam, lr=3e-3, eps=1e-4)

# Holes --------------------------------------------------------------------------------------------


class PartialConv(nn.Conv2d):
    """A convolution over what is known, scaled by how much of its window that is."""

    def __init__(self, inputs: int, outputs: int, eps: float) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.register_buffer("window", torch.ones(1, 1, 3, 3))
        self.eps = eps

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            known = F.conv2d(mask, self.window, padding=1)
            ratio = self.window.numel() / (known + self.eps)
            known = torch.clamp(known, 0, 1)
            ratio = torch.mul(ratio, known)
        bias = self.bias.view(1, -1, 1, 1)
        out = (super().forward(x * mask) - bias) * ratio + bias
        return out * known, known


class Inpainter(nn.Module):
    """Names digits with holes."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.first, self.second = PartialConv(1, 8, eps), PartialConv(8, 16, eps)
        self.head = nn.Linear(1024, 10)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x, mask = self.first(x, mask)
        x, mask = self.second(x.relu(), mask)
        return self.head(x.relu().flatten(1))


def holes(eps: float) -> dict:
    """Digits of which a square of four pixels is unknown."""
    (x, y), (a, b) = data.digits()
    random = torch.Generator().manual_seed(0)

    def torn(x: Tensor) -> Tensor:
        mask = torch.ones_like(x)
        for part in mask:
            top, left = torch.randint(0, 5, (2,), generator=random).tolist()
            part[:, top : top + 4, left : left + 4] = 0
        return mask

    train, test = batches(x, torn(x), y, size=64), batches(a, torn(a), b, size=200)
    return recipe(partial(Inpainter, eps), train_data=train, eval_data=test, optimizer=ADAM)


@case("16-true 16-mixed", "bf16-true bf16-mixed")
def partial_convolutions() -> dict:
    """9 / (known + 1e-8) where nothing is known (after jingyuanli001/RFR-Inpainting#8)."""
    return holes(1e-8)


@case("16-true", "bf16-true bf16-mixed")
def partial_convolutions_mended() -> dict:
    """The same with 1e-6, as NVIDIA/partialconv has it for 16 bits: 9 / 1e-6 is infinite."""
    return holes(1e-6)


@case(sound=f"{TRUE} {MIXED}")
def partial_convolutions_safe() -> dict:
    """The same with 1e-3."""
    return holes(1e-3)


# Joint histograms ---------------------------------------------------------------------------------


def clothes(count: int, split: str = "train") -> tuple[Tensor, Tensor]:
    """Noisy pictures between 0 and 1, and the pictures."""
    x = (data.fashion(split)[0][:count] * 0.3530 + 0.2860).clamp(0, 1)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return (x + 0.3 * noise).flatten(1), x.flatten(1)


def denoised(loss: Any, size: int, epochs: int) -> dict:
    """A small network that takes noise away."""
    make = lambda: nn.Sequential(  # noqa: E731
        *(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 784), nn.Sigmoid())
    )
    train, test = batches(*clothes(2048), size=size), batches(*clothes(400, "test"), size=200)
    given = {"loss": loss, "task": "regression", "epochs": epochs, "optimizer": ADAM}
    return recipe(make, train_data=train, eval_data=test, **given)


def shares(x: Tensor) -> Tensor:
    """How much of every pixel falls into each of eight bins."""
    at = torch.linspace(0, 1, 8, device=x.device, dtype=x.dtype)
    near = torch.exp(-50 * (x.clamp(0, 1)[..., None] - at) ** 2)
    return near / near.sum(-1, keepdim=True)


def informed(eps: float) -> dict:
    """What the bins of one picture tell about those of the other, from 784 pixels of each."""

    def loss(p: Tensor, t: Tensor) -> Tensor:
        told, meant = shares(p).transpose(1, 2), shares(t)
        joint = told @ meant / p.shape[1]
        apart = joint.sum(-1, keepdim=True) * joint.sum(-2, keepdim=True)
        known = (joint * torch.log((joint + eps) / (apart + eps))).sum((-2, -1)).mean()
        return 10 * F.mse_loss(p, t) - 0.1 * known

    return denoised(loss, 64, 4)


@case("16-true", "bf16-true bf16-mixed")
def joint_histogram() -> dict:
    """A quotient over 1e-6, whose slope is infinite (after Project-MONAI/MONAI#7622)."""
    return informed(1e-6)


@case(sound=f"{TRUE} {MIXED}")
def joint_histogram_safe() -> dict:
    """The same over 1e-2."""
    return informed(1e-2)


# Windows ------------------------------------------------------------------------------------------


def windowed(x: Tensor) -> Tensor:
    """Sums over windows of seven by seven pixels."""
    return F.conv2d(x, torch.ones(1, 1, 7, 7, device=x.device, dtype=x.dtype), padding=3)


@case("16-true bf16-true 16-mixed bf16-mixed")
def local_correlation() -> dict:
    """Variances as Σx² - (Σx)²/n over windows (after Hsankesara/VoxelMorph-PyTorch#2)."""

    def loss(p: Tensor, t: Tensor) -> Tensor:
        a, b, n = p.view(-1, 1, 28, 28), t.view(-1, 1, 28, 28), 49
        sa, sb = windowed(a), windowed(b)
        saa, sbb, sab = windowed(a * a), windowed(b * b), windowed(a * b)
        ua, ub = sa / n, sb / n
        cross = sab - ub * sa - ua * sb + ua * ub * n
        va, vb = saa - 2 * ua * sa + ua * ua * n, sbb - 2 * ub * sb + ub * ub * n
        return 5 * F.mse_loss(p, t) - 0.1 * (cross * cross / (va * vb + 1e-5)).mean()

    return denoised(loss, 64, 4)


@case(sound=f"{TRUE} {MIXED}")
def local_correlation_centred() -> dict:
    """The same of differences from each window's mean."""

    def loss(p: Tensor, t: Tensor) -> Tensor:
        a = F.unfold(p.view(-1, 1, 28, 28), 7, padding=3, stride=2)
        b = F.unfold(t.view(-1, 1, 28, 28), 7, padding=3, stride=2)
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        cross, va, vb = (a * b).sum(1), (a * a).sum(1), (b * b).sum(1)
        return 5 * F.mse_loss(p, t) - 0.1 * (cross * cross / (va * vb + 1e-2)).mean()

    return denoised(loss, 64, 4)


# Splats -------------------------------------------------------------------------------------------


class Splats(nn.Module):
    """Forty-eight turned Gaussians in pixels, whose sum is a picture."""

    def __init__(self, size: int, count: int = 48) -> None:
        super().__init__()
        self.size = size
        self.place = nn.Parameter(torch.rand(count, 2))
        self.width = nn.Parameter(math.log(size / 9) + 0.3 * torch.randn(count, 2))
        self.turn = nn.Parameter(math.pi * torch.rand(count))
        self.light = nn.Parameter(0.1 * torch.randn(count))

    def forward(self, x: Tensor) -> Tensor:
        cos, sin = self.turn.cos(), self.turn.sin()
        far, near = (2 * self.width).exp().unbind(-1)
        a, c = cos**2 * far + sin**2 * near, sin**2 * far + cos**2 * near
        b = cos * sin * (far - near)
        det = a * c - b * b
        dx, dy = (x[:, None] - self.place * self.size).unbind(-1)
        power = -0.5 * (c / det * dx * dx + a / det * dy * dy) + b / det * dx * dy
        return (power.exp() * self.light).sum(-1, keepdim=True)


@case("16-true", "16-mixed bf16-mixed")
def splats() -> dict:
    """A determinant of squared pixels, 600 x 600 (after graphdeco-inria's gaussian-splatting)."""
    size = 224
    grey = F.interpolate(data.fashion("test")[0][:1], size=size, mode="bilinear")[0, 0]
    at = torch.randint(0, size, (5120, 2), generator=torch.Generator().manual_seed(0))
    x, y = at.float(), grey[at[:, 1], at[:, 0], None]
    adam = partial(torch.optim.Adam, lr=2e-2, eps=1e-4)
    train, test = batches(x[:4096], y[:4096], size=512), batches(x[4096:], y[4096:], size=512)
    given = {"train_data": train, "eval_data": test, "optimizer": adam, "epochs": 25}
    return recipe(partial(Splats, size), loss=F.mse_loss, task="regression", **given)
