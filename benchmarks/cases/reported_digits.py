"""Held-out failures of digits: rounding, absorption, cancellation; and operations that refuse."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import ALL, TRUE, Built, built, fitted, planted


class WeekEmbedding(nn.Module):
    """Sines and cosines of the day of the week, of a day that comes as a float."""

    def forward(self, day: Tensor) -> Tensor:
        phase = day.float()[:, None] * (2 * math.pi / 7) * torch.arange(1, 4, device=day.device)
        return torch.cat([phase.sin(), phase.cos()], -1).to(day.dtype)


class Calendar(nn.Module):
    """A digit plus the day of the week, modulo seven."""

    def __init__(self) -> None:
        super().__init__()
        self.time = WeekEmbedding()
        self.image = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU())
        self.both = nn.Sequential(nn.Linear(54, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(64, 7)

    def forward(self, x: Tensor, day: Tensor) -> Tensor:
        return self.head(self.both(torch.cat([self.image(x), self.time(day)], -1)))


def dated(x: Tensor, y: Tensor, seed: int, first: int = 300) -> tuple[Tensor, Tensor, Tensor]:
    """Digits, a day between 300 and 1000, and whether it is that many days before a weekday."""
    random = torch.Generator().manual_seed(seed)
    day = torch.randint(first, 1000, (len(x),), generator=random)
    return x, day.float(), (day + (y > 4)) % 7


@planted(
    "precision-loss", "time", "_to_copy mul sin cos", fails=("bf16-true",), also=("absorption",),
    family="diffusion",
)  # fmt: skip
def timestep_as_bfloat16() -> Built:
    """DiffSynth and diffusers: a time step up to 1000 is handed over in the model's type."""
    (x, y), (u, v) = data.digits()
    many = [torch.cat([t] * 3) for t in (x, y)]
    return built(fitted(Calendar, dated(*many, 0), epochs=40), dated(u, v, 1))


class BufferedRotary(nn.Module):
    """Rotary angles in float32, from a buffer of frequencies that follows the model's type."""

    def __init__(self, dim: int, start: int) -> None:
        super().__init__()
        self.start = start
        self.register_buffer("inv_freq", 100.0 ** (-torch.arange(0, dim, 2) / dim))

    def forward(self, x: Tensor) -> Tensor:
        place = torch.arange(x.shape[-2], device=x.device).float() + self.start
        angle = torch.outer(place, self.inv_freq.float())
        even, odd = x.float().chunk(2, -1)
        turned = (even * angle.cos() - odd * angle.sin(), odd * angle.cos() + even * angle.sin())
        return torch.cat(turned, -1).to(x.dtype)


class RotaryRows(nn.Module):
    """The rows of a digit, each turned by its place in a long document, and summed."""

    def __init__(self, start: int = 6000) -> None:
        super().__init__()
        self.embed, self.rotary = nn.Linear(8, 32), BufferedRotary(32, start)
        self.norm = nn.LayerNorm(32)
        self.body = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.embed(x.flatten(1, 2)))
        return self.body(self.norm(self.rotary(x).sum(1)))


@planted(
    "precision-loss", "rotary", "_to_copy mul cos sin", fails=TRUE, also=("absorption",),
    family="rotary",
)  # fmt: skip
def frequencies_in_a_buffer() -> Built:
    """InternLM: the buffer of rotary frequencies becomes 16-bit with the model; place 6000."""
    train, test = data.digits()
    return built(fitted(RotaryRows, train, epochs=40), test)


class Dueling(nn.Module):
    """Q-values from the value of a state and the advantages of its actions."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.advantage = nn.Linear(64, 1), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(1, keepdim=True)


class QNetwork(nn.Module):
    """Features, and a dueling head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU())
        self.dueling = Dueling()

    def forward(self, x: Tensor) -> Tensor:
        return self.dueling(self.features(x))


@planted("absorption", "dueling", "add", fails=ALL, also=("precision-loss",), family="policy")
def dueling_values() -> Built:
    """Returns of thousands beside advantages below one: the best action is lost in the sum."""
    train, test = data.digits()
    model = fitted(QNetwork, train)
    with torch.no_grad():
        model.dueling.value.bias.fill_(6000)
    return built(model, test)


class HashGrid(nn.Module):
    """Features of the cells of nested grids that a point lies in, by their numbers."""

    def __init__(self, sizes: tuple[int, ...] = (16, 64, 256)) -> None:
        super().__init__()
        self.sizes = sizes
        self.tables = nn.ModuleList(nn.Embedding(s * s, 4) for s in sizes)

    def forward(self, point: Tensor) -> Tensor:
        found = []
        for size, table in zip(self.sizes, self.tables, strict=True):
            cell = (point * size).floor().clamp(0, size - 1).long()
            found.append(table(cell[:, 0] * size + cell[:, 1]))
        return torch.cat(found, -1)


class Field(nn.Module):
    """A photograph as a function of the place."""

    def __init__(self) -> None:
        super().__init__()
        self.grid = HashGrid()
        self.body = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, point: Tensor) -> Tensor:
        return self.body(self.grid(point))


@planted(
    "precision-loss", "grid", "_to_copy mul floor", fails=("bf16-true",), also=("absorption",),
    family="implicit field",
)  # fmt: skip
def grid_cells() -> Built:
    """Hash grids of radiance fields: a coordinate in bfloat16 names the wrong one of 256 cells."""
    points, bright = data.picture(256)
    bright = bright ^ (torch.arange(len(bright)) * 2654435761 >> 7) % 5 // 4  # a texture of pixels
    model = fitted(Field, (points, bright), epochs=12, batch=512, rate=2e-2)
    keep = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:4000]
    return built(model, (points[keep], bright[keep]), size=500)


class Experts(nn.Module):
    """Two experts, each given its own inputs; what they say is gathered in one tensor."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, 2)
        self.parts = nn.ModuleList(nn.Linear(dim, dim) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.gate(x).argmax(-1)
        out = torch.zeros(x.shape, device=x.device)
        for number, part in enumerate(self.parts):
            out[chosen == number] = part(x[chosen == number])
        return out


class ExpertNet(nn.Module):
    """Features, experts, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU())
        self.experts, self.head = Experts(48), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.experts(self.first(x))))


@planted("unsupported-op", "experts", "index_put_ index_put", fails=ALL, family="experts")
def gathered_in_float32() -> Built:
    """Mask R-CNN and mixtures of experts: index_put wants both sides in one type."""
    train, test = data.digits()
    return built(fitted(ExpertNet, train), test)


class Invertible(nn.Module):
    """A learned invertible matrix and its log-determinant, as in Glow."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(dim) + 0.01 * torch.randn(dim, dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x @ self.weight, torch.slogdet(self.weight)[1]


class FlowClassifier(nn.Module):
    """One linear flow, and a Gaussian per class: class scores are log-densities."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = nn.ModuleList([Invertible(64)])
        self.means = nn.Parameter(torch.randn(10, 64) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        z, volume = x.flatten(1), 0.0
        for step in self.flow:
            z, more = step(z)
            volume = volume + more
        return volume - (z[:, None] - self.means).square().mean(-1) * 8


@planted(
    "unsupported-op", "flow.0", "_linalg_slogdet slogdet linalg_slogdet", fails=TRUE, family="flow"
)
def log_determinant() -> Built:
    """Glow: the log-determinant of a weight has no 16-bit kernel."""
    train, test = data.digits()
    return built(fitted(FlowClassifier, train), test)
