"""Held-out attention and state-space layers, as people write them; some sound, some not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import ALL, Built, built, fitted, healthy, planted


class Attend(nn.Module):
    """One layer of attention; `scores` is what differs."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.scores(q, k).softmax(-1).to(v.dtype) @ v


class Rows(nn.Module):
    """The rows of a digit, an embedding, an attention layer beside it, a head on all of them."""

    def __init__(self, attention: type[nn.Module] = Attend) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(8, 32), attention()
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32 * 8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1, 2))
        return self.head(self.norm(x + self.attention(x)).flatten(1))


class KeyPositions(nn.Module):
    """ALiBi by the place of the key alone, which a softmax cannot tell from the distance."""

    def __init__(self, start: int) -> None:
        super().__init__()
        self.register_buffer("places", torch.arange(start, start + 8).float(), persistent=False)
        self.register_buffer("slope", torch.tensor(0.7), persistent=False)

    def forward(self) -> Tensor:
        return self.slope * self.places


class AlibiAttend(Attend):
    """Attention with a linear bias; `start` is how long the text before was."""

    start = 3001

    def __init__(self) -> None:
        super().__init__()
        self.bias = KeyPositions(self.start)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return super().scores(q, k) + self.bias()


class AlibiNear(AlibiAttend):
    """The same bias, counted from the last key."""

    start = -7


@planted(
    "precision-loss", "attention.bias", "mul _to_copy", fails=("bf16-true",), moot=("16-true",),
    also=("absorption",), family="attention",
)  # fmt: skip
def alibi_by_key_position() -> Built:
    """TensorRT-Model-Connect#667, vllm-fork#503: slope times position 3000 in bfloat16."""
    train, test = data.digits()
    return built(fitted(lambda: Rows(AlibiAttend), train), test)


@healthy()
def alibi_by_distance() -> Built:
    """The same layer with positions counted back from the query."""
    train, test = data.digits()
    return built(fitted(lambda: Rows(AlibiNear), train), test)


class Padded(Attend):
    """Blank rows are masked by adding the type's smallest number."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = self.scores(q, k) - 20  # a learned bias of the kind that T5 and BLOOM have
        scores = scores + mask[:, None] * torch.finfo(scores.dtype).min
        return scores.softmax(-1).to(v.dtype) @ v


class PaddedRows(Rows):
    """Rows of which some are padding; some inputs are padding alone."""

    def __init__(self) -> None:
        super().__init__(Padded)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(x.flatten(1, 2))
        return self.head(self.norm(x + self.attention(x, mask)).flatten(1))


@planted("mask-inf", "attention", "add", fails=("16-true",), also=("overflow",), family="mask")
def smallest_number_and_a_score() -> Built:
    """transformers#17306: -65504 and a score below -16 are minus infinity, for every key."""
    (x, y), (u, v) = data.digits()

    def padded(x: Tensor) -> tuple[Tensor, Tensor]:
        mask = (x.sum((1, 3)) == 0).float()
        mask[::25] = 1
        return x, mask

    return built(fitted(PaddedRows, (*padded(x), y)), (*padded(u), v))


class EluFeatures(nn.Module):
    """elu(x) + 1, which is exp(x) below zero."""

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(x) + 1


class SafeEluFeatures(nn.Module):
    """The same by its two branches."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, x + 1, x.clamp(max=0).exp()).to(x.dtype)


class LinearAttend(nn.Module):
    """Linear attention over rows whose keys have gone far below zero."""

    features: type[nn.Module] = EluFeatures

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.qkv, self.map = nn.Linear(dim, 3 * dim), self.features()
        with torch.no_grad():
            self.qkv.bias[dim : 2 * dim] = -9.0

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k = self.map(q), self.map(k)
        norm = q @ k.sum(1)[..., None]
        return q @ (k.transpose(1, 2) @ v) / (norm + 1e-6)


class SafeLinearAttend(LinearAttend):
    """Linear attention with the features that do not cancel."""

    features = SafeEluFeatures


@planted(
    "cancellation", "attention.map", "add elu", fails=ALL, also=("absorption", "precision-loss"),
    family="attention",
)  # fmt: skip
def features_elu_plus_one() -> Built:
    """fla-org/flash-linear-attention#1261: elu(-9) is -1 in bfloat16, and plus one nothing."""
    train, test = data.digits()
    return built(fitted(lambda: Rows(LinearAttend), train), test)


@healthy()
def features_by_branches() -> Built:
    """fla-org/flash-linear-attention#1265: the mend of it."""
    train, test = data.digits()
    return built(fitted(lambda: Rows(SafeLinearAttend), train), test)


class Sparsemax(Attend):
    """Attention whose weights are the projection of the scores on the simplex."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = self.scores(q, k)
        z = scores.sort(-1, descending=True).values
        count = torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=z.dtype)
        total = z.cumsum(-1)
        support = (1 + count * z > total).sum(-1, keepdim=True)
        level = (total.gather(-1, support - 1) - 1) / support.to(z.dtype)
        return (scores - level).clamp(min=0).to(v.dtype) @ v


@healthy()
def sparsemax_attention() -> Built:
    """entmax: how many keys count may change, and the weights hardly do."""
    train, test = data.digits()
    return built(fitted(lambda: Rows(Sparsemax), train), test)


class Receptance(nn.Module):
    """RWKV's weighted values, with the running maximum taken off every exponent."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.rkv = nn.Linear(dim, 3 * dim)
        self.decay, self.first = nn.Parameter(torch.randn(dim) - 1), nn.Parameter(torch.randn(dim))

    def forward(self, x: Tensor) -> Tensor:
        r, k, v = self.rkv(x).chunk(3, -1)
        decay, out = -self.decay.exp(), []
        top, above = torch.zeros_like(k[:, 0]), torch.full_like(k[:, 0], -1e4)
        below, largest = torch.zeros_like(top), above
        for t in range(x.shape[1]):
            now = torch.maximum(largest, self.first + k[:, t])
            old, new = (largest - now).exp(), (self.first + k[:, t] - now).exp()
            out.append((old * top + new * v[:, t]) / (old * below + new))
            now = torch.maximum(largest + decay, k[:, t])
            old, new = (largest + decay - now).exp(), (k[:, t] - now).exp()
            top, below, largest = old * top + new * v[:, t], old * below + new, now
        return r.sigmoid() * torch.stack(out, 1)


@healthy()
def receptance_with_running_maximum() -> Built:
    """RWKV-LM#9: the recurrence that its float16 inference uses."""
    train, test = data.digits()
    return built(fitted(lambda: Rows(Receptance), train), test)


class Diagonal(nn.Module):
    """S4D: a kernel from complex rates, applied with a transform in float32."""

    def __init__(self, dim: int = 32, state: int = 8) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.log(torch.full((dim, state), 0.5)))
        self.turn = nn.Parameter(torch.pi * torch.arange(state).repeat(dim, 1).float())
        self.step = nn.Parameter(torch.rand(dim) * 2 - 3)
        self.out = nn.Parameter(torch.randn(dim, state, 2) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        length, step = x.shape[1], self.step.float().exp()[:, None]
        rates = torch.complex(-self.rate.float().exp(), self.turn.float())
        weight = torch.view_as_complex(self.out.float()) * (torch.exp(rates * step) - 1) / rates
        powers = (rates * step)[..., None] * torch.arange(length, device=x.device)
        kernel = 2 * torch.einsum("ds,dsl->dl", weight, powers.exp()).real
        u = x.float().transpose(1, 2)
        spectrum = torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
        y = torch.fft.irfft(spectrum, n=2 * length)[..., :length]
        return F.gelu(y.transpose(1, 2)).to(x.dtype)


@healthy()
def diagonal_state_space() -> Built:
    """T-Mamba#4, Time-Series-Library#761: the transform lifted to float32, as it was mended."""
    train, test = data.digits()
    return built(fitted(lambda: Rows(Diagonal), train), test)
