"""Held-out models in which two types of tensors meet, as code written for float32 lets them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import TRUE, Built, built, fitted, healthy, planted


class ProbSparse(nn.Module):
    """Informer's masked attention: a running mean of values, replaced for the busiest queries."""

    def __init__(self, dim: int, cast: bool) -> None:
        super().__init__()
        self.qkv, self.cast = nn.Linear(dim, 3 * dim), cast

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        busy = (scores.amax(-1) - scores.mean(-1)).topk(3).indices
        context = v.cumsum(1)
        if self.cast:
            context = context.to(v.dtype)
        rows = torch.arange(len(x), device=x.device)[:, None]
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        scores = scores.masked_fill(later, torch.finfo(scores.dtype).min)
        context[rows, busy] = (scores.softmax(-1).to(v.dtype) @ v)[rows, busy]
        return context.to(x.dtype) / x.shape[1]


class Informer(nn.Module):
    """The rows of a digit as a series."""

    def __init__(self, cast: bool) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, 32), nn.Parameter(torch.randn(8, 32) * 0.3)
        self.attention, self.norm = ProbSparse(32, cast), nn.LayerNorm(32)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1, 2)) + self.place
        return self.head(self.norm(x + self.attention(x)).flatten(1))


@planted(
    "unsupported-op", "attention", "index_put_ index_put", fails_cuda=("16-mixed", "bf16-mixed"),
    family="context",
)  # fmt: skip
def context_of_another_type() -> Built:
    """transformers#25431: CUDA's autocast sums up in float32, what is put into it is 16-bit."""
    train, test = data.digits()
    return built(fitted(lambda: Informer(False), train, epochs=20), test)


@healthy()
def context_of_the_values_type() -> Built:
    """transformers#25431, as it was mended."""
    train, test = data.digits()
    return built(fitted(lambda: Informer(True), train, epochs=20), test)


class StatisticsPooling(nn.Module):
    """ECAPA's pooling: attention sees the mean and spread over time beside every frame."""

    def __init__(self, channels: int, cast: bool) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            nn.Conv1d(3 * channels, 16, 1), nn.Tanh(), nn.Conv1d(16, channels, 1)
        )
        self.cast = cast

    def moments(self, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        mean = (weights * x).sum(2)
        variance = (weights * (x - mean.unsqueeze(2)).pow(2)).sum(2)
        return mean, variance.clamp(1e-12).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        uniform = torch.full((1, 1, x.shape[2]), 1 / x.shape[2])  # float32 whatever x is
        mean, spread = self.moments(x, uniform)
        context = [s.unsqueeze(2).expand_as(x) for s in (mean, spread)]
        seen = torch.cat([x, *context], 1)
        if self.cast:
            seen = seen.to(x.dtype)
        mean, spread = self.moments(x, self.attention(seen).softmax(2))
        return torch.cat([mean, spread], 1)


class Speaker(nn.Module):
    """Frames of a tone, two convolutions over time, the pooling, a head."""

    def __init__(self, cast: bool) -> None:
        super().__init__()
        self.frames = nn.Sequential(
            nn.Conv1d(1, 32, 32, stride=8), nn.ReLU(), nn.Conv1d(32, 24, 5, stride=2), nn.ReLU()
        )
        self.pool, self.head = StatisticsPooling(24, cast), nn.Linear(48, 6)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(self.frames(x.unsqueeze(1)))
        return self.head(pooled.to(self.head.weight.dtype))


def speakers(cast: bool) -> Built:
    """Six pitches, far apart."""
    x, y = data.tones(1000, 6, 256)
    model = fitted(lambda: Speaker(False), (x[:700], y[:700]), epochs=12)
    model.pool.cast = cast
    return built(model, (x[700:], y[700:]))


@planted("unsupported-op", "pool.attention.0", "convolution _convolution conv1d", fails=TRUE,
         family="pooling")  # fmt: skip
def statistics_of_another_type() -> Built:
    """speechbrain#3081, #2544: statistics in float32 meet a convolution of 16 bits."""
    return speakers(False)


@healthy()
def statistics_of_the_frames_type() -> Built:
    """speechbrain#3081, as it was mended; a floor of 1e-12 that nothing reaches."""
    return speakers(True)


class WindowAttention(nn.Module):
    """Swin's shifted windows: -100 between what was not neighbours before the shift."""

    def __init__(self, dim: int, place: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.follows = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), place

    def mask(self, x: Tensor) -> Tensor:
        regions = torch.zeros(8, device=x.device)
        regions[2:6], regions[6:] = 1, 2
        regions = regions.roll(-2).view(2, 4)
        apart = regions[:, :, None] - regions[:, None]
        mask = torch.zeros_like(apart).masked_fill(apart != 0, -100.0)
        return mask.to(x.dtype) if self.follows else mask

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        windows = x.roll(-2, 1).view(n, 2, 4, d)
        q, k, v = self.qkv(windows).chunk(3, -1)
        scores = q @ k.transpose(-1, -2) * d**-0.5 + self.mask(x)
        return self.out((scores.softmax(-1) @ v).view(n, t, d).roll(2, 1))


class Windows(nn.Module):
    """The rows of a digit in windows of four."""

    def __init__(self, follows: bool) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, 32), nn.Parameter(torch.randn(8, 32) * 0.3)
        self.attention, self.head = WindowAttention(32, follows), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1, 2)) + self.place
        return self.head(F.relu(x + self.attention(x)).flatten(1))


@planted("unsupported-op", "attention", "bmm matmul", fails=TRUE, family="windows")
def shifted_windows_with_a_float_mask() -> Built:
    """MONAI#4914: the mask of SwinUNETR stays float32, and its weights meet 16-bit values."""
    train, test = data.digits()
    return built(fitted(lambda: Windows(False), train, epochs=20), test)
