"""Held-out models of speech: features normed over the frames that are there, separable stacks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import Built, built, fitted, healthy, planted


def kept_frames(x: Tensor, share: Tensor) -> Tensor:
    """Which frames a recording has: the share of the longest that its own length is."""
    frames = torch.arange(x.shape[-1], device=x.device)
    return frames[None, :] < (share.float() * x.shape[-1]).ceil()[:, None]


class Features(nn.Module):
    """Every band to zero mean and unit spread over the frames that are no padding."""

    eps = 1e-5

    def normed(self, x: Tensor, mask: Tensor) -> Tensor:
        count = mask.sum(-1, keepdim=True)
        x = x * mask
        mean = x.sum(-1, keepdim=True) / count
        centred = (x - mean) * mask
        spread = centred.square().sum(-1, keepdim=True) / count
        return centred / (spread + self.eps).sqrt()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.normed(x, mask[:, None].to(x.dtype))


class WideFeatures(Features):
    """The same in float32."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.normed(x.float(), mask[:, None].float()).to(x.dtype)


class MaskedConv(nn.Module):
    """A convolution in time that sees zeros where the recording has ended."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv1d(
            inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False
        )

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(x.masked_fill(~mask[:, None], 0.0))
        return x, mask[:, :: self.stride]


class Separable(nn.Module):
    """Depthwise, pointwise, batch norm."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        super().__init__()
        self.depth = MaskedConv(inputs, inputs, size, stride, inputs)
        self.point = MaskedConv(inputs, outputs, 1, 1)
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x, mask = self.depth(x, mask)
        x, mask = self.point(x, mask)
        return self.norm(x), mask


class Stage(nn.Module):
    """Two separable convolutions beside a pointwise residual."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Separable(width, width, size) for _ in range(2))
        self.residual = Separable(width, width, 1)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        beside, _ = self.residual(x, mask)
        for index, layer in enumerate(self.layers):
            x, _ = layer(F.relu(x) if index else x, mask)
        return F.relu(x + beside), mask


class QuartzNet(nn.Module):
    """Decibels of a mel spectrogram to a word: norm, prologue, stages, epilogue, masked mean."""

    def __init__(self, features: type[Features], bands: int = 16, width: int = 24) -> None:
        super().__init__()
        self.features = features()
        self.prologue = Separable(bands, width, 11, stride=4)
        self.stages = nn.ModuleList(Stage(width, size) for size in (7, 9))
        self.epilogue = Separable(width, 2 * width, 1)
        self.decoder = nn.Conv1d(2 * width, 8, 1)

    def forward(self, x: Tensor, share: Tensor) -> Tensor:
        mask = kept_frames(x, share)
        x, mask = self.prologue(self.features(x, mask), mask)
        x = F.relu(x)
        for stage in self.stages:
            x, mask = stage(x, mask)
        x, mask = self.epilogue(x, mask)
        x = self.decoder(F.relu(x))
        kept = mask[:, None].to(x.dtype)
        return (x * kept).sum(-1) / kept.sum(-1)


def recordings(count: int, seed: int, frames: int = 1280) -> tuple[Tensor, Tensor, Tensor]:
    """Decibels of words of two sounds, said over and over in noise, of different length."""
    random = torch.Generator().manual_seed(seed)
    words = torch.randint(0, 8, (count,), generator=random)
    share = 0.75 + 0.25 * torch.rand(count, generator=random)
    sound = torch.randn(6, 16, generator=torch.Generator().manual_seed(9)) * 5
    first, second = words % 4, words // 4 + 4
    turn = (torch.arange(frames) // 40 % 2)[None, :, None]
    level = torch.where(turn == 0, sound[first][:, None], sound[second][:, None]).mT
    x = level + 12 * torch.randn(count, 16, frames, generator=random) - 70
    return x.masked_fill(~kept_frames(x, share)[:, None], 0.0), share, words


def quartznet(features: type[Features]) -> Built:
    """Recordings of some ten seconds."""
    model = fitted(lambda: QuartzNet(features), recordings(240, 0), epochs=6, batch=32, rate=8e-3)
    return built(model, recordings(160, 1), size=80)


@planted("overflow", "features", "sum", fails=("16-true",), family="speech")
def decibels_added_up() -> Built:
    """convasr#73: the sum of a band over a long recording leaves float16."""
    return quartznet(Features)


@healthy()
def decibels_added_in_float32() -> Built:
    """convasr#73: normed in float32 and cast back."""
    return quartznet(WideFeatures)
