"""Held-out pools, caches and spectra: sums over pictures, quantized keys, mels, linear attention.

Each is written in the shape its project has, and trained on the spot.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import FP16, Built, built, fitted, healthy, planted
from benchmarks.cases.parts import Encoder, Words


class ReduceMean(nn.Module):
    """A mean by a product with ones, divided by their number after it or before."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        ones = flat.new_ones(flat.shape[-1])
        if self.first:
            return torch.matmul(flat, ones / flat.shape[-1])
        return torch.matmul(flat, ones) * (1.0 / flat.shape[-1])


class Backbone(nn.Module):
    """Pixels of 0 to 255, enlarged; a squeeze, a head."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.conv, self.squeeze = nn.Conv2d(1, 16, 3, padding=1), ReduceMean(first)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.head = nn.Sequential(nn.BatchNorm1d(32), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        x = F.interpolate(F.relu(self.conv2(x)), scale_factor=24, mode="nearest")
        return self.head(self.squeeze(x))


def pictures(split: int) -> tuple[Tensor, Tensor]:
    """Digits as a camera gives them."""
    x, y = data.digits()[split]
    return x[:150] * 255, y[:150]


@planted("overflow", "squeeze", "mv matmul mm bmm", fails=FP16, family="sums")
def squeezed_by_a_sum_of_all_pixels() -> Built:
    """onnxconverter-common#323: a sum of 96 x 96 pixels is infinite before it is divided."""
    return built(fitted(partial(Backbone, False), pictures(0)), pictures(1), size=50)


@healthy()
def squeezed_by_shares_of_all_pixels() -> Built:
    """The same mean, of ones that are divided first."""
    return built(fitted(partial(Backbone, True), pictures(0)), pictures(1), size=50)


class QuantizedCache:
    """Eight-bit keys and values of all steps so far, by the range of each; no module."""

    def __init__(self, floor: float) -> None:
        self.floor = floor
        self.held: list[tuple[Tensor, Tensor, Tensor]] = []

    def write(self, x: Tensor) -> None:
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        scale = ((high - low) / 255).clamp(min=self.floor)
        self.held.append((((x - low) / scale).round().clamp(0, 255), scale, low))

    def read(self) -> Tensor:
        return torch.cat([q * scale + low for q, scale, low in self.held], dim=1)


class CachedAttention(nn.Module):
    """Keys and values by way of caches, in two chunks as a prompt comes in."""

    def __init__(self, dim: int, floor: float) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.out, self.floor = nn.Linear(dim, dim), floor

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x * mask.unsqueeze(-1).to(x.dtype)
        keys, values = QuantizedCache(self.floor), QuantizedCache(self.floor)
        for part in x.chunk(2, dim=1):
            keys.write(self.k(part))
            values.write(self.v(part))
        scores = torch.einsum("bqd,bkd->bqk", self.q(x), keys.read()) * x.shape[-1] ** -0.5
        scores = scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min)
        return self.out(scores.softmax(-1).to(x.dtype) @ values.read().to(x.dtype))


class Reader(nn.Module):
    """Words, attention over caches."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.model = Words(encoder=Encoder(CachedAttention(32, floor)))

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"logits": self.model(input_ids)}


def scored(outputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Cross entropy of a dictionary's logits."""
    return F.cross_entropy(outputs["logits"], labels)


def read(floor: float) -> Built:
    """Docstrings by topic."""
    train, (x, y) = data.text_split()
    model = fitted(partial(Reader, floor), train, epochs=6, loss=scored)
    return model, [
        ({"input_ids": a}, b) for a, b in zip(x[:200].split(100), y[:200].split(100), strict=True)
    ]


@planted("eps-underflow", "model.encoder.attention", "clamp div", fails=FP16, family="epsilon")
def keys_quantized_by_their_range() -> Built:
    """auto-round#207, openvino#28326: padding has no range, and 1e-8 is no scale in float16."""
    return read(1e-8)


@healthy()
def keys_quantized_by_a_range_with_a_floor() -> Built:
    """The same with a floor that float16 has."""
    return read(1e-5)


class Spectrogram(nn.Module):
    """Power of a wave, always in float32: stft asks for it."""

    def __init__(self, normalized: bool) -> None:
        super().__init__()
        self.normalized = normalized
        self.register_buffer("window", torch.hann_window(1024))

    def forward(self, wave: Tensor) -> Tensor:
        window = self.window.float()
        spec = torch.stft(wave.float(), 1024, 512, window=window, center=False, return_complex=True)
        power = spec.real.square() + spec.imag.square()
        return power / window.sum().square() if self.normalized else power


class MelScale(nn.Module):
    """Triangles over frequencies."""

    def __init__(self, mels: int = 32) -> None:
        super().__init__()
        at, middle = torch.arange(513.0)[:, None], torch.linspace(0, 512, mels + 2)[1:-1]
        self.register_buffer("fb", (1 - (at - middle).abs() / 16).clamp(min=0))

    def forward(self, spec: Tensor) -> Tensor:
        return torch.matmul(spec.transpose(-1, -2).to(self.fb.dtype), self.fb).transpose(-1, -2)


class BirdNet(nn.Module):
    """Log mels, each picture brought to one scale, a convolution, a head."""

    def __init__(self, normalized: bool) -> None:
        super().__init__()
        self.spectrogram, self.mel = Spectrogram(normalized), MelScale()
        self.conv, self.head = nn.Conv1d(32, 24, 3, padding=1), nn.Linear(24, 4)

    def forward(self, wave: Tensor) -> Tensor:
        x = torch.log(self.mel(self.spectrogram(wave)) + 1e-5)
        x = (x - x.mean((1, 2), keepdim=True)) / (x.std((1, 2), keepdim=True) + 1e-5)
        return self.head(F.relu(self.conv(x)).mean(-1))


def songs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Chirps that rise, fall, waver or stay, at full volume."""
    random = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 4, (count,), generator=random)
    time = torch.linspace(0, 1, 6144)
    kinds = torch.stack([time * 0.5, -time * 0.5, 0.2 * torch.sin(20 * time), 0 * time])
    pitch = 0.9 + 0.5 * torch.rand(count, 1, generator=random) + kinds[label]
    wave = torch.sin(pitch.cumsum(-1)) + 0.02 * torch.randn(count, 6144, generator=random)
    return wave, label


@planted("overflow", "mel", "_to_copy matmul bmm mm", fails=FP16, family="spectra")
def mels_of_whole_windows() -> Built:
    """birdclef2023-2nd-place-solution#2: a window of 1024 gives powers of 65536 and more."""
    return built(fitted(partial(BirdNet, False), songs(300, 0), epochs=8), songs(240, 1), 60)


@healthy()
def mels_of_normalized_windows() -> Built:
    """The same powers, divided by the window's."""
    return built(fitted(partial(BirdNet, True), songs(300, 0), epochs=8), songs(240, 1), 60)


class LinearAttention(nn.Module):
    """Causal attention by running sums of positive features."""

    def __init__(self, dim: int, mended: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.mended = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), mended

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k = F.elu(q) + 1.6, F.elu(k) + 1.6
        if self.mended:
            k = k / k.shape[1]
        z = 1 / (torch.einsum("nld,nld->nl", q, k.cumsum(1).to(q.dtype)) + 1e-6)
        kv = torch.einsum("nld,nlm->nldm", k, v).cumsum(1).to(q.dtype)
        return self.out(torch.einsum("nld,nldm,nl->nlm", q, kv, z.to(q.dtype)))


class Scanner(nn.Module):
    """Signs, one such layer, the last step."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.embed, self.attention = nn.Embedding(24, 16), LinearAttention(16, mended)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 6)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.attention(self.embed(ids))[:, -1]))


def signs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Long lists in which signs of one of six kinds are most frequent."""
    random = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 6, (count,), generator=random)
    ids = torch.randint(0, 24, (count, 2048), generator=random)
    known = torch.rand(count, 2048, generator=random) < 0.3
    return torch.where(known, label[:, None] + 6 * (ids % 4), ids), label


@planted("overflow", "attention", "bmm einsum mul sum", fails=FP16, moot=("bf16-true",),
         family="sums")  # fmt: skip
def denominators_of_long_texts() -> Built:
    """fast-transformers#11: what 2048 keys add up to, by a query of 16 numbers."""
    train = signs(120, 0)
    return built(fitted(partial(Scanner, False), train, epochs=6, batch=16), signs(36, 1), 6)


@planted("absorption", "attention", "cumsum", fails=("bf16-true",), also=("precision-loss",),
         fails_cpu=(), family="sums")  # fmt: skip
def denominators_of_long_texts_divided() -> Built:
    """The same with keys divided by their number: in bfloat16 CUDA's sums in turn stand still."""
    train = signs(120, 0)
    return built(fitted(partial(Scanner, True), train, epochs=6, batch=16), signs(36, 1), 6)
