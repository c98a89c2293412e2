"""Held-out streams: alignments, wealth, experts beside a stream.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.cases.base import FP16, TRUE, Built, healthy, planted
from benchmarks.cases.reported_quantities import perceptron, taught
from benchmarks.cases.reported_tongues import decided, drawn, texts

BF16 = ("bf16-true", "bf16-mixed")


class SoftDTW(nn.Module):
    """Soft dynamic time warping: a table filled cell by cell, with infinity around it."""

    def __init__(self, gamma: float = 1.0) -> None:
        super().__init__()
        self.gamma = gamma

    def softmin(self, *options: Tensor) -> Tensor:
        stacked = torch.stack(options, -1) / -self.gamma
        largest = stacked.max(-1).values
        total = torch.exp(stacked - largest.unsqueeze(-1)).sum(-1)
        return -self.gamma * (torch.log(total) + largest)

    def forward(self, d: Tensor) -> Tensor:
        n, rows, columns = d.shape
        table = torch.full((n, rows + 2, columns + 2), math.inf, device=d.device, dtype=d.dtype)
        table[:, 0, 0] = 0
        for i in range(1, rows + 1):
            for j in range(1, columns + 1):
                best = self.softmin(table[:, i - 1, j - 1], table[:, i - 1, j], table[:, i, j - 1])
                table[:, i, j] = d[:, i - 1, j - 1] + best
        return table[:, rows, columns]


class Warped(nn.Module):
    """Which of three shapes is a series nearest to?"""

    def __init__(self) -> None:
        super().__init__()
        common, own = drawn(1, 10, 6, seed=8), drawn(3, 10, 6, seed=10)
        self.shapes, self.dtw = nn.Parameter(5 * common + 0.15 * own), SoftDTW()

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([-self.dtw(self.costs(x, shape)) for shape in self.shapes], dim=1)

    @staticmethod
    def costs(x: Tensor, shape: Tensor) -> Tensor:
        return (x.unsqueeze(2) - shape.unsqueeze(0)).square().sum(-1)


@planted(
    "absorption", "dtw", "add", fails=("bf16-true",), moot=("bf16-mixed",),
    also=("precision-loss",), family="sums",
)  # fmt: skip
def warpings_summed_cell_by_cell() -> Built:
    """pytorch-softdtw: costs are added to a path that is hundreds long already."""
    return decided(Warped, (5 * drawn(96, 10, 6, seed=9),))


class Portfolio(nn.Module):
    """Wealth after a few hundred days, by weights that a network chooses each day."""

    def __init__(self) -> None:
        super().__init__()
        self.allocate = nn.Linear(6, 6)

    def grow(self, returns: Tensor) -> Tensor:
        weight = torch.softmax(self.allocate(50 * returns.roll(1, 1)), dim=-1)
        return (1 + (weight * returns).sum(-1)).cumprod(dim=1)

    def forward(self, returns: Tensor) -> Tensor:
        return torch.log(self.grow(returns)[:, ::50] + 1e-8)[:, 1:] * 100


@planted(
    "absorption", "", "add cumprod", fails=TRUE, also=("precision-loss",),
    family="sums", task="regression",
)  # fmt: skip
def wealth_of_small_daily_returns() -> Built:
    """Portfolio libraries: one and a return of 0.0005, three hundred times multiplied."""
    return taught(Portfolio, (0.004 * drawn(256, 300, 6, seed=13) + 0.0004,))


class Deepseek(nn.Module):
    """A shared expert and routed ones, whose sum is scaled by sixteen."""

    def __init__(self, dim: int, mended: bool) -> None:
        super().__init__()
        self.routed_scaling_factor, self.mended = 16.0, mended
        self.gate = nn.Linear(dim, 4)
        self.experts = nn.ModuleList(perceptron(dim, dim, 24) for _ in range(4))
        self.shared_experts = perceptron(dim, dim, 24)
        with torch.no_grad():
            for expert in self.experts:
                expert[2].weight *= 2e4
                expert[2].bias.mul_(4e3)

    def routed(self, x: Tensor) -> Tensor:
        weight, index = self.gate(x).softmax(-1).topk(2, -1)
        chosen: Iterator[Tensor] = (
            (weight * (index == i)).sum(-1, keepdim=True).to(x.dtype) * expert(x)
            for i, expert in enumerate(self.experts)
        )
        return sum(chosen, torch.zeros_like(x))

    def forward(self, x: Tensor) -> Tensor:
        shared = self.shared_experts(x)
        if self.mended:
            return self.routed(x) + shared * (1.0 / self.routed_scaling_factor)
        return self.routed(x) * self.routed_scaling_factor + shared


class Layer(nn.Module):
    """A pre-norm layer on a stream that was made small, or not."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.norm, self.mlp, self.mended = nn.LayerNorm(16), Deepseek(16, mended), mended

    def forward(self, x: Tensor) -> Tensor:
        out = self.mlp(self.norm(x))
        return x / 16 + out if self.mended else x + out


class Streamed(nn.Module):
    """Two layers, a norm, a head."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.embed, self.first = nn.Embedding(60, 16), Layer(mended)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.first(self.embed(ids))).mean(1) * 8)


@planted("overflow", "first.mlp", "mul", fails=("16-true",), moot=BF16, family="range")
def experts_scaled_by_sixteen() -> Built:
    """vllm#13232, DeepSeek V2: what experts say, times 16, leaves float16."""
    return decided(lambda: Streamed(False), (texts(length=6),))


@healthy(precisions=FP16)
def experts_beside_a_stream_made_small() -> Built:
    """vllm#13232, as it was mended for float16."""
    return decided(lambda: Streamed(True), (texts(length=6),))
