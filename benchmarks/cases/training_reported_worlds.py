"""Positions, returns, noise and routes in 16 bits, after what public issue trackers report.

As `training_reported`: written anew, labelled before the check answered, and asked of the judge.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe
from benchmarks.cases.training_heldout import values
from benchmarks.data import batches


class Rotary(nn.Module):
    """Which of eight words came three places before the last, far into a stream."""

    def __init__(self, exact: bool) -> None:
        super().__init__()
        self.words, self.query, self.key = nn.Embedding(8, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.head, self.exact = nn.Linear(16, 8), exact
        self.register_buffer("inv_freq", 1 / 100 ** (torch.arange(8) / 8))

    def turn(self, x: Tensor) -> Tensor:
        inverse = self.inv_freq.float() if self.exact else self.inv_freq
        at = (600 + torch.arange(x.shape[1], device=x.device)).type_as(inverse)
        phase = at[:, None] * inverse
        cos, sin = phase.cos().to(x.dtype), phase.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        q, k = self.turn(self.query(x))[:, -1:], self.turn(self.key(x))
        return self.head(((q @ k.mT).softmax(-1) @ x).squeeze(1))


def stream(exact: bool) -> dict:
    ids = torch.randint(0, 8, (2400, 7), generator=torch.Generator().manual_seed(0))
    ids, test = ids[:2000], ids[2000:]
    return recipe(
        partial(Rotary, exact),
        train_data=batches(ids, ids[:, -4], size=50),
        eval_data=batches(test, test[:, -4], size=200),
        optimizer=partial(torch.optim.Adam, lr=1e-2, eps=1e-4),
        epochs=10,
    )


@case("bf16-true", MIXED)
def rotary_positions() -> dict:
    """Positions above 256 in the type of inv_freq (nkalyanv99/UNI-D2#6)."""
    return stream(False)


@case(sound=f"bf16-true {MIXED}")
def rotary_positions_safe() -> dict:
    """The same with phases in float32 (huggingface/transformers#29285)."""
    return stream(True)


class Normed(nn.Module):
    """Observations by the mean and variance of all that was seen."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()
        self.register_buffer("mean", torch.zeros(64))
        self.register_buffer("var", torch.ones(64))
        self.register_buffer("count", torch.ones(()))

    @torch.no_grad()
    def see(self, x: Tensor) -> None:
        delta, n = x.mean(0) - self.mean, len(x)
        total = self.count + n
        squares = self.var * self.count + x.var(0) * n + delta**2 * self.count * n / total
        self.mean.add_(delta * n / total)
        self.var.copy_(squares / total)
        self.count.copy_(total)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if self.training:
            self.see(x)
        return self.body(((x - self.mean) / torch.sqrt(self.var + 1e-5)).clamp(-5, 5))


@case("16-true", MIXED)
def running_observations() -> dict:
    """The number of all observations seen leaves the range (after Denys88/rl_games)."""
    return recipe(Normed, epochs=60, optimizer=partial(SGD, lr=0.02))


class TwoHot(nn.Module):
    """A value as weights of bins; their mean once trained."""

    def __init__(self, bins: Tensor, back) -> None:
        super().__init__()
        self.body, self.back = mlp(64, 64, len(bins)), back
        nn.init.zeros_(self.body[-1].weight)
        self.register_buffer("bins", bins)

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        return z if self.training else self.back((z.softmax(-1) * self.bins).sum(-1, keepdim=True))


def between(z: Tensor, t: Tensor, bins: Tensor) -> Tensor:
    """Cross entropy to the two bins around a target."""
    above = torch.searchsorted(bins, t.float()).clamp(1, len(bins) - 1)
    low, high = bins[above - 1], bins[above]
    part = ((t.float() - low) / (high - low)).to(z.dtype)
    logs = z.log_softmax(-1)
    return -((1 - part) * logs.gather(-1, above - 1) + part * logs.gather(-1, above)).mean()


def symexp(x: Tensor) -> Tensor:
    return x.sign() * (x.abs().exp() - 1)


def returns(bins: Tensor, back, forth) -> dict:
    loss = lambda z, t: between(z, forth(t), bins)  # noqa: E731
    return {**values(1.0, loss, 0.1, epochs=25), "model": lambda: TwoHot(bins, back)}


@case("16-true", MIXED)
def symexp_bins() -> dict:
    """Two-hot bins that reach to exp(12) - 1 (after danijar/dreamerv3)."""
    return returns(symexp(torch.linspace(-12, 12, 97)), lambda v: v, lambda t: t)


@case(sound=f"16-true {MIXED}")
def symexp_after() -> dict:
    """The same over even bins, symexp of their mean (after NM512/dreamerv3-torch)."""
    forth = lambda t: t.sign() * (t.abs() + 1).log()  # noqa: E731
    return returns(torch.linspace(-12, 12, 97), symexp, forth)


def unscaled(v: Tensor, eps: float = 0.001) -> Tensor:
    root = torch.sqrt(1 + 4 * eps * (v.abs() + 1 + eps))
    return v.sign() * (((root - 1) / (2 * eps)) ** 2 - 1)


@case(TRUE, MIXED)
def value_rescaling() -> dict:
    """((√(1 + 4ε(|v| + 1 + ε)) - 1) / 2ε)² - 1 at 0.001 (after werner-duvaud/muzero-general)."""
    forth = lambda t: t.sign() * ((t.abs() + 1).sqrt() - 1) + 0.001 * t  # noqa: E731
    return returns(torch.linspace(-2, 2, 17), unscaled, forth)


class Diffused(nn.Module):
    """Predicts noise or velocity; half way through the schedule once trained."""

    def __init__(self, velocity: bool) -> None:
        super().__init__()
        self.body, self.velocity = mlp(65, 128, 64), velocity
        f = torch.cos((torch.arange(1001) / 1000 + 0.008) / 1.008 * math.pi / 2).square()
        beta = (1 - f[1:] / f[:-1]).clamp(max=0.999)
        self.register_buffer("kept", torch.cumprod(1 - beta, 0))

    def forward(self, x: Tensor, noise: Tensor, at: Tensor | None = None) -> Tensor:
        at = torch.full((len(x),), 500, device=x.device) if at is None else at
        a = self.kept[at][:, None]
        x = a.sqrt() * x.flatten(1) + (1 - a).sqrt() * noise
        return self.body(torch.cat([x, at[:, None].to(x.dtype) / 1000], -1))

    def step(self, batch: tuple) -> Tensor:
        (x, _), _ = batch
        at, noise = (
            torch.randint(0, 1000, (len(x),), device=x.device),
            torch.randn_like(x.flatten(1)),
        )
        a = self.kept[at]
        snr = a / (1 - a)
        aim = noise
        if self.velocity:
            aim = a.sqrt()[:, None] * noise - (1 - a).sqrt()[:, None] * x.flatten(1)
        weight = snr.clamp(max=5) / (snr + 1 if self.velocity else snr)
        return ((self(x, noise, at) - aim).square().mean(-1) * weight).mean()


def diffusion(velocity: bool) -> dict:
    (x, _), (a, _) = data.digits()
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(len(a), 64, generator=random)
    kept = Diffused(velocity).kept[500]
    aim = kept.sqrt() * noise - (1 - kept).sqrt() * a.flatten(1) if velocity else noise
    given = {"loss": None, "training_step": lambda model, batch: model.step(batch)}
    pairs = batches(x, torch.zeros(len(x), 64), torch.zeros(len(x), 64), size=64)
    return recipe(
        partial(Diffused, velocity),
        train_data=pairs,
        eval_data=batches(a, noise, aim, size=200),
        optimizer=partial(SGD, lr=0.05),
        task="regression",
        epochs=20,
        **given,
    )


@case("16-true", MIXED)
def least_signal() -> dict:
    """min(snr, 5) / snr where the last step has next to none (TiankaiHang/Min-SNR#4)."""
    return diffusion(False)


@case(sound=f"16-true {MIXED}")
def least_signal_velocity() -> dict:
    """min(snr, 5) / (snr + 1) of a velocity (kohya-ss/sd-scripts#934)."""
    return diffusion(True)


class Placed(nn.Module):
    """Two experts of top-2 routing; who comes later stands behind, up to the capacity."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.gate, self.head = mlp(64, 64, 32), nn.Linear(32, 2), nn.Linear(32, 10)
        self.experts = nn.Parameter(torch.randn(2, 32, 32) / 32**0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x).relu()
        gates = self.gate(h).softmax(-1)
        first = F.one_hot(gates.argmax(-1), 2).to(gates.dtype)
        masks = torch.stack([first, 1 - first])
        before = torch.stack([torch.zeros_like(first.sum(0)), first.sum(0)])
        place = torch.cumsum(masks, 1) - 1 + before[:, None]
        slots = h.new_zeros(2, 2 * len(x), 32)
        out = torch.zeros_like(h)
        found = ((place * masks).sum(-1).long(), masks.argmax(-1))
        for at, expert in zip(*found, strict=True):
            slots.index_put_((expert, at), h.to(slots.dtype), accumulate=True)
        done = torch.bmm(slots, self.experts).relu()
        for at, expert in zip(*found, strict=True):
            out = out + gates.gather(1, expert[:, None]) * done[expert, at]
        return self.head(out)


@case("bf16-true", "16-true 16-mixed")
def expert_places() -> dict:
    """A running count in the gates' type: 257 is 256 (after lucidrains/mixture-of-experts)."""
    (x, y), (a, b) = data.digits()
    given = {"train_data": batches(x, y, size=718), "eval_data": batches(a, b, size=360)}
    return recipe(Placed, epochs=40, **given)


class Loudness(nn.Module):
    """Features over their own length, in a region that is not autocast."""

    def __init__(self, upcast: bool) -> None:
        super().__init__()
        self.body, self.head, self.upcast = nn.Linear(64, 64), nn.Linear(64, 10), upcast

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x.flatten(1))
        with torch.autocast(h.device.type, enabled=False):
            wide = h.float() if self.upcast else h
            wide = wide / (wide * wide).mean(-1, keepdim=True).sqrt()
        return self.head(wide.to(h.dtype).relu())


@case("16-true 16-mixed", "bf16-true bf16-mixed")
def island_without_a_cast() -> dict:
    """A region without autocast still gets float16 (pytorch/pytorch's AMP notes)."""
    return recipe(partial(Loudness, False), scale=2000.0)


@case(sound=f"{TRUE} {MIXED}")
def island_with_a_cast() -> dict:
    """The same with .float()."""
    return recipe(partial(Loudness, True), scale=2000.0)
