"""AlexNet, VGG and ResNet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Keras's epsilon of batch normalisation; it is a normal number in float16.
EPSILON = 1e-3


def alexnet(classes: int) -> nn.Module:
    """Five convolutions, three poolings, and dense layers of 4096 with tanh."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 96, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(96, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 512, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Flatten(),
        nn.Linear(512, 4096), nn.Tanh(), nn.Dropout(0.5),
        nn.Linear(4096, 4096), nn.Tanh(), nn.Dropout(0.5),
        nn.Linear(4096, classes),
    )  # fmt: skip


def vgg(depths: Sequence[int], classes: int) -> nn.Module:
    """Blocks of so many convolutions, normalised after each pooling, and dense layers of 4096."""
    layers: list[nn.Module] = []
    channels = 3
    for depth, width in zip(depths, (64, 128, 256, 512, 512), strict=True):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers += [nn.MaxPool2d(2), nn.BatchNorm2d(width, EPSILON)]
    dense = [
        nn.Flatten(),
        nn.Linear(512, 4096), nn.ReLU(),
        nn.Linear(4096, 4096), nn.ReLU(),
        nn.Linear(4096, classes),
    ]  # fmt: skip
    return nn.Sequential(*layers, *dense)


class Unit(nn.Module):
    """A pre-activated residual unit; its shortcut to more channels is pooled, padded with zeros."""

    def __init__(self, channels: int, width: int, stride: int, first: bool) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels, EPSILON)
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1)
        self.norm2 = nn.BatchNorm2d(width, EPSILON)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.first, self.pad = first, (width - channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        active = torch.relu(self.norm1(x))
        shortcut = active if self.first else x
        if self.pad:
            shortcut = F.pad(F.avg_pool2d(shortcut, 2), (0, 0, 0, 0, self.pad, self.pad))
        return self.conv2(torch.relu(self.norm2(self.conv1(active)))) + shortcut


class ResNet(nn.Module):
    """Three stages of (depth - 2) / 6 units of 16, 32 and 64 channels."""

    def __init__(self, depth: int, classes: int) -> None:
        super().__init__()
        count = (depth - 2) // 6
        units: list[nn.Module] = []
        channels = 16
        for stage, width in enumerate((16, 32, 64)):
            for place in range(count):
                stride = 2 if stage and not place else 1
                units.append(Unit(channels, width, stride, first=not stage and not place))
                channels = width
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.units = nn.Sequential(*units)
        self.norm = nn.BatchNorm2d(64, EPSILON)
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.units(self.stem(x)))).mean((2, 3)))
