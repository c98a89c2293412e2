"""Held-out layers of speech, states and packed weights; some sound, some not."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import TRUE, Built, built, fitted, healthy, planted


class Masked(nn.Module):
    """fairseq's encoder layer: a mask of zeros and ones that is made numbers to add."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(32, 4, batch_first=True), nn.LayerNorm(32)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        added = mask.masked_fill(mask.to(torch.bool), self.hidden(x))
        return self.norm(x + self.attention(x, x, x, attn_mask=added, need_weights=False)[0])

    def hidden(self, x: Tensor) -> float:
        return -1e8


class TypedMasked(Masked):
    """The mend of it: a number that the type holds."""

    def hidden(self, x: Tensor) -> float:
        return -1e8 if x.dtype == torch.float32 else -1e4


class Windowed(nn.Module):
    """The rows of a digit, each of which sees its neighbours."""

    def __init__(self, layer: type[Masked]) -> None:
        super().__init__()
        self.embed, self.layer = nn.Linear(8, 32), layer()
        self.place, self.head = nn.Parameter(torch.randn(8, 32) * 0.1), nn.Linear(256, 10)
        far = (torch.arange(8)[:, None] - torch.arange(8)).abs() > 2
        self.register_buffer("far", far.float())

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1, 2)) + self.place
        return self.head(self.layer(x, self.far).flatten(1))


@planted("mask-inf", "layer", "masked_fill", fails=("16-true",), also=("overflow",), family="mask")
def mask_that_half_refuses() -> Built:
    """fairseq#3575: value cannot be converted to type at::Half without overflow."""
    train, test = data.digits()
    return built(fitted(lambda: Windowed(Masked), train), test)


@healthy()
def mask_by_the_type() -> Built:
    """fairseq#3575: -1e4 where the type is not float32."""
    train, test = data.digits()
    return built(fitted(lambda: Windowed(TypedMasked), train), test)


class Fourier(nn.Module):
    """AFNO: a perceptron on the transform of a picture, real and imaginary parts apart."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(2, dim, dim) / dim**0.5)
        self.bias = nn.Parameter(torch.zeros(2, dim))

    def typed(self, weight: Tensor) -> Tensor:
        return weight

    def forward(self, x: Tensor) -> Tensor:
        kept, x = x, torch.fft.rfft2(x.float(), dim=(1, 2), norm="ortho")
        real = torch.zeros(x.shape, device=x.device)
        imag = torch.zeros(x.shape, device=x.device)
        w, b = self.typed(self.first), self.typed(self.bias)
        mul = "nhwi,io->nhwo"
        real[..., :] = torch.einsum(mul, x.real, w[0]) - torch.einsum(mul, x.imag, w[1]) + b[0]
        imag[..., :] = torch.einsum(mul, x.imag, w[0]) + torch.einsum(mul, x.real, w[1]) + b[1]
        y = F.softshrink(torch.stack([real, imag], -1), 0.01)
        y = torch.fft.irfft2(torch.view_as_complex(y), s=kept.shape[1:3], dim=(1, 2), norm="ortho")
        return y.to(kept.dtype) + kept


class FloatFourier(Fourier):
    """The same with weights taken as float32 where they meet the transform."""

    def typed(self, weight: Tensor) -> Tensor:
        return weight.float()


class Forecast(nn.Module):
    """Pixels embedded, mixed by their transform, read."""

    def __init__(self, mixer: type[Fourier]) -> None:
        super().__init__()
        self.embed, self.mixer, self.head = nn.Linear(1, 16), mixer(16), nn.Linear(1024, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.mixer(self.embed(x.squeeze(1)[..., None]))).flatten(1))


@planted("unsupported-op", "mixer", "bmm einsum", fails=TRUE, family="operators")
def transform_meets_half_weights() -> Built:
    """FourCastNet's AFNO: x.float() before the transform, and weights that are half after it."""
    train, test = data.digits()
    return built(fitted(lambda: Forecast(Fourier), train), test)


@healthy()
def transform_and_weights_in_float32() -> Built:
    """The same with both in float32."""
    train, test = data.digits()
    return built(fitted(lambda: Forecast(FloatFourier), train), test)


class RelativeAttention(nn.Module):
    """ESPnet's attention with relative places: scores of places shifted into their diagonals."""

    def __init__(self, dim: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.width = heads, dim // heads
        self.q, self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.pos, self.out = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        self.u, self.w = (nn.Parameter(torch.randn(heads, dim // heads) * 0.1) for _ in range(2))
        self.pe: Tensor | None = None

    def places(self, x: Tensor) -> Tensor:
        if self.pe is None or self.pe.shape[1] < 2 * x.shape[1] - 1:
            place = torch.arange(x.shape[1] - 1, -x.shape[1], -1.0)[:, None]
            rate = torch.exp(torch.arange(0, 32, 2.0) * -(math.log(10000.0) / 32))
            self.pe = torch.stack([(place * rate).sin(), (place * rate).cos()], -1).flatten(1)[None]
        if self.pe.dtype != x.dtype or self.pe.device != x.device:
            self.pe = self.pe.to(dtype=x.dtype, device=x.device)
        return self.pe

    def shifted(self, x: Tensor) -> Tensor:
        x = torch.cat([x.new_zeros(*x.shape[:3], 1), x], -1)
        x = x.view(*x.shape[:2], x.shape[3], x.shape[2])[:, :, 1:]
        return x.reshape(*x.shape[:2], x.shape[3], x.shape[2])[..., : (x.shape[2] + 1) // 2]

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        n, t, _ = x.shape
        split = lambda y: y.view(len(y), -1, self.heads, self.width)  # noqa: E731
        q, k, v = (
            split(self.q(x)),
            split(self.k(x)).transpose(1, 2),
            split(self.v(x)).transpose(1, 2),
        )
        p = split(self.pos(self.places(x))).transpose(1, 2)
        content = (q + self.u).transpose(1, 2) @ k.transpose(-1, -2)
        scores = content + self.shifted((q + self.w).transpose(1, 2) @ p.transpose(-1, -2))
        scores = scores / math.sqrt(self.width)
        hidden = mask[:, None, None, :].eq(0)
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
        weight = torch.softmax(scores, -1).masked_fill(hidden, 0.0)
        return self.out((weight.to(v.dtype) @ v).transpose(1, 2).reshape(n, t, -1))


@torch.jit.script
def gated(x: Tensor, channels: int) -> Tensor:
    """WaveNet's gate, fused by a script."""
    return torch.tanh(x[:, :channels]) * torch.sigmoid(x[:, channels:])


class Conformer(nn.Module):
    """Words scaled by √d, relative attention, a gated convolution, the mean of what is there."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Embedding(1200, 32), RelativeAttention()
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(2))
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(32, 64, 5, padding=2))
        self.head = nn.Linear(32, 8)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        x = self.embed(ids) * math.sqrt(32)
        x = x + self.attention(self.norms[0](x), mask)
        x = x + gated(self.conv(self.norms[1](x).mT), 32).mT
        return self.head((x * mask[..., None]).sum(1) / lengths[:, None].to(x.dtype))


@healthy()
def conformer_with_relative_places() -> Built:
    """ESPnet's conformer, its table of places made once and cast as it is called; weight norm."""
    (ids, y), (test, v) = data.text_split()
    length = lambda t: (t != 0).sum(1).clamp(min=1)  # noqa: E731
    model = fitted(Conformer, (ids, length(ids), y), epochs=8)
    return built(model, (test, length(test), v))


class Segments(nn.Module):
    """Mamba 2's sums over segments, as differences of one running sum."""

    def forward(self, a: Tensor) -> Tensor:
        total = a.cumsum(-1)
        sums = total[..., :, None] - total[..., None, :]
        keep = torch.ones(sums.shape[-2:], dtype=torch.bool, device=a.device).tril()
        return sums.masked_fill(~keep, -torch.inf).exp()


class StableSegments(Segments):
    """The same as running sums of what each segment has."""

    def forward(self, a: Tensor) -> Tensor:
        size = a.shape[-1]
        ones = torch.ones(size, size, dtype=torch.bool, device=a.device)
        each = a[..., :, None].expand(*a.shape, size).masked_fill(~ones.tril(-1), 0)
        return each.cumsum(-2).masked_fill(~ones.tril(), -torch.inf).exp()


class Scan(nn.Module):
    """A state space as attention whose weights decay; most pixels decay fast, a few not at all."""

    def __init__(self, segments: type[Segments]) -> None:
        super().__init__()
        self.value, self.segments = nn.Linear(1, 8), segments()
        self.body = nn.Sequential(nn.Linear(512, 48), nn.ReLU(), nn.Linear(48, 10))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1)
        rate = -20.0 * (rows == 0).to(rows.dtype) - 0.2
        y = self.segments(rate) @ self.value(rows[..., None])
        return self.body(y.flatten(1))


@planted(
    "cancellation", "segments", "sub cumsum", fails=("bf16-true",),
    also=("precision-loss", "absorption"), moot=("16-true",), family="state space",
)  # fmt: skip
def segments_by_differences() -> Built:
    """mamba's ssd_minimal: a running sum of -700 in bfloat16 is known to four."""
    train, test = data.digits()
    return built(fitted(lambda: Scan(Segments), train), test)


@healthy()
def segments_summed_apart() -> Built:
    """mamba's stable segsum."""
    train, test = data.digits()
    return built(fitted(lambda: Scan(StableSegments), train), test)
