"""Held-out failures of signals: audio, series, and the time itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import FP16, TRUE, Built, built, fitted, planted


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


class ConvMel(nn.Module):
    """A log mel spectrogram by convolution with a Fourier basis."""

    def __init__(self, floor: float, size: int = 64, bands: int = 12) -> None:
        super().__init__()
        angle = torch.outer(torch.arange(size // 2), torch.arange(size)) * (6.283185 / size)
        window = torch.hann_window(size)
        basis = torch.cat([angle.cos() * window, angle.sin() * window])
        self.register_buffer("basis", basis[:, None])
        edges = torch.linspace(0, size // 2, bands + 2)
        place = torch.arange(size // 2)
        up = (place - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
        down = (edges[2:, None] - place) / (edges[2:] - edges[1:-1])[:, None]
        self.register_buffer("filters", torch.minimum(up, down).clamp(min=0))
        self.floor = floor

    def forward(self, wave: Tensor) -> Tensor:
        real, imaginary = F.conv1d(wave[:, None], self.basis, stride=32).chunk(2, 1)
        power = real.pow(2) + imaginary.pow(2)
        return torch.log10((self.filters @ power).clamp(min=self.floor))


class Listener(nn.Module):
    """A spectrogram, a one-dimensional convolution, a mean, a head."""

    def __init__(self, floor: float, shift: float) -> None:
        super().__init__()
        self.mel, self.shift = ConvMel(floor), shift
        self.conv, self.head = nn.Conv1d(12, 32, 3, padding=1), nn.Linear(32, 8)

    def forward(self, wave: Tensor) -> Tensor:
        x = (self.mel(wave) - self.shift) / 2
        return self.head(F.relu(self.conv(x)).mean(-1))


def notes(factor: float, silence: int = 0) -> tuple[tuple, tuple]:
    """Tones in units of a factor, the first samples silent, and which of eight pitches it is."""
    made = []
    for count, seed in ((900, 0), (400, 1)):
        wave, pitch = data.tones(count, seed=seed)
        wave = wave.clone() * factor
        wave[:, :silence] = 0
        made.append((wave, pitch // 3))
    return made[0], made[1]


@planted("overflow", "mel", "convolution conv1d", fails=FP16, moot=("bf16-true",), family="audio")
def spectrogram_of_integers() -> Built:
    """convmelspec: samples in the units of 16-bit audio, summed by the Fourier convolution."""
    train, test = notes(9000.0)
    return built(fitted(lambda: Listener(1e-2, 9.0), train, epochs=30), test)


@planted(
    "eps-underflow", "mel", "clamp clamp_min log10", fails=FP16, family="audio",
    also=("underflow",),
)  # fmt: skip
def log_floor_of_silence() -> Built:
    """The floor of 1e-10 under a logarithm is zero in float16, and silence minus infinity."""
    train, test = notes(1.0, silence=128)
    return built(fitted(lambda: Listener(1e-10, 0.0), train, epochs=30), test)
