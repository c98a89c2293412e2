"""Tables, long vocabularies, scans and several aims in 16 bits, after what issue trackers report.

As `training_reported`: written anew, labelled before the check answered, and asked of the judge.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe
from benchmarks.data import batches

# Tables -------------------------------------------------------------------------------------------


class Tabular(nn.Module):
    """A category in the first column, measurements in the others."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.kinds, self.body = nn.Embedding(count, 16), mlp(20, 64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.cat([self.kinds(x[:, 0].long()), x[:, 1:]], 1))


@case("bf16-true", "16-true 16-mixed bf16-mixed")
def categories_in_a_table() -> dict:
    """Categories up to 600 in a table of floats (after dreamquark-ai/tabnet's embeddings)."""
    random = torch.Generator().manual_seed(0)
    kind = torch.randint(0, 600, (6000,), generator=random)
    group = torch.randint(0, 4, (600,), generator=random)
    rest = torch.randn(6000, 4, generator=random)
    y = (group[kind] + (rest[:, 0] > 0.5)) % 4
    x = torch.cat([kind[:, None].float(), rest], 1)
    train, test = batches(x[:5000], y[:5000], size=100), batches(x[5000:], y[5000:], size=200)
    given = {"train_data": train, "eval_data": test, "optimizer": partial(SGD, lr=0.3)}
    return recipe(partial(Tabular, 600), **given)


# Long vocabularies --------------------------------------------------------------------------------


class Speller(nn.Module):
    """The third of four words, by how common it is."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(1200, 32)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(128, 64), nn.ReLU())
        self.told = nn.AdaptiveLogSoftmaxWithLoss(64, 1200, [40, 300])

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(self.words(x))
        return h if self.training else self.told.log_prob(h)


@case("16-true", "bf16-true")
def adaptive_softmax() -> dict:
    """A softmax by clusters, written into the inputs' type (pytorch/pytorch#44724)."""
    ids = data.words()[0]
    run = ids[(ids[:, :4] > 1).all(1)][:, :4]

    def step(model: nn.Module, batch: tuple) -> Tensor:
        x, y = batch
        return model.told(model(x), y).loss

    train = batches(run[400:2000], run[400:2000, 2], size=64)
    test = batches(run[:400], run[:400, 2], size=200)
    given = {"train_data": train, "eval_data": test, "training_step": step, "loss": None}
    adam = partial(torch.optim.Adam, lr=1e-2, eps=1e-4)
    return recipe(Speller, optimizer=adam, epochs=12, **given)


# Scans --------------------------------------------------------------------------------------------


class LogScan(nn.Module):
    """A gated recurrence over pixels, all steps at once, in logarithms."""

    def __init__(self) -> None:
        super().__init__()
        self.pixel, self.gates, self.head = nn.Linear(3, 24), nn.Linear(24, 64), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1).unflatten(1, (32, 2))
        where = torch.linspace(0, 1, 32, device=x.device, dtype=x.dtype).expand(len(x), 32)
        x = torch.cat([x, where[..., None]], -1)
        gates = self.gates(self.pixel(4 * x).tanh()).transpose(1, 2)
        hidden, gate = gates.contiguous().chunk(2, 1)
        kept, taken = -F.softplus(gate), -F.softplus(-gate)
        value = torch.where(hidden >= 0, (F.relu(hidden) + 0.5).log(), -F.softplus(-hidden))
        star = kept.cumsum(-1)
        state = (star + torch.logcumsumexp(taken + value - star, -1)).exp()
        return self.head(4 * state.unflatten(-1, (8, 4)).mean(-1).flatten(1))


@case(sound=f"16-true {MIXED}")
def scan_in_logarithms() -> dict:
    """minGRU: a* + logcumsumexp(b - a*), a* near -20 (after lucidrains/minGRU-pytorch)."""
    adam = partial(torch.optim.Adam, lr=1e-2, eps=1e-4)
    return recipe(LogScan, optimizer=adam, epochs=12)


class Unit(nn.Module):
    """A linear recurrence over rows, of complex numbers within the unit circle."""

    def __init__(self, count: int = 32) -> None:
        super().__init__()
        self.inner, self.phase = (
            nn.Parameter(torch.rand(count) - 1.5),
            nn.Parameter(torch.rand(count)),
        )
        self.real, self.imaginary = (nn.Parameter(torch.randn(count, 8) / 4) for _ in range(2))
        self.head = nn.Linear(2 * count, 10)

    def forward(self, x: Tensor) -> Tensor:
        turn = torch.exp(torch.complex(-self.inner.exp(), self.phase))
        taken = torch.complex(self.real, self.imaginary)
        state = torch.zeros(len(x), len(turn), dtype=turn.dtype, device=x.device)
        for row in x.squeeze(1).unbind(1):
            state = turn * state + row.to(taken.dtype) @ taken.t()
        return self.head(torch.cat([state.real, state.imag], -1).to(x.dtype))


@case(TRUE, MIXED)
def linear_recurrence() -> dict:
    """Complex numbers, of which there are none in bfloat16 (after state-spaces/s4)."""
    return recipe(Unit, optimizer=partial(torch.optim.Adam, lr=1e-2, eps=1e-4))


# Several aims -------------------------------------------------------------------------------------


class Critic(nn.Module):
    """What to do, and what it is worth."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.act, self.worth = mlp(64, 64, 64), nn.Linear(64, 10), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Any:
        h = self.body(x).relu()
        return (self.act(h), self.worth(h)[:, 0]) if self.training else self.act(h)


@case(sound=f"{TRUE} {MIXED}")
def weighed_advantages() -> dict:
    """exp(advantage / 0.05), which is infinite, held below 20 (after ikostrikov's AWAC)."""
    (x, y), (a, b) = data.digits()
    random = torch.Generator().manual_seed(0)
    x, y = x.repeat(4, 1, 1, 1), y.repeat(4)
    done = torch.where(torch.rand(y.shape, generator=random) < 0.4, y, (y + 1 + y % 3) % 10)
    seen = torch.stack([done, (done == y).long()], 1)

    def step(model: nn.Module, batch: tuple) -> Tensor:
        x, seen = batch
        told, worth = model(x)
        gained = seen[:, 1].to(worth.dtype)
        weight = ((gained - worth) / 0.05).exp().clamp(max=20).detach()
        chosen = told.log_softmax(-1).gather(1, seen[:, :1])[:, 0]
        return F.mse_loss(worth, gained) - (weight * chosen).mean()

    train, test = batches(x, seen, size=128), batches(a, b, size=200)
    given = {"train_data": train, "eval_data": test, "training_step": step, "loss": None}
    return recipe(Critic, optimizer=partial(SGD, lr=0.01), **given)


class Aims(nn.Module):
    """Digits and how much ink, each with its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.shared = nn.Linear(64, 64), nn.Linear(64, 64)
        self.digit, self.ink = nn.Linear(64, 10), nn.Linear(64, 1)
        self.weights, self.first = nn.Parameter(torch.ones(2)), None

    def forward(self, x: Tensor) -> Any:
        h = self.shared(self.body(x.flatten(1)).relu()).relu()
        return (self.digit(h), self.ink(h)[:, 0]) if self.training else self.digit(h)


@case(sound=f"{TRUE} {MIXED}")
def balanced_gradients() -> dict:
    """GradNorm: both aims' slopes are to be as long (after brianlan/pytorch-grad-norm)."""

    def step(model: nn.Module, batch: tuple) -> Tensor:
        x, y = batch
        digit, ink = model(x)
        aims = [F.cross_entropy(digit, y), F.mse_loss(ink, 10 * x.flatten(1).mean(1))]
        if model.first is None:
            model.first = [aim.item() for aim in aims]
        length = [
            torch.autograd.grad(w * aim, model.shared.weight, create_graph=True)[0].norm()
            for w, aim in zip(model.weights, aims, strict=True)
        ]
        length = torch.stack([one.float() for one in length])
        rate = [a.detach().float() / f for a, f in zip(aims, model.first, strict=True)]
        rate = torch.stack(rate)
        goal = (length.mean() * (rate / rate.mean()) ** 0.5).detach()
        slope = torch.autograd.grad((length - goal).abs().sum(), model.weights, retain_graph=True)[
            0
        ]
        weights = model.weights.detach().clamp(min=0.01)
        total = weights[0] * aims[0] + weights[1] * aims[1]
        return total + 0.02 * (slope.detach() * model.weights).sum()

    return recipe(Aims, training_step=step, loss=None, optimizer=partial(SGD, lr=0.02))
