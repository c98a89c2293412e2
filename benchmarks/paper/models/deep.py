"""DenseNet, Xception and MobileNetV2 with the stems they have for ImageNet."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.paper.models.plain import EPSILON


class DenseLayer(nn.Module):
    """Adds 32 channels to its input, by way of a bottleneck of 128."""

    def __init__(self, channels: int, growth: int = 32) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(new)))], 1)


class DenseNet(nn.Sequential):
    """Blocks of so many dense layers with halving transitions between them."""

    def __init__(self, depths: Sequence[int], classes: int) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=1),
        ]
        channels = 64
        for place, depth in enumerate(depths):
            layers += [DenseLayer(channels + 32 * i) for i in range(depth)]
            channels += 32 * depth
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
            if place < len(depths) - 1:
                layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
                channels //= 2
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
        super().__init__(*layers, *head)


def separable(channels: int, width: int) -> nn.Sequential:
    """A depthwise 3x3 and a pointwise convolution, normalised."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, width, 1, bias=False),
        nn.BatchNorm2d(width, EPSILON),
    )


class XceptionBlock(nn.Module):
    """Separable convolutions, each after a ReLU; pooled, with a projected shortcut, or neither."""

    def __init__(self, widths: Sequence[int], pool: bool = True, active: bool = True) -> None:
        super().__init__()
        self.active, self.pool = active, pool
        pairs = pairwise(widths)
        self.layers = nn.ModuleList(separable(before, after) for before, after in pairs)
        if pool:
            self.shortcut = nn.Sequential(
                nn.Conv2d(widths[0], widths[-1], 1, stride=2, bias=False),
                nn.BatchNorm2d(widths[-1], EPSILON),
            )

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for place, layer in enumerate(self.layers):
            out = layer(torch.relu(out) if self.active or place else out)
        if not self.pool:
            return out + x
        return F.max_pool2d(out, 3, 2, padding=1) + self.shortcut(x)


class Xception(nn.Sequential):
    """Entry, middle and exit flow, and the authors' dense layer of 1024 before the head."""

    def __init__(self, classes: int) -> None:
        def conv(channels: int, width: int, stride: int) -> list[nn.Module]:
            layer = nn.Conv2d(channels, width, 3, stride=stride, bias=False)
            return [layer, nn.BatchNorm2d(width, EPSILON), nn.ReLU()]

        middle = [XceptionBlock((728, 728, 728, 728), pool=False) for _ in range(8)]
        super().__init__(
            *conv(3, 32, 2),
            *conv(32, 64, 1),
            XceptionBlock((64, 128, 128), active=False),
            XceptionBlock((128, 256, 256)),
            XceptionBlock((256, 728, 728)),
            *middle,
            XceptionBlock((728, 728, 1024)),
            separable(1024, 1536),
            nn.ReLU(),
            separable(1536, 2048),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2048, 1024),
            nn.ReLU(),
            nn.Linear(1024, classes),
        )


class InvertedResidual(nn.Module):
    """Expand, convolve each channel alone, project; added to the input where the shapes agree."""

    def __init__(self, channels: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        expand = [
            nn.Conv2d(channels, inner, 1, bias=False),
            nn.BatchNorm2d(inner, EPSILON),
            nn.ReLU6(),
        ]
        self.body = nn.Sequential(
            *(expand if expansion > 1 else []),
            nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=inner, bias=False),
            nn.BatchNorm2d(inner, EPSILON),
            nn.ReLU6(),
            nn.Conv2d(inner, width, 1, bias=False),
            nn.BatchNorm2d(width, EPSILON),
        )
        self.residual = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


#: Expansion, channels, blocks, stride of the first block (Sandler et al. 2018, table 2).
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(nn.Sequential):
    """Width 1.0."""

    def __init__(self, classes: int) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(32, EPSILON),
            nn.ReLU6(),
        ]
        channels = 32
        for expansion, width, count, stride in _STAGES:
            for place in range(count):
                step = 1 if place else stride
                layers.append(InvertedResidual(channels, width, step, expansion))
                channels = width
        layers += [nn.Conv2d(channels, 1280, 1, bias=False), nn.BatchNorm2d(1280, EPSILON)]
        head = [nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, classes)]
        super().__init__(*layers, *head)
