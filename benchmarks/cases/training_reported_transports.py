"""Masks, splines, plans, spikes and step sizes in 16 bits, after what issue trackers report.

As `training_reported`: written anew, labelled before the check answered, and asked of the judge.
Written after what `training_reported_choices` and its siblings had shown was mended.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe
from benchmarks.cases.training_reported_pictures import pictures


def sparsemax(z: Tensor) -> Tensor:
    """The nearest probabilities, most of which are zero."""
    z = z - z.max(-1, keepdim=True).values
    ordered = z.sort(-1, descending=True).values
    total, k = ordered.cumsum(-1), torch.arange(1, z.shape[-1] + 1, device=z.device).to(z.dtype)
    count = (1 + k * ordered > total).sum(-1, keepdim=True)
    tau = (total.gather(-1, count - 1) - 1) / count.to(z.dtype)
    return (z - tau).clamp(min=0)


class Chosen(nn.Module):
    """Two steps, each of which looks at few of the pixels."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.first = nn.BatchNorm1d(64)
        self.ask = nn.ModuleList(nn.Linear(64, 64) for _ in range(2))
        self.norm = nn.ModuleList(nn.BatchNorm1d(64) for _ in range(2))
        self.see = nn.ModuleList(nn.Linear(64, 64) for _ in range(2))
        self.head, self.eps = nn.Linear(64, 10), eps

    def forward(self, x: Tensor):
        x = self.first(x.flatten(1))
        h, prior, total, entropy = x, torch.ones_like(x), 0.0, 0.0
        for ask, norm, see in zip(self.ask, self.norm, self.see, strict=True):
            mask = sparsemax(norm(ask(h)) * prior)
            entropy = entropy - (mask * (mask + self.eps).log()).sum(-1).mean()
            prior = prior * (1.3 - mask)
            h = see(mask * x).relu()
            total = total + h
        z = self.head(total)
        return (z, entropy) if self.training else z


def chosen(eps: float) -> dict:
    loss = lambda out, y: F.cross_entropy(out[0], y) + 1e-2 * out[1]  # noqa: E731
    return recipe(partial(Chosen, eps), loss=loss, optimizer=partial(SGD, lr=0.05), epochs=15)


@case("16-true", f"bf16-true {MIXED}")
def sparse_masks() -> dict:
    """m log(m + 1e-15) of masks that are zero (after dreamquark-ai/tabnet#150)."""
    return chosen(1e-15)


@case(sound=f"16-true {MIXED}")
def sparse_masks_safe() -> dict:
    """The same with 1e-5."""
    return chosen(1e-5)


class Spline(nn.Module):
    """Every pixel through a monotone spline of its own, with the logarithm of its slopes."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.widths, self.heights = (nn.Parameter(torch.zeros(64, 8)) for _ in range(2))
        self.eps = eps

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = [0.02 + 0.84 * p.softmax(-1) for p in (self.widths, self.heights)]
        at, to = (F.pad(p.cumsum(-1), (1, 0)) for p in parts)
        edges = torch.cat([at[:, :-1], torch.ones_like(at[:, -1:])], -1)
        last = torch.cat([edges[:, :-1], edges[:, -1:] + self.eps], -1)
        index = (x[..., None] >= last).sum(-1, keepdim=True) - 1
        pick = lambda p: p.expand(len(x), *p.shape).gather(-1, index).squeeze(-1)  # noqa: E731
        slope = pick(parts[1]) / pick(parts[0])
        return pick(to) + slope * (x - pick(edges)), slope.log()


class Flow(nn.Module):
    """A classifier of what a spline makes of the pixels."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.spline, self.body = Spline(eps), mlp()

    def forward(self, x: Tensor):
        u, slopes = self.spline(x.flatten(1))
        z = self.body(u)
        return (z, u, slopes) if self.training else z


def flowing(out: tuple[Tensor, ...], y: Tensor) -> Tensor:
    z, u, slopes = out
    return F.cross_entropy(z, y) + 0.01 * (u.square() / 2 - slopes).mean()


@case(TRUE, MIXED)
def spline_flow() -> dict:
    """The last edge plus 1e-6 is that edge, and a pixel of 1 beyond it (bayesiains/nflows#79)."""
    return recipe(partial(Flow, 1e-6), loss=flowing)


@case(sound=f"{TRUE} {MIXED}")
def spline_flow_safe() -> dict:
    """The same plus 1/64."""
    return recipe(partial(Flow, 1 / 64), loss=flowing)


class Moved(nn.Module):
    """Features, and what sixteen prototypes are to become of them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = mlp(64, 64, 16), nn.Linear(16, 10)
        self.kinds = nn.Parameter(torch.randn(16, 16))

    def forward(self, x: Tensor):
        h = self.body(x)
        return (self.head(h), h, self.kinds) if self.training else self.head(h)


def plan(cost: Tensor, temperature: float) -> Tensor:
    """Sinkhorn's plan, all in logarithms."""
    f, g = torch.zeros_like(cost[:, :1]), torch.zeros_like(cost[:1])
    a, b = -math.log(cost.shape[0]), -math.log(cost.shape[1])
    for _ in range(10):
        f = temperature * (a - ((g - cost) / temperature).logsumexp(1, keepdim=True))
        g = temperature * (b - ((f - cost) / temperature).logsumexp(0, keepdim=True))
    return ((f + g - cost) / temperature).exp()


@case(sound=f"{TRUE} {MIXED}")
def transport_in_logarithms() -> dict:
    """Sinkhorn's steps in logarithms at 0.05 (after jeanfeydy/geomloss)."""

    def loss(out: tuple[Tensor, ...], y: Tensor) -> Tensor:
        z, h, kinds = out
        cost = (F.normalize(h, dim=-1)[:, None] - F.normalize(kinds, dim=-1)).square().sum(-1)
        with torch.no_grad():
            moves = plan(cost, 0.05)
        return F.cross_entropy(z, y) + (moves * cost).sum()

    return recipe(Moved, loss=loss, optimizer=partial(SGD, lr=0.05))


class Distance(torch.optim.Optimizer):
    """Steps as long as the way so far over the length of all gradients so far."""

    def __init__(self, params: Any, least: float = 1e-6) -> None:
        super().__init__(params, {"least": least})
        self.start: list[Tensor] = []
        self.sum = 0.0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        moved = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        if not self.start:
            self.start = [p.clone() for p in moved]
            size = torch.stack([p.norm() for p in moved]).norm()
            self.far = self.param_groups[0]["least"] * (1 + size)
        way = torch.stack([(p - s).norm() for p, s in zip(moved, self.start, strict=True)]).norm()
        self.far = torch.maximum(self.far, way)
        self.sum = self.sum + torch.stack([p.grad.norm() for p in moved]).norm().square()
        for p in moved:
            p.sub_(p.grad * (self.far / (self.sum.sqrt() + 1e-8)))


@case(TRUE, MIXED)
def distance_over_gradients() -> dict:
    """DoG's first step is 1e-6 of the weights, which round it away (after formll/dog)."""
    return recipe(optimizer=Distance, epochs=25)


class Fire(torch.autograd.Function):
    """One above the threshold; as an arc tangent backwards."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return slope / (1 + (math.pi * v).square())


class Spiking(nn.Module):
    """Leaky neurons over six steps; the mean of the last one's potentials."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        current, total = self.first(2 * x.flatten(1)), 0.0
        v = torch.zeros_like(current)
        for _ in range(6):
            v = 0.8 * v + current
            spike = Fire.apply(v - 1)
            v = v - spike.detach()
            total = total + self.second(spike)
        return total / 6


@case(sound=f"16-true {MIXED}")
def spikes() -> dict:
    """Spikes with a surrogate slope (after fangwei123456/spikingjelly#36)."""
    return recipe(Spiking, optimizer=partial(SGD, lr=0.05), epochs=15)


class Steps(nn.Module):
    """Activations of four bits whose step is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.tensor(0.2))

    def forward(self, x: Tensor) -> Tensor:
        gain = 1 / math.sqrt(x[0].numel() * 15)
        step = (self.step - self.step * gain).detach() + self.step * gain
        level = (x / step).clamp(0, 15)
        return ((level.round() - level).detach() + level) * step


@case(sound=f"16-true {MIXED}")
def learned_steps() -> dict:
    """LSQ: a step with a gradient of its own size (after zhutmost/lsq-net)."""
    layers = lambda: (nn.Linear(64, 64), Steps(), nn.Linear(64, 64), Steps())  # noqa: E731
    make = lambda: nn.Sequential(nn.Flatten(), *layers(), nn.Linear(64, 10))  # noqa: E731
    return recipe(make, optimizer=partial(SGD, lr=0.05))


class Rays(nn.Module):
    """Two fields along a ray, the first of which only says where to look."""

    def __init__(self) -> None:
        super().__init__()
        self.where, self.field = nn.Linear(64, 16), mlp(64, 64, 32)

    def forward(self, x: Tensor):
        x = x.flatten(1)
        density, colour = self.field(x).chunk(2, -1)
        weights = [self.seen(self.where(x)), self.seen(density)]
        found = (weights[1] * colour).sum(-1, keepdim=True)
        return (found, *weights) if self.training else found

    @staticmethod
    def seen(density: Tensor) -> Tensor:
        passed = F.softplus(density) * 0.2
        before = (passed.cumsum(-1) - passed).neg().exp()
        return before * (1 - (-passed).exp())


@case(sound=f"16-true {MIXED}")
def proposals() -> dict:
    """max(w - v, 0)² / (w + 1e-7) of weights along a ray (after nerfstudio-project/nerfstudio)."""

    def loss(out: tuple[Tensor, ...], t: Tensor) -> Tensor:
        found, outer, inner = out
        inner = inner.detach()
        beyond = (inner - outer).clamp(min=0).square() / (inner + 1e-7)
        return F.mse_loss(found, t) + 0.1 * beyond.sum(-1).mean()

    ink = lambda x: x.flatten(1).mean(-1, keepdim=True) * 8 - 2  # noqa: E731
    return pictures(ink, Rays, loss, optimizer=partial(SGD, lr=0.05))
