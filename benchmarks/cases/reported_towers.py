"""A held-out tower of vision: two-dimensional rotations, sandwiched norms, a pooler by places."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import Built, built, fitted, healthy, planted


class Norm(nn.Module):
    """RMS norm in float32; a weight is optional."""

    def __init__(self, dim: int, weight: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim)) if weight else None

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
        if self.weight is not None:
            wide = wide * self.weight.float()
        return wide.type_as(x)


class Patches(nn.Module):
    """Pixels of a patch, projected, and learned positions of its column and its row."""

    def __init__(self, dim: int, places: int = 16) -> None:
        super().__init__()
        self.project = nn.Linear(4, dim, bias=False)
        self.table = nn.Parameter(torch.randn(2, places, dim) * 0.02)

    def forward(self, pixels: Tensor, places: Tensor) -> Tensor:
        x = self.project(2 * (pixels - 0.5))
        known = (places >= 0).all(-1)[..., None]
        column, row = self.table[0][places[..., 0].clamp(min=0)], self.table[1][places[..., 1]]
        return x + (column + row).to(x.dtype) * known


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """A rotation of halves."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class Rotary(nn.Module):
    """Angles of both axes: half of a head's features turn with the column, half with the row."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        rate = 100.0 ** -(torch.arange(0, dim // 2, 2).float() / (dim // 2))
        self.register_buffer("rate", rate, persistent=False)

    def forward(self, x: Tensor, places: Tensor) -> list[tuple[Tensor, Tensor]]:
        with torch.autocast(x.device.type, enabled=False):
            angle = places[..., None].float() * self.rate.float()
        return [(a.cos().to(x.dtype), a.sin().to(x.dtype)) for a in angle[:, None].unbind(-2)]


class Attention(nn.Module):
    """Queries and keys normed and turned; padding is masked."""

    def __init__(self, dim: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, size = heads, dim // heads
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.q_norm, self.k_norm, self.v_norm = Norm(size), Norm(size), Norm(size, weight=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, angles: list, mask: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = (
            f(x).view(n, t, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        q, k, v = self.q_norm(q), self.k_norm(k), self.v_norm(v)
        q, k = (
            torch.cat([turned(p, *a) for p, a in zip(y.chunk(2, -1), angles, strict=True)], -1)
            for y in (q, k)
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None], scale=1.0)
        return self.out(y.transpose(1, 2).reshape(n, t, d))


class Layer(nn.Module):
    """Norms before and after attention, before and after a gated perceptron."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(Norm(dim) for _ in range(4))
        self.attention = Attention(dim)
        self.gate, self.up = (
            nn.Linear(dim, 2 * dim, bias=False),
            nn.Linear(dim, 2 * dim, bias=False),
        )
        self.down = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x: Tensor, angles: list, mask: Tensor) -> Tensor:
        x = x + self.norms[1](self.attention(self.norms[0](x), angles, mask))
        y = self.norms[2](x)
        y = self.down(F.gelu(self.gate(y), approximate="tanh") * self.up(y))
        return x + self.norms[3](y)


class Pooler(nn.Module):
    """Means of squares of patches by their places, times the root of the width."""

    def __init__(self, dim: int, side: int = 2) -> None:
        super().__init__()
        self.root, self.side = dim**0.5, side

    def pooled(self, x: Tensor, places: Tensor) -> Tensor:
        cell = places.clamp(min=0) // self.side
        cell = cell[..., 0] + cell[..., 1] * 2
        weight = F.one_hot(cell, 4).float() * (places >= 0).all(-1)[..., None] / self.side**2
        return (weight.mT @ x.float()).to(x.dtype)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        return self.pooled(x, places) * self.root


class WidePooler(Pooler):
    """The scale in float32, which it stays in."""

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        return self.pooled(x, places).float() * self.root


class Tower(nn.Module):
    """Patches with padding, layers, pooler; the features less what they were measured to be."""

    def __init__(self, pooler: type[Pooler], dim: int = 64, loud: float = 4000.0) -> None:
        super().__init__()
        self.patches, self.rotary = Patches(dim), Rotary(dim // 4)
        self.layers = nn.ModuleList(Layer(dim) for _ in range(2))
        self.norm, self.pooler = Norm(dim), pooler(dim)
        self.register_buffer("std_bias", torch.zeros(dim))
        self.register_buffer("std_scale", torch.ones(dim))
        self.head = nn.Linear(dim, 10)
        with torch.no_grad():  # a few channels that are loud everywhere, as large towers have them
            self.norm.weight.fill_(loud)

    def standardized(self, x: Tensor) -> Tensor:
        if self.training:
            flat = x.detach().flatten(0, 1)
            self.std_bias.lerp_(flat.mean(0), 0.1)
            self.std_scale.lerp_(1 / flat.std(0).clamp(min=1e-3), 0.1)
            return (x - flat.mean(0)) / flat.std(0)
        return ((x - self.std_bias) * self.std_scale).to(self.head.weight.dtype)

    def forward(self, pixels: Tensor, places: Tensor) -> Tensor:
        mask = (places >= 0).all(-1)
        x = self.patches(pixels, places)
        angles = self.rotary(x, places)
        for layer in self.layers:
            x = layer(x, angles, mask)
        return self.head(self.standardized(self.pooler(self.norm(x), places)).mean(1))


def padded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Patches of two by two and their places; four of twenty are padding."""
    pixels = F.pad(F.unfold(x, 2, stride=2).mT, (0, 0, 0, 4))
    grid = torch.cartesian_prod(torch.arange(4), torch.arange(4)).flip(-1)
    places = F.pad(grid, (0, 0, 0, 4), value=-1)
    return pixels, places.expand(len(x), -1, -1).contiguous()


def tower(pooler: type[Pooler]) -> Built:
    """Digits through the tower."""
    (x, y), (u, v) = data.digits()
    model = fitted(lambda: Tower(pooler), (*padded(x), y), epochs=12)
    return built(model, (*padded(u), v))


@planted("overflow", "pooler", "mul", fails=("16-true", "16-mixed"), moot=(), family="vision")
def loud_features_scaled() -> Built:
    """transformers#46277: times eight they leave float16, a moment before they are standardized."""
    return tower(Pooler)


@healthy()
def loud_features_in_float32() -> Built:
    """transformers#46277: scaled and standardized in float32, cast when they are small again."""
    return tower(WidePooler)
