"""Held-out samplers, flows and solvers, which take many small steps; some sound, some not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import TRUE, Built, built, fitted, healthy, planted


class Schedule(nn.Module):
    """Noise levels from what is left of the signal: sqrt((1 - a) / a)."""

    def __init__(self) -> None:
        super().__init__()
        beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        self.register_buffer("kept", (1 - beta).cumprod(0), persistent=False)

    def forward(self, steps: Tensor) -> Tensor:
        kept = self.kept[steps]
        return ((1 - kept) / kept) ** 0.5


class Sampler(nn.Module):
    """Takes the noise off a digit by Euler steps, and says which it is."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule = Schedule()
        self.denoise = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        self.head = nn.Linear(64, 10)
        self.register_buffer("steps", torch.tensor([600, 300, 100, 0]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x, sigmas = x.flatten(1), self.schedule(self.steps)
        for now, then in zip(sigmas, torch.cat([sigmas[1:], sigmas.new_zeros(1)]), strict=True):
            slope = (x - self.denoise(x / (now**2 + 1) ** 0.5)) / now
            x = x + slope * (then - now)
        return self.head(x)


def noisy(x: Tensor, seed: int) -> Tensor:
    """Digits under noise as strong as the first step expects."""
    random = torch.Generator().manual_seed(seed)
    return x + torch.randn(x.shape, generator=random) * 0.5


@planted(
    "cancellation", "schedule", "rsub sub div _to_copy", fails=("bf16-true",),
    also=("absorption", "precision-loss"), family="diffusion",
)  # fmt: skip
def last_noise_level_is_zero() -> Built:
    """huggingface/diffusers#4254: 0.99915 is one in bfloat16, and the sampler divides by zero."""
    (x, y), (u, v) = data.digits()
    return built(fitted(Sampler, (noisy(x, 0), y)), (noisy(u, 1), v))


class Flow(nn.Module):
    """A velocity of place and time, integrated from zero to one in 16 steps; then a head."""

    def __init__(self, steps: int = 16, within: float = 1.0) -> None:
        super().__init__()
        self.steps, self.within = steps, within
        self.move = nn.Sequential(nn.Linear(65, 48), nn.Tanh(), nn.Linear(48, 64))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x, step = x.flatten(1), self.within / self.steps
        for i in range(self.steps):
            time = torch.full_like(x[:, :1], i * step)
            x = x + self.move(torch.cat([x, time], 1)) * step
        return self.head(x)


@healthy()
def flow_matching_steps() -> Built:
    """diffusers' FlowMatchEulerDiscreteScheduler (#10146): sixteen steps of a sixteenth."""
    train, test = data.digits()
    return built(fitted(Flow, train), test)


class Drift(nn.Module):
    """x' = (target - x) / 400, by 600 steps of Euler."""

    def __init__(self) -> None:
        super().__init__()
        self.target = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        target = self.target(x)
        state = torch.ones_like(target)
        for _ in range(600):
            state = state + (target - state) / 400
        return state


class Relaxed(nn.Module):
    """Where a slow system has come to, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.drift, self.head = Drift(), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drift(x.flatten(1)))


@planted(
    "absorption", "drift", "add", fails=("bf16-true", "bf16-mixed"), also=("precision-loss",),
    family="ode",
)  # fmt: skip
def slow_system_stands_still() -> Built:
    """brainpy#539: a step of a four hundredth is lost beside a state near one."""
    train, test = data.digits()
    return built(fitted(Relaxed, train, epochs=8), test)


class Spline(nn.Module):
    """The inverse of a monotone quadratic spline on 0..1, by the quadratic formula."""

    def __init__(self, bins: int = 6) -> None:
        super().__init__()
        self.widths, self.heights = (nn.Parameter(torch.randn(bins) * 0.3) for _ in range(2))
        self.slopes = nn.Parameter(torch.randn(bins + 1) * 0.3)

    @staticmethod
    def edges(free: Tensor) -> tuple[Tensor, Tensor]:
        size = free.softmax(-1)
        right = F.pad(size.cumsum(-1), (1, 0))
        return right, right[1:] - right[:-1]

    def forward(self, y: Tensor) -> Tensor:
        (x0, w), (y0, h) = self.edges(self.widths), self.edges(self.heights)
        places = torch.cat([y0[:-1], y0[-1:] + 1e-6])
        i = (y[..., None] >= places).sum(-1) - 1
        slope = F.softplus(self.slopes) + 1e-3
        s, low, high = h[i] / w[i], slope[i], slope[i + 1]
        off = y - y0[i]
        bend = low + high - 2 * s
        a, b, c = off * bend + h[i] * (s - low), h[i] * low - off * bend, -s * off
        root = b.pow(2) - 4 * a * c
        return 2 * c / (-b - root.sqrt()) * w[i] + x0[i]


class Splines(nn.Module):
    """Pixels through a spline, then a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.spline = Spline()
        self.body = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.spline(x.flatten(1)))


@planted(
    "absorption", "spline", "add index", fails=TRUE, also=("eps-underflow",), family="flow"
)  # fmt: skip
def last_edge_of_a_spline() -> Built:
    """glasflow#65, nflows: 1 + 1e-6 is one in 16 bits, and a pixel of one is in no bin."""
    train, test = data.digits()
    return built(fitted(Splines, train), test)


class Coupling(nn.Module):
    """Half of a vector scaled and shifted by what a net says of the other half."""

    def __init__(self, dim: int, flip: bool) -> None:
        super().__init__()
        self.flip, half = flip, dim // 2
        self.net = nn.Sequential(nn.Linear(half, 32), nn.Tanh(), nn.Linear(32, dim))

    def forward(self, x: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.chunk(2, -1)
        a, b = (b, a) if self.flip else (a, b)
        scale, shift = self.net(a).chunk(2, -1)
        scale = torch.tanh(scale)
        b = b * torch.exp(scale) + shift
        return torch.cat([b, a] if self.flip else [a, b], -1), given + scale.sum(-1)


class RealNVP(nn.Module):
    """Log-density of a digit under each class: one flow, one Gaussian per class."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = nn.ModuleList(Coupling(64, bool(i % 2)) for i in range(4))
        self.centres = nn.Parameter(torch.randn(10, 64) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        log_det = x.new_zeros(len(x))
        for layer in self.flow:
            x, log_det = layer(x, log_det)
        distance = (x[:, None] - self.centres).square().sum(-1)
        return log_det[:, None] - distance / 2


@healthy()
def coupling_flow_densities() -> Built:
    """FrEIA and normflows: log-determinants summed over couplings."""
    train, test = data.digits()
    return built(fitted(RealNVP, train), test)


class Energy(nn.Module):
    """Forces as the negative gradient of an energy, taken inside the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh())
        self.head = nn.Linear(48, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.head(self.body(x)).sum()
            return -torch.autograd.grad(energy, x, create_graph=self.training)[0]


@healthy(task="regression")
def forces_from_an_energy() -> Built:
    """deepmd-kit#4741: a potential whose output is its own derivative."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1600, 6, generator=random)
    pull = -x + torch.sin(2 * x.roll(1, 1)) * 0.5 - 0.5 * torch.sin(2 * x.roll(-1, 1))
    train, test = (x[:1200], pull[:1200]), (x[1200:], pull[1200:])
    return built(fitted(Energy, train, loss=F.mse_loss, epochs=40), test)
