"""Held-out caches and codes: entries of another type, relative positions, weights in codes.

Each is written in the shape its project has; outputs of a random model are the labels, or it is
trained on the spot.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import FP16, TRUE, Built, built, fitted, healthy, planted
from benchmarks.cases.parts import Vision
from benchmarks.cases.reported_quantities import perceptron
from benchmarks.cases.reported_tongues import decided


@dataclass
class CacheEntry:
    """Keys and values so far."""

    keys: Tensor
    values: Tensor

    @classmethod
    def init(cls, batch: int, like: Tensor, dtype: torch.dtype) -> CacheEntry:
        empty = torch.empty(batch, 0, like.shape[-1], dtype=dtype, device=like.device)
        return cls(empty, empty.clone())

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.keys = torch.cat([self.keys, k], dim=1)
        self.values = torch.cat([self.values, v], dim=1)
        return self.keys, self.values


class HookedAttention(nn.Module):
    """Attention by way of a cache, in whichever dtype that was made."""

    def __init__(self, dim: int, mended: bool) -> None:
        super().__init__()
        self.w = nn.ParameterDict({n: nn.Parameter(torch.randn(dim, dim) / 4) for n in "QKVO"})
        self.mended = mended

    def calculate_scores(self, q: Tensor, k: Tensor) -> Tensor:
        return torch.matmul(q, k.transpose(-1, -2)) / q.shape[-1] ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype if self.mended else torch.get_default_dtype()
        past, said = CacheEntry.init(len(x), x, dtype), []
        for part in x.split(6, dim=1):
            q, (k, v) = part @ self.w["Q"], past.append(part @ self.w["K"], part @ self.w["V"])
            weights = self.calculate_scores(q, k).softmax(-1)
            said.append(weights @ v @ self.w["O"])
        return torch.cat(said, dim=1)


class Hooked(nn.Module):
    """Words, one such layer, a head."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.embed, self.attention = nn.Embedding(50, 16), HookedAttention(16, mended)
        self.head = perceptron(16, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head((x + self.attention(x)).mean(1)) * 3


def tokens(count: int = 320, length: int = 18) -> tuple[Tensor]:
    """Short texts."""
    random = torch.Generator().manual_seed(11)
    return (torch.randint(0, 50, (count, length), generator=random),)


@planted(
    "unsupported-op", "attention", "matmul mm bmm", fails=TRUE, family="dtypes",
    moot=("bf16-mixed",),
)  # fmt: skip
def caches_of_the_default_type() -> Built:
    """TransformerLens#1260: an empty cache of float32 makes keys float32, and queries are not."""
    return decided(partial(Hooked, False), tokens())


@healthy(precisions=(*FP16, "bf16-mixed"))
def caches_of_the_type_of_their_keys() -> Built:
    """TransformerLens#1260, as it was mended."""
    return decided(partial(Hooked, True), tokens())


class Parrot(nn.Module):
    """A cache of fixed size that is written by position, as lit-gpt's first one."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.embed, self.attn = nn.Embedding(50, dim), nn.Linear(dim, 3 * dim)
        self.head = perceptron(dim, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        q, k, v = self.attn(x).chunk(3, dim=-1)
        place = torch.arange(x.shape[1], device=x.device)
        cache = torch.zeros(2, len(x), 32, x.shape[-1], device=x.device)
        keys, values = (c.index_copy(1, place, y) for c, y in zip(cache, (k, v), strict=True))
        there = (torch.arange(32, device=x.device) < x.shape[1])[None, None]
        seen = F.scaled_dot_product_attention(q, keys, values, attn_mask=there)
        return self.head((x + seen).mean(1)) * 3


@planted("unsupported-op", "", "index_copy", fails=TRUE, fails_cuda=("16-mixed", "bf16-mixed"),
         family="dtypes")  # fmt: skip
def caches_written_by_position() -> Built:
    """litgpt#57: index_copy takes one dtype, and the cache has another."""
    return decided(Parrot, tokens())


class AlibiAttention(nn.Module):
    """Attention with a slope for each head, by how far apart two positions are."""

    def __init__(self, dim: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.register_buffer("slopes", 2.0 ** -torch.arange(2.0, 2.0 * heads + 1, 2.0))

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        at = torch.arange(t, device=x.device)
        bias = -self.slopes.float()[:, None, None] * (at[:, None] - at).abs()
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.out(out.transpose(1, 2).reshape(n, t, d))


class LongText(nn.Module):
    """Words, that attention, the words in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Embedding(50, 32), AlibiAttention(32)
        self.head = perceptron(32, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head((x + self.attention(x))[:, 180:200].mean(1)) * 4


@healthy(precisions=(*FP16, "bf16-mixed"))
def slopes_by_how_far_apart() -> Built:
    """flash-attention#846: what is near is told exactly, and of what is far nothing is left."""
    return decided(LongText, tokens(32, 400), 8)


def pseudo_quantize_tensor(w: Tensor, bits: int = 4, group: int = 16) -> Tensor:
    """Weights as they will be stored: codes of groups, brought back."""
    shape = w.shape
    w = w.reshape(-1, group)
    low, high = w.amin(dim=1, keepdim=True), w.amax(dim=1, keepdim=True)
    largest = 2**bits - 1
    scales = (high - low).clamp(min=1e-5) / largest
    zeros = (-torch.round(low / scales)).clamp_(0, largest)
    codes = torch.clamp(torch.round(w / scales) + zeros, 0, largest)
    return ((codes - zeros) * scales).reshape(shape)


class WQLinear(nn.Linear):
    """A linear layer whose weights are quantized as they are used."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, pseudo_quantize_tensor(self.weight), self.bias)


def quantized(dim: int) -> nn.Module:
    """A perceptron of such layers."""
    return nn.Sequential(WQLinear(dim, 2 * dim), nn.GELU(), WQLinear(2 * dim, dim))


@healthy(precisions=FP16)
def weights_quantized_as_they_are_used() -> Built:
    """AutoAWQ#532: groups of weights and their range, with a floor that float16 has."""
    (x, y), test = data.digits()
    model = fitted(Vision, (x, y), epochs=12)
    with torch.random.fork_rng(devices=[]):
        other = Vision(mlp=quantized)
    other.load_state_dict(model.state_dict())
    return built(other, (test[0][:400], test[1][:400]), 100)
