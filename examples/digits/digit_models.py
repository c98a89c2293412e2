"""Three small classifiers of scikit-learn's digits, and how they are trained (seconds on a CPU)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PIXELS, CLASSES = 64, 10


class MLP(nn.Module):
    """One hidden layer on flattened pixels, [N, 1, 8, 8] in 0..255 to logits [N, 10]."""

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.hidden = nn.Linear(PIXELS, hidden)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(x.flatten(1) / 255)))


class CNN(nn.Module):
    """Two convolutions with batch norm, [N, 1, 8, 8] in 0..255 to logits [N, 10]."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x / 255)))
        x = F.relu(self.norm2(self.conv2(x)))
        return self.head(x.mean((2, 3)))


class HandWrittenRMSNorm(nn.Module):
    """Divide by the root mean square, as often copied: it squares in the precision it is given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x / (x * x).mean(-1, keepdim=True).add(1e-6).sqrt() * self.weight


class RMSNet(nn.Module):
    """Embeds the raw bytes 0..255, scales by √width as transformers do, and normalises.

    In float32 it is as good as the others. After the scaling values reach thousands; their squares
    do not fit in float16, whose largest number is 65504.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.scale = math.sqrt(width)
        self.embed = nn.Linear(PIXELS, width)
        self.norm = HandWrittenRMSNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x.flatten(1)) * self.scale)
        return self.head(F.relu(x))


def train(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], epochs: int = 20
) -> nn.Module:
    """Train with AdamW in float32; returns the model in eval mode."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()
