"""Backbones with a slot for the part under test, shared by healthy and planted cases."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.models import Attention

Make = Callable[[int], nn.Module]


def pairs(module_type: type[nn.Module], *args: object, **keywords: object) -> Make:
    """A constructor of one argument from one of more."""
    return lambda dim: module_type(dim, *args, **keywords)


class Block(nn.Module):
    """Pre-norm transformer block with exchangeable norm, attention and perceptron."""

    def __init__(self, dim: int, norm: Make, attention: Make, mlp: Make | None) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = norm(dim), attention(dim), norm(dim)
        self.mlp = mlp(dim) if mlp else perceptron(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def perceptron(dim: int) -> nn.Module:
    """The usual feed-forward part of a transformer block."""
    return nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))


class Patches(nn.Module):
    """[N, 1, H, W] to [N, T, patch²]."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return F.unfold(x, self.size, stride=self.size).transpose(1, 2)


class Vision(nn.Module):
    """A vision transformer for 8x8 digits: 16 patches, mean pooling."""

    def __init__(
        self,
        norm: Make = nn.LayerNorm,
        attention: Make | None = None,
        mlp: Make | None = None,
        dim: int = 32,
        depth: int = 2,
        scale: float = 1.0,
        offset: float = 0.0,
        pixels: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.patches, self.pixels = Patches(2), pixels or nn.Identity()
        self.embed = nn.Linear(4, dim)
        self.position = nn.Parameter(torch.randn(16, dim) * 0.1)
        attention = attention or pairs(Attention, 4)
        self.blocks = nn.ModuleList(Block(dim, norm, attention, mlp) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 10)
        self.scale, self.offset = scale, offset

    def forward(self, x: Tensor) -> Tensor:
        x = (self.embed(self.pixels(self.patches(x))) + self.position) * self.scale + self.offset
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class GlobalMean(nn.Module):
    """Mean over height and width."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Conv(nn.Module):
    """Two convolutions, each normed, a pool and a linear head."""

    def __init__(
        self,
        norm: Make = nn.BatchNorm2d,
        pool: nn.Module | None = None,
        width: int = 16,
        middle: nn.Module | None = None,
        first: nn.Module | None = None,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.first = first or nn.Identity()
        self.conv1, self.norm1 = nn.Conv2d(1, width, 3, padding=1), norm(width)
        self.middle = middle or nn.Identity()
        self.conv2, self.norm2 = (
            nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
            norm(2 * width),
        )
        self.pool = pool or GlobalMean()
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(F.relu(self.norm1(self.conv1(self.first(x)))))
        x = F.relu(self.norm2(self.conv2(x)))
        return self.head(self.pool(x))


class Rows(nn.Module):
    """A recurrent net that reads an image row by row."""

    def __init__(
        self,
        cell: type[nn.RNNBase] = nn.GRU,
        first: nn.Module | None = None,
        inputs: int = 8,
        hidden: int = 48,
        last: nn.Module | None = None,
        **keywords: object,
    ) -> None:
        super().__init__()
        self.first = first or nn.Identity()
        self.cell = cell(inputs, hidden, batch_first=True, **keywords)
        width = hidden * (2 if keywords.get("bidirectional") else 1)
        self.last = last or nn.Identity()
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.cell(self.first(x.flatten(1, 2)))
        return self.head(self.last(y[:, -1]))


class Dense(nn.Module):
    """A first part that makes features, and a perceptron on them."""

    def __init__(
        self,
        first: nn.Module,
        inputs: int,
        classes: int = 10,
        hidden: int = 64,
        last: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.first = first
        self.body = nn.Sequential(nn.BatchNorm1d(inputs), nn.Linear(inputs, hidden), nn.ReLU())
        self.head = nn.Linear(hidden, classes)
        self.last = last or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.head(self.body(self.first(x))))


class Words(nn.Module):
    """Embedding, optional encoder of (x, mask), pool of (x, mask), linear head; id 0 is padding."""

    def __init__(
        self,
        pool: nn.Module | None = None,
        encoder: nn.Module | None = None,
        dim: int = 32,
        classes: int = 8,
        vocabulary: int = 1200,
        embed: nn.Module | None = None,
        width: int | None = None,
    ) -> None:
        super().__init__()
        self.embed = embed or nn.Embedding(vocabulary, dim)
        self.encoder, self.pool = encoder, pool or MaskedMean()
        self.head = nn.Linear(width or dim, classes)

    def forward(self, ids: Tensor) -> Tensor:
        mask = ids != 0
        x = self.embed(ids)
        if self.encoder is not None:
            x = self.encoder(x, mask)
        return self.head(self.pool(x, mask))


class MaskedMean(nn.Module):
    """Mean over the real tokens."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        weight = mask.unsqueeze(-1).to(x.dtype)
        return (x * weight).sum(1) / weight.sum(1).clamp(min=1)


class Encoder(nn.Module):
    """A transformer over words: positions, one block, and the attention mask under test."""

    def __init__(self, attention: nn.Module, dim: int = 32, length: int = 24) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(length, dim) * 0.1)
        self.norm1, self.attention = nn.LayerNorm(dim), attention
        self.norm2, self.mlp = nn.LayerNorm(dim), perceptron(dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.position
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class HandAttention(nn.Module):
    """Attention spelt out, with the three places where people go wrong as methods to override."""

    def __init__(self, dim: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)

    def masked(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return scores
        return scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)

    def weights(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        w = self.weights(self.masked(self.scores(q, k), mask))
        return self.out((w.to(v.dtype) @ v).transpose(1, 2).reshape(n, t, d))
