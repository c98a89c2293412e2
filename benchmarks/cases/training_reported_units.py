"""Roots of products, pooled statistics, loudness, sums of logarithms and filters in 16 bits.

As `training_reported`: written anew, labelled before the check answered, and asked of the judge.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, TRUE, case, mlp, recipe
from benchmarks.data import batches

ADAM = partial(torch.optim.Adam, lr=3e-3, eps=1e-4)

# Probabilities ------------------------------------------------------------------------------------


@case(f"16-true {MIXED}", "bf16-true")
def sigmoid_first() -> dict:
    """BCELoss of a sigmoid: not under autocast, and 0/0 where it is one (pytorch/pytorch#61098)."""
    (x, _), (a, _) = data.digits()
    dark = lambda x: (x.flatten(1) < 0.5).float()  # noqa: E731
    train, test = batches(x, dark(x), size=64), batches(a, dark(a), size=200)
    given = {"task": "regression", "loss": nn.BCELoss(), "optimizer": partial(ADAM, lr=2e-2)}
    make = lambda: mlp(64, 64, 64, nn.Sigmoid())  # noqa: E731
    return recipe(make, train_data=train, eval_data=test, epochs=20, **given)


# Poolings -----------------------------------------------------------------------------------------


class Bilinear(nn.Module):
    """Products of all channels with all, averaged over places; classes from their signed roots."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU()),
        )
        self.head, self.eps = nn.Linear(256, 10), eps

    def forward(self, x: Tensor) -> Tensor:
        f = self.body(x).flatten(2)
        p = (torch.bmm(f, f.transpose(1, 2)) / f.shape[2]).flatten(1)
        p = torch.sign(p) * torch.sqrt(torch.abs(p) + self.eps)
        return self.head(F.normalize(p, eps=1e-4))


@case("16-true 16-mixed", "bf16-true bf16-mixed")
def signed_roots() -> dict:
    """√(|x| + 1e-10) of products of dead channels (after bilinear networks' signed roots)."""
    return recipe(partial(Bilinear, 1e-10), optimizer=ADAM, epochs=8)


@case("16-true", f"bf16-true {MIXED}")
def signed_roots_apart() -> dict:
    """The same with 1e-5 (after HaoMood/bilinear-cnn); Adam's second moments are lost."""
    return recipe(partial(Bilinear, 1e-5), optimizer=ADAM, epochs=8)


class Statistics(nn.Module):
    """ECAPA's pooling: mean and spread of each channel over frames, by attention."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.frames = nn.Sequential(nn.Conv1d(8, 32, 3, padding=1), nn.ReLU(), nn.BatchNorm1d(32))
        self.asked = nn.Sequential(nn.Conv1d(32, 16, 1), nn.Tanh(), nn.Conv1d(16, 32, 1))
        self.norm, self.head, self.eps = nn.BatchNorm1d(64), nn.Linear(64, 10), eps

    def forward(self, x: Tensor) -> Tensor:
        x = self.frames(x.squeeze(1))
        m = torch.softmax(self.asked(x), 2)
        mean = (m * x).sum(2)
        std = torch.sqrt((m * (x - mean.unsqueeze(2)).pow(2)).sum(2).clamp(self.eps))
        return self.head(self.norm(torch.cat([mean, std], 1)))


@case("16-true", "bf16-true bf16-mixed")
def attentive_statistics() -> dict:
    """√clamp(Σ m (x - mean)², 1e-12) of channels that are dead (after speechbrain's ECAPA-TDNN)."""
    return recipe(partial(Statistics, 1e-12), optimizer=ADAM, epochs=8)


@case(sound=f"{TRUE} {MIXED}")
def attentive_statistics_apart() -> dict:
    """The same of at least 1e-4."""
    return recipe(partial(Statistics, 1e-4), optimizer=ADAM, epochs=8)


# Loudness and filters -----------------------------------------------------------------------------


class Loudness(nn.Module):
    """PCEN: energies over a slow mean of themselves to a power, all of it learned."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((8,), math.log(0.98)))
        self.delta = nn.Parameter(torch.full((8,), math.log(2.0)))
        self.r = nn.Parameter(torch.full((8,), math.log(0.5)))
        self.s = nn.Parameter(torch.full((8,), math.log(0.025)))
        self.body, self.eps = mlp(), eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.squeeze(1)
        s, r, delta = self.s.exp(), self.r.exp(), self.delta.exp()
        state, mean = x[:, 0], [x[:, 0]]
        for t in range(1, x.shape[1]):
            state = (1 - s) * state + s * x[:, t]
            mean.append(state)
        smooth = (torch.stack(mean, 1) + self.eps) ** -self.alpha.exp()
        return self.body((x * smooth + delta) ** r - delta**r)


@case("16-true", f"bf16-true {MIXED}")
def loudness() -> dict:
    """(mean + 1e-6)^-0.98 of silence is 760000, times zero (after daemon/pytorch-pcen)."""
    return recipe(partial(Loudness, 1e-6), optimizer=ADAM)


@case("16-true", f"bf16-true {MIXED}")
def loudness_slopes() -> dict:
    """The same with 1e-3, whose slope of 870000 is times zero."""
    return recipe(partial(Loudness, 1e-3), optimizer=ADAM)


@case(sound=f"{TRUE} {MIXED}")
def loudness_apart() -> dict:
    """The same with 1e-1, whose slope is below a hundred."""
    return recipe(partial(Loudness, 1e-1), optimizer=ADAM)


class Sinc(nn.Module):
    """SincNet: band-pass filters of which two frequencies are learned, in Hz."""

    def __init__(self, filters: int = 24, size: int = 65, rate: int = 16000) -> None:
        super().__init__()
        mel = np.linspace(
            2595 * np.log10(1 + 30 / 700), 2595 * np.log10(1 + 7900 / 700), filters + 1
        )
        hz = 700 * (10 ** (mel / 2595) - 1)
        self.low_hz_ = nn.Parameter(torch.Tensor(hz[:-1]).view(-1, 1))
        self.band_hz_ = nn.Parameter(torch.Tensor(np.diff(hz)).view(-1, 1))
        n = torch.linspace(0, size / 2 - 1, steps=size // 2)
        self.window_ = 0.54 - 0.46 * torch.cos(2 * math.pi * n / size)
        self.n_ = 2 * math.pi * torch.arange(-(size - 1) / 2.0, 0).view(1, -1) / rate
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        self.n_, self.window_ = self.n_.to(x.device), self.window_.to(x.device)
        low = 50 + torch.abs(self.low_hz_)
        high = torch.clamp(low + 50 + torch.abs(self.band_hz_), 50, self.rate / 2)
        band = (high - low)[:, 0]
        t_low, t_high = torch.matmul(low, self.n_), torch.matmul(high, self.n_)
        left = ((torch.sin(t_high) - torch.sin(t_low)) / (self.n_ / 2)) * self.window_
        middle, right = 2 * band.view(-1, 1), torch.flip(left, dims=[1])
        passed = torch.cat([left, middle, right], dim=1) / (2 * band[:, None])
        return F.conv1d(x, passed.view(len(low), 1, -1), stride=4)


class Heard(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sinc, self.norm = Sinc(), nn.LayerNorm(24)
        self.body = mlp(24, 64, 24)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.abs(self.sinc(x.unsqueeze(1))).mean(2)
        return self.body(self.norm(h))


@case(TRUE, MIXED)
def sinc_filters() -> dict:
    """Times that are no buffer meet frequencies in 16 bits (after mravanelli/SincNet)."""
    train, test = data.tones(1200), data.tones(400, seed=1)
    given = {"train_data": batches(*train, size=64), "eval_data": batches(*test, size=200)}
    return recipe(Heard, optimizer=partial(ADAM, lr=1e-2), epochs=12, **given)


# Logarithms ---------------------------------------------------------------------------------------


class Arithmetic(nn.Module):
    """NALU: sums, and products as sums of logarithms, by a gate."""

    def __init__(self, inputs: int, outputs: int, eps: float) -> None:
        super().__init__()
        self.w, self.m = (nn.Parameter(torch.rand(outputs, inputs)) for _ in range(2))
        self.g, self.eps = nn.Parameter(torch.randn(outputs, inputs) * 0.5), eps

    def forward(self, x: Tensor) -> Tensor:
        w = torch.tanh(self.w) * torch.sigmoid(self.m)
        gate = torch.sigmoid(F.linear(x, self.g))
        product = torch.exp(F.linear(torch.log(torch.abs(x) + self.eps), w))
        return gate * F.linear(x, w) + (1 - gate) * product


def products(eps: float) -> dict:
    """Products of two of four numbers, some of which are zero."""
    random = torch.Generator().manual_seed(0)
    x = torch.rand(1600, 4, generator=random) * 3
    x = x * (torch.rand(1600, 4, generator=random) > 0.1)
    y = x[:, :1] * x[:, 1:2]
    train, test = batches(x[:1200], y[:1200], size=50), batches(x[1200:], y[1200:], size=200)
    make = lambda: nn.Sequential(Arithmetic(4, 4, eps), nn.Linear(4, 1))  # noqa: E731
    given = {"task": "regression", "loss": F.mse_loss, "optimizer": partial(ADAM, lr=2e-2)}
    return recipe(make, train_data=train, eval_data=test, epochs=30, **given)


@case("16-true", f"bf16-true {MIXED}")
def arithmetic_units() -> dict:
    """log(|x| + 1e-10) of a zero (after kevinzakka/NALU-pytorch)."""
    return products(1e-10)


@case(sound=f"{TRUE} {MIXED}")
def arithmetic_units_apart() -> dict:
    """The same with 1e-4."""
    return products(1e-4)


class Dispatched(nn.Module):
    """Two of four experts, by a gate with noise; answers are added up as exponentials."""

    def __init__(self) -> None:
        super().__init__()
        make = lambda: nn.Sequential(mlp(64, 32, 10), nn.Softmax(1))  # noqa: E731
        self.experts = nn.ModuleList(make() for _ in range(4))
        self.w_gate = nn.Parameter(torch.zeros(64, 4))
        self.w_noise = nn.Parameter(torch.zeros(64, 4))
        self.register_buffer("mean", torch.tensor([0.0]))
        self.register_buffer("std", torch.tensor([1.0]))

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        clean = x @ self.w_gate
        width = F.softplus(x @ self.w_noise) + 1e-2
        noisy = clean + torch.randn_like(clean) * width if self.training else clean
        top, index = noisy.topk(3, dim=1)
        share = torch.softmax(top[:, :2], 1)
        gates = torch.zeros_like(clean).scatter(1, index[:, :2], share.to(clean.dtype))
        normal = torch.distributions.Normal(self.mean, self.std)
        inside = normal.cdf((clean - top[:, 2:3]) / width)
        outside = normal.cdf((clean - top[:, 1:2]) / width)
        return gates, torch.where(noisy > top[:, 2:3], inside, outside).sum(0)

    def uneven(self, x: Tensor) -> Tensor:
        return x.float().var() / (x.float().mean() ** 2 + 1e-10)

    def forward(self, x: Tensor) -> Any:
        x = x.flatten(1)
        gates, load = self.gates(x)
        sorted_experts, index = torch.nonzero(gates).sort(0)
        place = torch.nonzero(gates)[index[:, 1], 0]
        sizes = (gates > 0).sum(0).tolist()
        share = torch.gather(gates[place], 1, sorted_experts[:, 1:])
        parts = torch.split(x[place], sizes)
        out = torch.cat([e(p) for e, p in zip(self.experts, parts, strict=True)], 0).exp()
        zeros = torch.zeros(len(x), 10, requires_grad=True, device=x.device)
        combined = zeros.index_add(0, place, out.mul(share).float())
        combined[combined == 0] = np.finfo(float).eps
        answer = combined.log()
        return (answer, self.uneven(gates.sum(0)) + self.uneven(load)) if self.training else answer


@case("16-true", f"bf16-true {MIXED}")
def dispatched_experts() -> dict:
    """(gate - threshold) / width, whose slope is over width² (davidmrau/mixture-of-experts)."""
    loss = lambda out, y: F.cross_entropy(4 * out[0], y) + 0.01 * out[1]  # noqa: E731
    return recipe(Dispatched, loss=loss, optimizer=partial(ADAM, lr=1e-2), epochs=12)
