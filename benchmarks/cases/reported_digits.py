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


class ReversibleNorm(nn.Module):
    """A window's own mean and spread, taken off before and put back after."""

    def forward(self, x: Tensor, mode: str) -> Tensor:
        if mode == "norm":
            self.mean = x.mean(-1, keepdim=True)
            self.spread = x.std(-1, keepdim=True) + 1e-3
            return (x - self.mean) / self.spread
        return x * self.spread + self.mean


class Forecaster(nn.Module):
    """The next four values of a series from the last 32."""

    def __init__(self) -> None:
        super().__init__()
        self.revin = ReversibleNorm()
        self.body = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.revin(self.body(self.revin(x, "norm")), "denorm")


def series(level: float) -> tuple[tuple, tuple]:
    """Windows of the rows of a photograph's brightness, above a level."""
    from sklearn.datasets import load_sample_image

    grey = torch.tensor(load_sample_image("china.jpg").mean(-1), dtype=torch.float32) / 20
    windows = (grey + level).unfold(1, 36, 36).reshape(-1, 36)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
    x, y = windows[order, :32], windows[order, 32:]
    return (x[:2400], y[:2400]), (x[2400:3000], y[2400:3000])


@planted(
    "precision-loss", "revin", "add _to_copy sub", fails=TRUE,
    also=("absorption", "cancellation"), family="time series", task="regression",
)  # fmt: skip
def level_put_back() -> Built:
    """Chronos: a series of level 20000 and spread 5, its mean taken off and put back in 16 bits."""
    _, test = series(20000.0)
    train, _ = series(0.0)  # the level makes no difference to what is learnt
    model = fitted(Forecaster, train, loss=F.mse_loss, epochs=20)
    return built(model, test)


class SincFilters(nn.Module):
    """Band-pass filters of two frequencies in hertz, made in every pass."""

    def __init__(self, count: int = 16, size: int = 65, rate: int = 16000) -> None:
        super().__init__()
        edges = torch.linspace(3000, 7000, count + 1)
        self.low = nn.Parameter(edges[:-1, None])
        self.band = nn.Parameter((edges[1:] - edges[:-1])[:, None])
        half = torch.arange(1, (size + 1) // 2) + 200.0
        self.register_buffer("time", (2 * math.pi / rate * half)[None])

    def filters(self) -> Tensor:
        low, high = self.low.abs(), self.low.abs() + self.band.abs()
        wave = torch.sin(high @ self.time) - torch.sin(low @ self.time)
        return torch.cat([wave.flip(1), torch.zeros_like(wave[:, :1]), -wave], 1)

    def forward(self, wave: Tensor) -> Tensor:
        return F.conv1d(wave[:, None], self.filters()[:, None], stride=4)


class SincNet(nn.Module):
    """Filters, energies, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.sinc, self.norm = SincFilters(), nn.BatchNorm1d(16)
        self.head = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))

    def forward(self, wave: Tensor) -> Tensor:
        return self.head(self.norm(self.sinc(wave).abs().mean(-1)))


@planted(
    "precision-loss", "sinc", "mm matmul sin", fails=("bf16-true", "bf16-mixed"),
    also=("absorption", "cancellation"), moot=("16-true", "16-mixed"), family="audio",
)  # fmt: skip
def sinc_filters() -> Built:
    """SpeechBrain's SincNet: hertz times seconds is an angle of a hundred, by a matrix product."""
    (x, y), (u, v) = (data.tones(n, seed=s) for n, s in ((900, 0), (400, 1)))
    wave = lambda t: t * torch.cos(2.2 * torch.arange(t.shape[1]))  # noqa: E731
    return built(fitted(SincNet, (wave(x), y // 3), epochs=40), (wave(u), v // 3))


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


class Hours(nn.Module):
    """Hours since the first of November, of a time in seconds since 1970."""

    def forward(self, seconds: Tensor) -> Tensor:
        return (seconds - 1698796800.0) / 3600.0


class Shift(nn.Module):
    """Which of four shifts of the day a reading belongs to."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Hours()
        self.body = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, seconds: Tensor) -> Tensor:
        angle = self.clock(seconds) * (2 * math.pi / 24)
        return self.body(torch.stack([angle.sin(), angle.cos()], -1))


@planted(
    "overflow", "clock", "_to_copy sub", fails=TRUE,
    also=("absorption", "cancellation", "precision-loss"), family="tabular",
)  # fmt: skip
def seconds_since_1970() -> Built:
    """A time stamp of 1.7e9: infinite in float16, and known to 8 million seconds in bfloat16."""
    random = torch.Generator().manual_seed(0)
    hours = torch.randint(0, 24 * 28, (1600,), generator=random)
    seconds = 1698796800.0 + hours * 3600.0
    shift = hours % 24 // 6
    model = fitted(Shift, (seconds[:1100], shift[:1100]), epochs=60)
    return built(model, (seconds[1100:], shift[1100:]))
