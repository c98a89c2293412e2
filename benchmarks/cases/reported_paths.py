"""Held-out paths: distances between strings, reservoirs at the edge of chaos, hard choices.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import ALL, FP16, Built, healthy, planted
from benchmarks.cases.reported_structures import settled
from benchmarks.cases.reported_tongues import decided, drawn


class Spelling(nn.Module):
    """How many edits each of five words is away from what was typed: a table, row by row."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(2)
        self.register_buffer("words", torch.randint(0, 4, (5, 9), generator=random))
        self.scale = nn.Parameter(torch.tensor(-0.7))

    def forward(self, typed: Tensor) -> Tensor:
        n, length = typed.shape
        size, dtype = self.words.shape[1], self.scale.dtype
        before = torch.arange(size + 1, device=typed.device).to(dtype).expand(n, 5, -1)
        for i in range(length):
            swap = (typed[:, i, None, None] != self.words).to(dtype)
            row = [torch.full_like(before[..., 0], float(i + 1))]
            for j in range(size):
                kept = torch.minimum(before[..., j + 1], row[-1]) + 1
                row.append(torch.minimum(kept, before[..., j] + swap[..., j]))
            before = torch.stack(row, dim=-1)
        place = torch.arange(5, device=typed.device).to(dtype) / 64
        return self.scale * (before[..., -1] + place)


@healthy()
def words_by_their_edits() -> Built:
    """kensho-technologies/pyctcdecode is of its kin: counts of a dozen, and ties that are told."""
    typed = torch.randint(0, 4, (300, 9), generator=torch.Generator().manual_seed(3))
    return decided(Spelling, (typed,))


class Reservoir(nn.Module):
    """An echo state network whose echoes do not fade."""

    def __init__(self, into: int, dim: int, radius: float) -> None:
        super().__init__()
        self.w_in = nn.Parameter(0.5 * torch.randn(dim, into), requires_grad=False)
        w = torch.randn(dim, dim) / dim**0.5
        self.w = nn.Parameter(radius * w, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), self.w.shape[0], dtype=x.dtype, device=x.device)
        for step in x.unbind(1):
            h = torch.tanh(F.linear(step, self.w_in) + F.linear(h, self.w))
        return h


class Echo(nn.Module):
    """A reservoir and the readout that alone is learned."""

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.reservoir, self.readout = Reservoir(3, 64, radius), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.reservoir(x))


@planted("precision-loss", "reservoir", "linear mm addmm tanh add _to_copy", fails=ALL,
         family="recurrences", also=("absorption", "cancellation"))  # fmt: skip
def echoes_that_do_not_fade() -> Built:
    """reservoirpy, echotorch: a spectral radius of three is chaos, in which rounding grows."""
    return settled(partial(Echo, 3.0), (0.3 * drawn(400, 30, 3, seed=4),))


@healthy()
def echoes_that_fade() -> Built:
    """The same with a radius of 0.8: what was rounded is forgotten."""
    return settled(partial(Echo, 0.8), (0.3 * drawn(400, 30, 3, seed=4),))


class Chosen(nn.Module):
    """One of eight experts by a softmax whose temperature was annealed to nearly nothing."""

    def __init__(self, tau: float) -> None:
        super().__init__()
        self.tau = tau
        self.router, self.experts = nn.Linear(10, 8), nn.Linear(10, 8 * 4)
        with torch.no_grad():
            self.router.weight *= 12

    def forward(self, x: Tensor) -> Tensor:
        weight = F.softmax(self.router(x) / self.tau, dim=-1)
        return (self.experts(x).view(len(x), 8, 4) * weight[..., None].to(x.dtype)).sum(1)


@planted("overflow", "", "div", fails=FP16, moot=("bf16-true", "bf16-mixed"),
         family="experts")  # fmt: skip
def choices_at_a_temperature_of_a_ten_thousandth() -> Built:
    """pytorch's gumbel_softmax as it is annealed: scores of ten, divided by 1e-4, are infinite."""
    return decided(partial(Chosen, 1e-4), (drawn(400, 10, seed=5),))


@healthy()
def choices_at_a_temperature_of_a_hundredth() -> Built:
    """The same at 0.01."""
    return decided(partial(Chosen, 1e-2), (drawn(400, 10, seed=5),))
