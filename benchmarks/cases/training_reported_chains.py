"""Draws, forecasts, returns and geometry in 16 bits, after what issue trackers report.

As `training_reported`: written anew, labelled before the check answered, and asked of the judge.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe
from benchmarks.data import batches

ADAM = partial(torch.optim.Adam, lr=3e-3, eps=1e-4)

# Draws --------------------------------------------------------------------------------------------


class Inverse(nn.Module):
    """An autoencoder whose code is drawn by the inverse of the normal distribution."""

    def __init__(self) -> None:
        super().__init__()
        self.coded, self.told = mlp(64, 64, 32), mlp(16, 64, 64)

    def forward(self, x: Tensor) -> Any:
        mean, log_var = self.coded(x).chunk(2, -1)
        if not self.training:
            return self.told(mean)
        drawn = math.sqrt(2) * torch.erfinv(2 * torch.rand_like(mean) - 1)
        return self.told(mean + drawn * (0.5 * log_var).exp()), mean, log_var


@case(f"{TRUE} {MIXED}")
def inverse_draws() -> dict:
    """erfinv(2u - 1) of a u that may be zero (after pytorch/pytorch#175046)."""
    (x, _), (a, _) = data.digits()

    def loss(out: Any, x: Tensor) -> Tensor:
        told, mean, log_var = out
        far = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(-1).mean()
        return F.mse_loss(told, x) + 0.001 * far

    train, test = batches(x, x.flatten(1), size=64), batches(a, a.flatten(1), size=200)
    given = {"train_data": train, "eval_data": test, "loss": loss, "task": "regression"}
    return recipe(Inverse, optimizer=ADAM, epochs=20, **given)


class Noised(nn.Module):
    """What a label was, from a picture and what noise has made of the label."""

    def __init__(self, steps: int = 100) -> None:
        super().__init__()
        self.body, self.kinds, self.time = mlp(64, 64, 64), nn.Linear(10, 64), nn.Linear(1, 64)
        self.head, self.steps = nn.Linear(64, 10), steps
        place = torch.arange(steps + 1, dtype=torch.float64) / steps
        kept = torch.cos((place + 0.008) / 1.008 * math.pi / 2) ** 2
        kept = (kept / kept[0]).log()[1:].clamp(min=-50)
        self.register_buffer("log_kept", kept.float())
        self.register_buffer("log_lost", torch.log(1 - kept.exp() + 1e-40).float())

    def noised(self, log_x: Tensor, t: Tensor) -> Tensor:
        """Logarithms of what a label is after t steps."""
        kept = log_x + self.log_kept[t][:, None]
        lost = (self.log_lost[t] - math.log(10))[:, None].expand_as(kept)
        most = torch.maximum(kept, lost)
        return most + torch.log((kept - most).exp() + (lost - most).exp())

    def told(self, x: Tensor, log_x: Tensor, t: Tensor) -> Tensor:
        """Logits of what the label was."""
        when = t.to(x.dtype)[:, None] / self.steps
        return self.head((self.body(x) + self.kinds(log_x.exp()) + self.time(when)).relu())

    def forward(self, x: Tensor) -> Tensor:
        even = torch.full((len(x), 10), -math.log(10), dtype=x.dtype, device=x.device)
        t = torch.full((len(x),), self.steps - 1, device=x.device)
        return self.told(x, even, t)


@case(sound=f"{TRUE} {MIXED}")
def multinomial_noise() -> dict:
    """Labels of log(1e-30), and log(1 - α + 1e-40) in a table (after rotot0/tab-ddpm)."""

    def step(model: nn.Module, batch: tuple) -> Tensor:
        x, y = batch
        t = torch.randint(0, model.steps, y.shape, device=y.device)
        log_x = torch.log(F.one_hot(y, 10).float().clamp(min=1e-30)).to(x.dtype)
        chance = model.noised(log_x, t)
        gumbel = -torch.log(-torch.log(torch.rand(chance.shape, device=x.device) + 1e-30) + 1e-30)
        drawn = F.one_hot((gumbel + chance).argmax(-1), 10).float().clamp(min=1e-30)
        told = model.told(x, torch.log(drawn).to(x.dtype), t).log_softmax(-1)
        true, guessed = (model.noised(v, (t - 1).clamp(min=0)) for v in (log_x, told))
        far = (true.exp() * (true - guessed)).sum(-1)
        first = -(log_x.exp() * told).sum(-1)
        return torch.where(t == 0, first, far + 0.1 * first).mean()

    return recipe(Noised, training_step=step, loss=None, optimizer=ADAM)


# Forecasts ----------------------------------------------------------------------------------------


class StudentT(nn.Module):
    """Place, width and degrees of freedom of what comes next; the place once trained."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(24, 64, 3)

    def forward(self, x: Tensor) -> Any:
        place, width, free = self.body(x).unbind(-1)
        return (place, F.softplus(width), 2 + F.softplus(free)) if self.training else place


@case("16-true", "bf16-true 16-mixed")
def student_forecasts() -> dict:
    """((x - μ) / σ)² of rare outliers (after torch.distributions.StudentT, awslabs/gluonts)."""
    random = torch.Generator().manual_seed(0)
    start = 6.3 * torch.rand(1500, 1, generator=random)
    wave = torch.sin(start + 0.4 * torch.arange(25)) + 0.01 * torch.randn(
        1500, 25, generator=random
    )
    x, y = wave[:, :24], wave[:, 24].clone()
    out = torch.rand(1200, generator=random) < 0.02
    y[:1200][out] += 40 * torch.randn(int(out.sum()), generator=random)

    def loss(out: Any, t: Tensor) -> Tensor:
        place, width, free = out
        told = torch.distributions.StudentT(free, place, width, validate_args=False)
        return -told.log_prob(t).mean()

    train, test = batches(x[:1200], y[:1200], size=64), batches(x[1200:], y[1200:], size=300)
    given = {"train_data": train, "eval_data": test, "loss": loss, "task": "regression"}
    return recipe(StudentT, optimizer=partial(SGD, lr=3e-3), epochs=20, **given)


# Returns ------------------------------------------------------------------------------------------


class Quantiles(nn.Module):
    """Eight quantiles of a return; their mean once trained."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(64, 64, 8)

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        return z if self.training else z.mean(-1)


@case(sound=f"{TRUE} {MIXED}")
def quantile_returns() -> dict:
    """|τ - [δ < 0]| times Huber's loss of all pairs (after toshikwa/fqf-iqn-qrdqn.pytorch)."""
    (x, y), (a, b) = data.digits()
    random = torch.Generator().manual_seed(0)
    worth = y[:, None] / 3 + 0.3 * torch.randn(len(y), 8, generator=random)

    def loss(z: Tensor, t: Tensor) -> Tensor:
        off = t[:, None, :] - z[:, :, None]
        rank = ((torch.arange(8, device=z.device) + 0.5) / 8).to(z.dtype).view(1, 8, 1)
        huber = torch.where(off.abs() <= 1, 0.5 * off.square(), off.abs() - 0.5)
        return ((rank - (off.detach() < 0).to(z.dtype)).abs() * huber).sum(1).mean(1).mean()

    train, test = batches(x, worth, size=64), batches(a, b / 3, size=200)
    given = {"train_data": train, "eval_data": test, "loss": loss, "task": "regression"}
    return recipe(Quantiles, optimizer=partial(SGD, lr=0.05), epochs=20, **given)


# Geometry -----------------------------------------------------------------------------------------


class Equivariant(nn.Module):
    """Atoms that send messages along the directions between them, to themselves as well."""

    def __init__(self) -> None:
        super().__init__()
        self.edge, self.push = mlp(1, 32, 16), mlp(16, 16, 1)
        self.head = mlp(16, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            between = x[:, :, None] - x[:, None]
            square = between.square().sum(-1, keepdim=True)
            told = self.edge_of(square)
            unit = between / between.norm(dim=-1, keepdim=True).clamp(min=1e-8)
            x = x + (unit * self.push[1:](told)).mean(2)
        return self.head[1:](told.mean((1, 2)))[:, 0]

    def edge_of(self, square: Tensor) -> Tensor:
        """Features of a distance."""
        return self.edge[1:](square / 4).relu()


@case("16-true", f"bf16-true {MIXED}")
def directions_of_neighbours() -> dict:
    """(a - b) / max(|a - b|, 1e-8) of an atom and itself (after lucidrains/egnn-pytorch)."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(900, 6, 3, generator=random)
    far = (x[:, :, None] - x[:, None]).square().sum(-1)
    y = torch.exp(-far).sum((1, 2)) - 6
    train, test = batches(x[:700], y[:700], size=50), batches(x[700:], y[700:])
    given = {"train_data": train, "eval_data": test, "loss": F.mse_loss, "task": "regression"}
    return recipe(Equivariant, optimizer=partial(SGD, lr=3e-3), epochs=15, **given)


@case("bf16-true", MIXED)
def great_circles() -> dict:
    """asin √(sin² + cos cos sin²) of places that are the same (after mapbox's and others')."""
    (x, y), (a, b) = data.digits()

    def place(y: Tensor) -> Tensor:
        return torch.stack([0.6 + 0.04 * y, (y * 3 % 10) * 0.08 - 0.4], -1)

    def loss(z: Tensor, t: Tensor) -> Tensor:
        off = ((z - t) / 2).sin().square()
        a = off[:, 0] + z[:, 0].cos() * t[:, 0].cos() * off[:, 1]
        return 2 * torch.asin(torch.sqrt(a)).mean()

    train, test = batches(x, place(y), size=64), batches(a, place(b), size=200)
    given = {"train_data": train, "eval_data": test, "loss": loss, "task": "regression"}
    return recipe(lambda: mlp(64, 64, 2), optimizer=partial(SGD, lr=0.02), **given)
