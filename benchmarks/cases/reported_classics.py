"""Held-out nets of a classic kind, with the layers they had: responses, power means, unpooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import Built, built, fitted, healthy, planted


class Inception(nn.Module):
    """Four paths side by side: 1x1, 3x3, 5x5 and a pool, each with its reduction."""

    def __init__(self, inputs: int, one: int, three: int, five: int, pool: int) -> None:
        super().__init__()
        half = max(4, three // 2)
        self.one = nn.Sequential(nn.Conv2d(inputs, one, 1), nn.ReLU())
        self.three = nn.Sequential(
            nn.Conv2d(inputs, half, 1), nn.ReLU(), nn.Conv2d(half, three, 3, padding=1), nn.ReLU()
        )
        self.five = nn.Sequential(
            nn.Conv2d(inputs, 4, 1), nn.ReLU(), nn.Conv2d(4, five, 5, padding=2), nn.ReLU()
        )
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(inputs, pool, 1), nn.ReLU())
        self.outputs = one + three + five + pool

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


class WideResponse(nn.LocalResponseNorm):
    """The same in float32, whatever comes in."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class GoogLeNet(nn.Module):
    """Stem, response norms, three inceptions and a mean; pixels of 0 to 255 less their mean."""

    def __init__(self, response: type[nn.LocalResponseNorm] = nn.LocalResponseNorm) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 16, 5, padding=2), response(5, 1e-4, 0.75)
        self.reduce, self.conv2 = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 32, 3, padding=1)
        self.norm2, self.pool = response(5, 1e-4, 0.75), nn.MaxPool2d(3, 2, 1)
        self.inception3a = Inception(32, 16, 24, 8, 8)
        self.inception3b = Inception(56, 16, 32, 8, 8)
        self.inception4a = Inception(64, 32, 32, 16, 16)
        self.dropout, self.head = nn.Dropout(0.2), nn.Linear(96, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.constant_(module.bias, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(F.relu(self.conv1(x)))
        x = self.pool(self.norm2(F.relu(self.conv2(F.relu(self.reduce(x))))))
        x = self.pool(self.inception3b(self.inception3a(x)))
        x = self.inception4a(x).mean((2, 3))
        return self.head(self.dropout(x))


def googlenet(response: type[nn.LocalResponseNorm]) -> Built:
    """Digits as bytes, as Caffe's nets take them."""
    (x, y), (u, v) = data.digits()
    mean = x.mean() * 255
    model = fitted(lambda: GoogLeNet(response), (x * 255 - mean, y), epochs=12, rate=2e-3)
    return built(model, (u * 255 - mean, v))


@planted(
    "overflow", "norm1", "mul avg_pool3d", fails=("16-true", "16-mixed"),
    moot=("bf16-true", "bf16-mixed"), family="classic",
)  # fmt: skip
def responses_of_bytes() -> Built:
    """AMDMIGraphX#850, caffe#135: the squares of a local response norm leave float16."""
    return googlenet(nn.LocalResponseNorm)


@healthy()
def responses_in_float32() -> Built:
    """AMDMIGraphX#850: float32 inside the norm alone was enough."""
    return googlenet(WideResponse)


class PowerNet(nn.Module):
    """A net whose pools are power means, as ONNX's LpPool."""

    def __init__(self, power: float, gain: float) -> None:
        super().__init__()
        self.conv1, self.pool1 = nn.Conv2d(1, 16, 3, padding=1), nn.LPPool2d(power, 2)
        self.conv2, self.pool2 = nn.Conv2d(16, 32, 3, padding=1), nn.LPPool2d(power, 2)
        self.norm, self.head = nn.LayerNorm(128), nn.Linear(128, 10)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(F.relu(self.conv1(x * self.gain)))
        x = self.pool2(F.relu(self.conv2(x)))
        return self.head(self.norm(x.flatten(1)))


@planted("overflow", "pool1", "mul pow avg_pool2d", fails=("16-true",), family="pooling")
def fourth_power_pools() -> Built:
    """openvino#37172: the powers and their mean are taken in the type of the input."""
    train, test = data.digits()
    return built(fitted(lambda: PowerNet(4, 16.0), train, epochs=12), test)


@healthy()
def second_power_pools() -> Built:
    """openvino#37172: the same pools of order two, of activations that stay small."""
    train, test = data.digits()
    return built(fitted(lambda: PowerNet(2, 1.0), train, epochs=12), test)


class SegNet(nn.Module):
    """Pools that keep where their largest value was, and unpools that put it back there."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down1 = self._block(1, width)
        self.down2 = self._block(width, 2 * width)
        self.middle = self._block(2 * width, 2 * width)
        self.up2 = self._block(2 * width, width)
        self.up1 = self._block(width, width)
        self.pool, self.unpool = nn.MaxPool2d(2, 2, return_indices=True), nn.MaxUnpool2d(2, 2)
        self.head = nn.Conv2d(width, 3, 1)

    def _block(self, inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.down1(x)
        x, first = self.pool(x)
        x = self.down2(x)
        x, second = self.pool(x)
        x = self.up2(self.unpool(self.middle(x), second))
        return self.head(self.up1(self.unpool(x, first)))


def per_pixel(out: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of every pixel."""
    return F.cross_entropy(out, labels)


@healthy()
def unpooled_where_it_was() -> Built:
    """opencv#15996: ENet keeps places in the type of the values; torch keeps them as integers."""
    random = torch.Generator().manual_seed(0)

    def scene(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        large = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        mask = (large.squeeze(1) > 0.4).long() * (1 + (y % 2)[:, None, None])
        return large + 0.2 * torch.randn(large.shape, generator=random), mask

    train, test = (scene(*split) for split in data.digits())
    return built(fitted(SegNet, train, loss=per_pixel, epochs=8), test)
