"""A held-out segmenter of large pictures, tile by tile, under a bell that weighs each tile."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import Built, built, fitted, healthy, planted


class Stack(nn.Module):
    """Two convolutions, instance norms, leaky ReLUs."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.norm1, self.norm2 = (nn.InstanceNorm2d(outputs, affine=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.norm1(self.conv1(x)), 0.01)
        return F.leaky_relu(self.norm2(self.conv2(x)), 0.01)


class PlainUnet(nn.Module):
    """Encoder, transposed convolutions, skips, and a head at every scale while training."""

    def __init__(self, classes: int, width: int = 12) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [Stack(1, width), Stack(width, 2 * width, 2), Stack(2 * width, 4 * width, 2)]
        )
        self.ups = nn.ModuleList(
            [
                nn.ConvTranspose2d(4 * width, 2 * width, 2, 2),
                nn.ConvTranspose2d(2 * width, width, 2, 2),
            ]
        )
        self.decoders = nn.ModuleList([Stack(4 * width, 2 * width), Stack(2 * width, width)])
        self.heads = nn.ModuleList([nn.Conv2d(2 * width, classes, 1), nn.Conv2d(width, classes, 1)])

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        coarse = None
        for index, (up, decoder) in enumerate(zip(self.ups, self.decoders, strict=True)):
            x = decoder(torch.cat([up(x), skips[-2 - index]], 1))
            if index == 0 and self.training:
                coarse = self.heads[0](x)
        out = 8 * self.heads[1](x)
        if coarse is None:
            return out
        return torch.cat([out.flatten(2), coarse.flatten(2)], 2)


class Predictor(nn.Module):
    """Half overlapping tiles, mirrored too; sums of weighed logits, divided by sums of weights."""

    def __init__(self, net: nn.Module, tile: int, factor: float) -> None:
        super().__init__()
        self.net, self.tile = net, tile
        axis = torch.arange(tile).float() - (tile - 1) / 2
        bell = torch.exp(-(axis**2) / (2 * (tile / 8) ** 2))
        bell = bell[:, None] * bell[None, :]
        bell = bell / bell.max() * factor
        bell = bell.clamp(min=float(bell[bell > 0].min()), max=factor)
        self.register_buffer("bell", bell, persistent=False)

    def starts(self, size: int) -> list[int]:
        return list(range(0, size - self.tile + 1, self.tile // 2))

    def looked_at(self, x: Tensor) -> Tensor:
        said = self.net(x)
        for axes in ((2,),):
            said = said + self.net(x.flip(axes)).flip(axes)
        return said / 2

    def start(self, said: Tensor, x: Tensor) -> Tensor:
        return said.new_zeros(len(x), said.shape[1], *x.shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.net(x)
        total, weight = None, None
        for i, j in itertools.product(self.starts(x.shape[2]), self.starts(x.shape[3])):
            place = (..., slice(i, i + self.tile), slice(j, j + self.tile))
            said = self.looked_at(x[place])
            if total is None or weight is None:
                total = self.start(said, x)
                weight = total.new_zeros(x.shape[2:])
            total[place] += said.to(total.dtype) * self.bell.to(total.dtype)
            weight[place] += self.bell.to(total.dtype)
        return total / weight


class WidePredictor(Predictor):
    """Sums in float32."""

    def start(self, said: Tensor, x: Tensor) -> Tensor:
        return super().start(said.float(), x)


def long_trained(out: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy at full size, of logits as large as a long training makes them, and at half."""
    full = labels.flatten(1)
    half = labels[:, ::2, ::2].flatten(1)
    fine, coarse = out.split([full.shape[1], half.shape[1]], 2)
    return F.cross_entropy(fine / 8, full) + 0.5 * F.cross_entropy(coarse, half)


def fields(size: int, tiles: int, seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Digits beside each other on noise: background, even, odd."""
    random = torch.Generator().manual_seed(seed)
    (x, y), (u, v) = data.digits()
    x, y = (x, y) if seed == 0 else (u, v)
    which = torch.randint(0, len(x), (count, tiles, tiles), generator=random)
    large = F.interpolate(x, size=size // tiles, mode="bilinear", align_corners=False)[:, 0]
    picture = large[which].permute(0, 1, 3, 2, 4).reshape(count, size, size)
    kind = (
        (1 + y % 2)[which].repeat_interleave(size // tiles, 1).repeat_interleave(size // tiles, 2)
    )
    mask = torch.where(picture > 0.4, kind, 0)
    return (picture + 0.1 * torch.randn(picture.shape, generator=random))[:, None], mask


def tiled(predictor: type[Predictor], factor: float) -> Built:
    """Trained on tiles of 32, asked about pictures of 64."""
    make = lambda: predictor(PlainUnet(3), 32, factor)  # noqa: E731
    model = fitted(make, fields(32, 2, 0, 500), loss=long_trained, epochs=8, batch=25, rate=6e-3)
    return built(model, fields(64, 4, 1, 8), size=8)


@planted("overflow", "", "mul add", fails=("16-true", "16-mixed"), family="medical")
def bells_of_thousands() -> Built:
    """nnUNet#1776: a bell of thousands times large logits, added up in half."""
    return tiled(Predictor, 8000.0)


@healthy()
def bells_of_ten() -> Built:
    """nnUNet#1776: a bell of ten leaves room above; what it is at the rim, float16 has below."""
    return tiled(Predictor, 10.0)


@healthy()
def bells_in_float32() -> Built:
    """nnUNet#1776: a bell of thousands, added up in float32."""
    return tiled(WidePredictor, 8000.0)
