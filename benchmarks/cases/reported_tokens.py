"""Held-out parts of language models: ternary weights, shared queries, nuclei, rotations, merges.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import Built, healthy, planted
from benchmarks.cases.reported_quantities import perceptron, taught
from benchmarks.cases.reported_structures import settled
from benchmarks.cases.reported_tongues import drawn


class RMSNorm(nn.Module):
    """Llama's, without its casts."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def activation_quant(x: Tensor, floor: float) -> Tensor:
    """BitNet's: each token to eight bits, by its largest number."""
    scale = 127.0 / x.abs().max(dim=-1, keepdim=True).values.clamp_(min=floor)
    return (x * scale).round().clamp_(-128, 127) / scale


def weight_quant(w: Tensor) -> Tensor:
    """BitNet's: -1, 0 and 1, by the mean size of all weights."""
    scale = 1.0 / w.abs().mean().clamp_(min=1e-5)
    return (w * scale).round().clamp_(-1, 1) / scale


class BitLinear(nn.Linear):
    """A layer of ternary weights that are quantized as it is called."""

    def __init__(self, into: int, out: int, floor: float) -> None:
        super().__init__(into, out, bias=False)
        self.floor, self.norm = floor, RMSNorm(into)

    def forward(self, x: Tensor) -> Tensor:
        x_norm = self.norm(x)
        x_quant = x_norm + (activation_quant(x_norm, self.floor) - x_norm).detach()
        w_quant = self.weight + (weight_quant(self.weight) - self.weight).detach()
        return F.linear(x_quant, w_quant)


class BitNet(nn.Module):
    """Words, two perceptrons of ternary weights, the mean of those that are no padding."""

    def __init__(self, floor: float, dim: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(200, dim, padding_idx=0)
        self.up = nn.ModuleList(BitLinear(dim, 2 * dim, floor) for _ in range(2))
        self.down = nn.ModuleList(BitLinear(2 * dim, dim, floor) for _ in range(2))
        self.head = nn.Linear(dim, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x, there = self.embed(ids), (ids > 0).unsqueeze(-1)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(F.relu(up(x)).square())
        return self.head((x * there).sum(1) / there.sum(1)) * 3


def sentences() -> tuple[Tensor]:
    """Words of a sentence, padded to sixteen."""
    ids = (200 * drawn(400, 16, seed=1).sigmoid()).long().clamp(1, 199)
    return (ids * (torch.arange(16) < 8 + torch.arange(400).unsqueeze(1) % 9),)


@planted("overflow", "up.0", "reciprocal div mul", fails=("16-true",), family="quantization",
         also=("eps-underflow",))  # fmt: skip
def padding_by_its_largest_number() -> Built:
    """microsoft/unilm, BitNet b1.58: 1 / 1e-5 is infinite in float16, and times no padding NaN."""
    return settled(partial(BitNet, 1e-5), sentences())


@healthy()
def padding_by_a_floor_that_has_an_inverse() -> Built:
    """The same over 1e-2: 12700 is a number of float16."""
    return settled(partial(BitNet, 1e-2), sentences())


class SharedQK(nn.Module):
    """Reformer's full attention: queries are keys, and a token sees itself only where it must."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.toqk, self.tov, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        t, dim = x.shape[1], x.shape[2]
        q, v = self.toqk(x), self.tov(x)
        k = F.normalize(q, 2, dim=-1).type_as(q)
        dot = torch.einsum("bie,bje->bij", q, k) * (dim**-0.5)
        i = torch.arange(t, device=x.device)
        dot[:, i, i] = -5e4
        i, j = torch.triu_indices(t, t, 1, device=x.device)
        dot[:, i, j] = -torch.finfo(dot.dtype).max
        return self.out(torch.einsum("bij,bje->bie", dot.softmax(-1), v))


class Reformer(nn.Module):
    """Two such layers, whose streams are two that are added to in turn."""

    def __init__(self, dim: int = 24) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(200, dim), nn.Embedding(16, dim)
        self.attend = nn.ModuleList(SharedQK(dim) for _ in range(2))
        self.feed = nn.ModuleList(perceptron(dim, dim) for _ in range(2))
        self.head = nn.Linear(dim, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.place.weight
        x1, x2 = x, x
        for attend, feed in zip(self.attend, self.feed, strict=True):
            x1 = x1 + attend(x2)
            x2 = x2 + feed(x1)
        return self.head((x1 + x2).mean(1)) * 3


@healthy()
def itself_at_minus_fifty_thousand() -> Built:
    """reformer-pytorch: -5e4, "carefully set for half precision to work", and finfo.min beyond."""
    return settled(Reformer, (sentences()[0] + 1 - (sentences()[0] > 198).long(),))


class Nucleus(nn.Module):
    """What is expected of a word of the nucleus: those that hold nine tenths of all chances."""

    def __init__(self, wide: bool, words: int = 3000, top_p: float = 0.9) -> None:
        super().__init__()
        self.wide, self.top_p = wide, top_p
        self.lm_head, self.value = nn.Linear(16, words), nn.Linear(words, 1)

    def filtered(self, logits: Tensor) -> Tensor:
        logits = logits.float() if self.wide else logits
        ordered, index = torch.sort(logits, descending=True)
        cumulative_probs = ordered.softmax(dim=-1).cumsum(dim=-1)
        remove = cumulative_probs > self.top_p
        remove[:, 1:] = remove[:, :-1].clone()
        remove[:, 0] = 0
        return logits.masked_fill(remove.scatter(1, index, remove), float("-inf"))

    def forward(self, x: Tensor) -> Tensor:
        probs = self.filtered(self.lm_head(x)).softmax(dim=-1)
        return 30 * self.value(probs.to(self.value.weight.dtype))


@healthy(task="regression", precisions=("16-true", "16-mixed", "bf16-mixed"))
def nuclei_by_running_sums() -> Built:
    """Megatron-LM#7182: chances of 3000 words are added up in the type of the logits."""
    return taught(partial(Nucleus, False), (2 * drawn(200, 16, seed=2),), 0.02)


class RotaryByComplex(nn.Module):
    """Queries and keys as complex numbers, turned by others; no cast, as in an early Llama port."""

    def __init__(self, dim: int = 24, heads: int = 3, length: int = 16) -> None:
        super().__init__()
        self.heads, self.wqkv, self.wo = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        freqs = 1.0 / (100.0 ** (torch.arange(0, dim // heads, 2).float() / (dim // heads)))
        angle = torch.outer(torch.arange(length).float(), freqs)
        self.freqs_cis = torch.polar(torch.ones_like(angle), angle)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.wqkv(x).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        turn = self.freqs_cis.to(x.device)
        q_ = torch.view_as_complex(q.reshape(*q.shape[:-1], -1, 2))
        k_ = torch.view_as_complex(k.reshape(*k.shape[:-1], -1, 2))
        q = torch.view_as_real(q_ * turn).flatten(3).type_as(v)
        k = torch.view_as_real(k_ * turn).flatten(3).type_as(v)
        said = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(said.transpose(1, 2).reshape(n, t, d))


class Rotated(nn.Module):
    """Words, that attention, the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Embedding(200, 24), RotaryByComplex()
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(self.norm(x + self.attention(x)).mean(1)) * 4


@planted("unsupported-op", "attention", "view_as_complex", fails=("bf16-true", "bf16-mixed"),
         family="attention")  # fmt: skip
def rotations_of_no_complex_type() -> Built:
    """Llama ports without .float(): there are no complex numbers of two bfloat16."""
    return settled(Rotated, sentences())


class Float8Linear(nn.Linear):
    """A layer of eight-bit floats: a scale for each token and each output, and back again."""

    def quantized(self, x: Tensor) -> Tensor:
        scale = x.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / 448.0
        low = (x.float() / scale).to(torch.float8_e4m3fn)
        return (low.float() * scale).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.quantized(x), self.quantized(self.weight), self.bias)


class Eight(nn.Module):
    """A perceptron of such layers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(Float8Linear(16, 48), nn.GELU(), Float8Linear(48, 48), nn.GELU())
        self.head = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x)) * 3


@healthy()
def layers_of_eight_bit_floats() -> Built:
    """torchao's float8 by hand: what is rounded to three bits is another three now and then."""
    return settled(Eight, (drawn(400, 16, seed=3),))


class RingAttention(nn.Module):
    """Attention over blocks of keys, merged one by one, as ring-flash-attention does."""

    def __init__(self, dim: int, blocks: int = 8, wide: bool = False) -> None:
        super().__init__()
        self.wide, self.blocks = wide, blocks
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        out = lse = None
        for kb, vb in zip(k.chunk(self.blocks, 1), v.chunk(self.blocks, 1), strict=True):
            scores = q @ kb.transpose(1, 2) * q.shape[-1] ** -0.5
            block_lse = torch.logsumexp(scores, -1, keepdim=True)
            block_out = torch.exp(scores - block_lse).to(vb.dtype) @ vb
            if self.wide:
                block_out, block_lse = block_out.float(), block_lse.float()
            if out is None:
                out, lse = block_out, block_lse
            else:
                out = out - torch.sigmoid(block_lse - lse) * (out - block_out)
                lse = lse - F.logsigmoid(lse - block_lse)
        return self.out(out.to(x.dtype))


class Ring(nn.Module):
    """Long texts, that attention, the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Embedding(200, 24), RingAttention(24)
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(self.norm(x + 2 * self.attention(x)).mean(1)) * 4


@healthy()
def blocks_of_keys_merged_one_by_one() -> Built:
    """zhuzilin/ring-flash-attention: merged in the type of the values."""
    ids = (200 * drawn(240, 64, seed=4).sigmoid()).long().clamp(0, 199)
    return settled(Ring, (ids,), 80)
