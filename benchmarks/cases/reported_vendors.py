"""Held-out norms, bands, experts, blocks and kernels as their vendors ship them.

Each is written in the shape its project has, by trained models or random ones.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import FP16, Built, built, fitted, healthy, planted
from benchmarks.cases.parts import Vision
from benchmarks.cases.reported_quantities import perceptron
from benchmarks.cases.reported_tongues import decided, drawn


def l2_normalize(x: Tensor, eps: float = 1e-12) -> Tensor:
    """As keras had it for torch: a squared norm, a floor, an inverse root."""
    square_sum = torch.sum(torch.square(x), dim=-1, keepdim=True)
    return x * torch.rsqrt(torch.clamp(square_sum, min=eps**2))


def lp_normalize(x: Tensor) -> Tensor:
    """The largest component first, then the norm of what is left."""
    largest = x.abs().amax(-1, keepdim=True)
    scaled = x / torch.where(largest > 0, largest, torch.ones_like(largest))
    return scaled / scaled.norm(dim=-1, keepdim=True)


class Embedder(nn.Module):
    """Features of some tens each, on a sphere."""

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.body = perceptron(16, 96)
        self.scaled = scaled

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = 150 * self.body(x)
        return {"logits": lp_normalize(y) if self.scaled else l2_normalize(y)}


def embedded(scaled: bool) -> Built:
    """Pairs of readings that are nearly alike."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Embedder(scaled).eval()
    near = drawn(128, 16, seed=1).repeat_interleave(2, 0) + 0.2 * drawn(256, 16, seed=2)
    return model, [(part, torch.zeros(len(part))) for part in near.split(64)]


@planted("overflow", "", "sum", fails=("16-true",), fails_cpu=("16-mixed",), family="norms",
         task="embedding")  # fmt: skip
def embeddings_by_an_inverse_root() -> Built:
    """keras#23093, mxnet#11938: a squared norm is infinite, and every embedding zero."""
    return embedded(False)


@healthy(task="embedding", precisions=FP16)
def embeddings_by_their_largest_component() -> Built:
    """onnxruntime#32574: the same, of components that are one at most."""
    return embedded(True)


class Bands(nn.Module):
    """Reflectances of each scene brought to one mean and spread."""

    def __init__(self, by_std: bool) -> None:
        super().__init__()
        self.by_std = by_std

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((-2, -1), keepdim=True)
        if self.by_std:
            return (x - mean) / x.std((-2, -1), keepdim=True)
        return (x - mean) / torch.sqrt(x.var((-2, -1), keepdim=True) + 1e-6)


class Clay(nn.Module):
    """A transformer on scenes."""

    def __init__(self, by_std: bool) -> None:
        super().__init__()
        self.bands, self.encoder = Bands(by_std), Vision()

    def forward(self, *, pixels: Tensor) -> Tensor:
        return self.encoder(self.bands(pixels))


class Trained(nn.Module):
    """The same by position, which is how it was trained."""

    def __init__(self, by_std: bool) -> None:
        super().__init__()
        self.clay = Clay(by_std)

    def forward(self, x: Tensor) -> Tensor:
        return self.clay(pixels=x)


def scenes(by_std: bool) -> Built:
    """Digits in the units of a sensor."""
    (x, y), (a, b) = data.digits()
    model = fitted(partial(Trained, by_std), (x * 5000 + 800, y), epochs=12)
    inputs = zip((a * 5000 + 800).split(100), b.split(100), strict=True)
    return model.clay, [({"pixels": one}, label) for one, label in inputs]


@planted("overflow", "bands", "var", fails=("16-true",), family="norms")
def reflectances_by_their_variance() -> Built:
    """Clay-foundation/model#143: a variance of 1900² is infinite, and every scene black."""
    return scenes(False)


@healthy()
def reflectances_by_their_deviation() -> Built:
    """The same by a standard deviation, whose square nobody stores."""
    return scenes(True)


class MoEFFN(nn.Module):
    """Experts of each token, chosen and weighed by a softmax that is cast back."""

    def __init__(self, dim: int, experts: int = 8, top: int = 2) -> None:
        super().__init__()
        self.router, self.top = nn.Linear(dim, experts, bias=False), top
        self.experts = nn.ModuleList(perceptron(dim, dim) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        scores = F.softmax(self.router(flat), dim=-1, dtype=torch.float32).to(flat.dtype)
        chosen, index = scores.topk(self.top, dim=-1)
        chosen = chosen / chosen.sum(-1, keepdim=True).clamp_min(1e-9)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            token, slot = torch.where(index == number)
            if token.numel():
                part = expert(flat[token]) * chosen[token, slot, None]
                out.index_add_(0, token, part.to(out.dtype))
        return out.view_as(x)


@healthy()
def experts_weighed_after_a_cast() -> Built:
    """OpenMythos#41: a floor of 1e-9 that is zero in float16, under a sum that never is."""
    (x, y), test = data.digits()
    make = partial(Vision, mlp=MoEFFN)
    return built(fitted(make, (x, y), epochs=12), (test[0][:200], test[1][:200]), 100)


class Q81Linear(nn.Module):
    """A product of blocks of eight bits: scales, offsets and sums of blocks, as llama.cpp has."""

    def __init__(self, into: int, out: int, wide: bool) -> None:
        super().__init__()
        self.weight, self.wide = nn.Parameter(drawn(out, into, seed=8) / into**0.5), wide

    def blocks(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = x.unflatten(-1, (-1, 32))
        d = x.abs().amax(-1, keepdim=True) / 127
        q = torch.round(x / torch.where(d == 0, torch.ones_like(d), d))
        total = (q * d).sum(-1)
        return q, d.squeeze(-1), total if self.wide else total.to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight.unflatten(-1, (-1, 32))
        low = w.amin(-1, keepdim=True)
        step = (w.amax(-1, keepdim=True) - low) / 15
        codes = torch.round((w - low) / step)
        q, d, s = self.blocks(x)
        inner = torch.einsum("nbk,obk->nob", q, codes) * (d.unsqueeze(1) * step.squeeze(-1))
        return (inner + s.unsqueeze(1) * low.squeeze(-1)).sum(-1)


class MiniMax(nn.Module):
    """A gated layer whose inner values are large and positive, and a quantized product of them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(12, 64), nn.Linear(12, 64)
        self.down, self.head = Q81Linear(64, 16, False), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = 60 * F.softplus(self.gate(3 * x)) * (40 + self.up(x))
        return self.head(self.down(h) / 4000)


@planted(
    "overflow",
    "down",
    "sum _to_copy",
    fails=("16-true",),
    fails_cpu=("16-mixed",),
    family="quantized",
)
def sums_of_blocks_in_half() -> Built:
    """ik_llama.cpp#1659: 32 values of thousands each, whose sum is kept in their own format."""
    return decided(MiniMax, (drawn(400, 12, seed=9),))


def neighborhood_attention(q: Tensor, k: Tensor, v: Tensor, reach: int) -> Tensor:
    """Attention to what is near, by a kernel that takes one dtype."""
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"query, key and value must share a dtype, got {q.dtype}, {v.dtype}")
    at = torch.arange(q.shape[-2], device=q.device)
    near = (at[:, None] - at[None]).abs() <= reach
    return F.scaled_dot_product_attention(q, k, v, attn_mask=near)


class Natten(nn.Module):
    """Queries and keys normed by layer."""

    def __init__(self, dim: int, mended: bool) -> None:
        super().__init__()
        self.qkv, self.proj, self.mended = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), mended
        self.q_norm, self.k_norm = nn.LayerNorm(dim // 4), nn.LayerNorm(dim // 4)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, 4, d // 4).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.mended:
            q, k = q.to(v.dtype), k.to(v.dtype)
        return self.proj(neighborhood_attention(q, k, v, 5).transpose(1, 2).reshape(n, t, d))


def attended(mended: bool) -> Built:
    """Digits."""
    (x, y), test = data.digits()
    make = partial(Vision, attention=partial(Natten, mended=mended))
    return built(fitted(make, (x, y), epochs=12), (test[0][:400], test[1][:400]), 100)


@planted(
    "unsupported-op", "blocks.0.attention", "ValueError layer_norm native_layer_norm _to_copy",
    fails_cuda=("16-mixed", "bf16-mixed"), family="dtypes",
)  # fmt: skip
def queries_of_another_type_than_values() -> Built:
    """physicsnemo#1978: CUDA's autocast norms in float32; the kernel wants the values' type."""
    return attended(False)


@healthy()
def queries_cast_to_the_type_of_values() -> Built:
    """physicsnemo#1978, as it was mended."""
    return attended(True)
