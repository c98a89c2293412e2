"""Preferences, neighbours, forces, scans and ternary layers in 16 bits, after what trackers report.

As `training_reported`: written anew, labelled before the check answered, and asked of the judge.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe
from benchmarks.data import batches

# Preferences --------------------------------------------------------------------------------------


class Answers(nn.Module):
    """Reads a picture and writes its label in four letters of two kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(64, 64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).unflatten(1, (4, 2)).transpose(1, 2)


def letters(y: Tensor) -> Tensor:
    return torch.stack([(y >> k) & 1 for k in range(4)], 1)


def answers(log_odds) -> dict:
    """Odds-ratio preference optimisation: the right word beside one that is wrong in a letter."""
    (x, y), (a, b) = data.digits()

    def loss(z: Tensor, y: Tensor) -> Tensor:
        told = z.log_softmax(1)
        chosen = told.gather(1, y[:, None]).mean((1, 2))
        rejected = told.gather(1, 1 - y[:, None]).mean((1, 2))
        return -(chosen + 0.5 * F.logsigmoid(log_odds(chosen, rejected))).mean()

    train, test = batches(x, letters(y), size=32), batches(a, letters(b), size=200)
    return recipe(Answers, loss=loss, train_data=train, eval_data=test, epochs=25)


@case("16-true bf16-true")
def odds_of_preferences() -> dict:
    """log1p(-exp(log p)) of answers that are sure (after huggingface/trl's ORPO)."""
    odds = lambda c: c - torch.log1p(-torch.exp(c))  # noqa: E731
    return answers(lambda c, r: odds(c) - odds(r))


@case(sound=f"{TRUE} {MIXED}")
def odds_in_float32() -> dict:
    """The same of wide log-probabilities, no surer than exp(-1e-4)."""
    wide = lambda c: c.float().clamp(max=-1e-4)  # noqa: E731
    odds = lambda c: wide(c) - torch.log1p(-torch.exp(wide(c)))  # noqa: E731
    return answers(lambda c, r: odds(c) - odds(r))


def grouped(widen: bool) -> dict:
    """Eight drawn answers per picture, rewarded beside a large common part."""

    def step(model: nn.Module, batch: tuple) -> Tensor:
        x, y = batch
        told = model(x).log_softmax(-1)
        drawn = torch.multinomial(told.detach().float().exp(), 8, replacement=True)
        reward = 100 + 0.25 * (drawn == y[:, None]).to(told.dtype)
        reward = reward.float() if widen else reward
        off = reward - reward.mean(1, keepdim=True)
        advantage = off / (reward.std(1, keepdim=True) + 1e-4)
        return -(advantage * told.gather(1, drawn)).mean()

    given = {"optimizer": partial(SGD, lr=0.05), "epochs": 30, "loss": None}
    return recipe(training_step=step, **given)


@case("bf16-true", "16-true 16-mixed")
def group_advantages() -> dict:
    """Rewards of 100 and 100.25 beside their mean (OpenRLHF/OpenRLHF#1334)."""
    return grouped(False)


# Neighbours ---------------------------------------------------------------------------------------


def spread_out() -> dict:
    """Two views, and -log of the distance to the nearest neighbour."""
    (x, y), (a, b) = data.digits()
    random = torch.Generator().manual_seed(0)
    jitter = 0.002 * torch.randn(x.shape, generator=random)
    crowd = torch.stack([x, x + jitter], 1).flatten(0, 1)
    labels = y.repeat_interleave(2)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = mlp(64, 128, 32), nn.Linear(32, 10)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | Tensor:
            h = self.body(x)
            return (self.head(h.relu()), h) if self.training else self.head(h.relu())

    def nearest(h: Tensor) -> Tensor:
        with torch.autocast(h.device.type, enabled=False):
            h = F.normalize(h, eps=1e-8, p=2, dim=-1)
            dots = h @ h.T
            dots.view(-1)[:: len(h) + 1].fill_(-1)
            near = dots.argmax(1)
            distance = F.pairwise_distance(h, h[near], 2, eps=1e-8)
            return -torch.log(distance + 1e-8).mean()

    def loss(out: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
        return F.cross_entropy(out[0], y) + 0.02 * nearest(out[1])

    train, test = batches(crowd, labels, size=64), batches(a, b, size=200)
    return recipe(Net, loss=loss, train_data=train, eval_data=test, optimizer=partial(SGD, lr=0.02))


@case(sound=f"{TRUE} {MIXED}")
def nearest_neighbours() -> dict:
    """-log(distance + 1e-8) to a neighbour that is nearly the same (after dinov2's KoLeo)."""
    return spread_out()


# Ternary layers -----------------------------------------------------------------------------------


class BitLinear(nn.Linear):
    """Weights of -1, 0 and 1 and inputs of eight bits, both straight through."""

    def __init__(self, inputs: int, outputs: int, least: float) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.least = least

    def forward(self, x: Tensor) -> Tensor:
        step = 127.0 / x.abs().max(-1, keepdim=True).values.clamp(min=self.least)
        narrow = (x * step).round().clamp(-128, 127) / step
        size = 1.0 / self.weight.abs().mean().clamp(min=1e-5)
        ternary = (self.weight * size).round().clamp(-1, 1) / size
        x = x + (narrow - x).detach()
        return F.linear(x, self.weight + (ternary - self.weight).detach())


class Ternary(nn.Module):
    """Patches of a picture, blank ones among them, through ternary layers."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.first, self.second = BitLinear(4, 48, least), BitLinear(48, 48, least)
        self.head = nn.Linear(16 * 48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.unfold(x, 2, stride=2).transpose(1, 2)
        h = self.second(self.first(x).relu()).relu()
        return self.head(h.flatten(1))


@case("16-true", "bf16-true bf16-mixed")
def ternary_layers() -> dict:
    """127 / clamp(max |x|, 1e-5) of tokens that are zero (after microsoft/BitNet)."""
    return recipe(partial(Ternary, 1e-5), optimizer=partial(SGD, lr=0.02))


@case(sound=f"{TRUE} {MIXED}")
def ternary_layers_safe() -> dict:
    """The same with clamp(max |x|, 1e-2)."""
    return recipe(partial(Ternary, 1e-2), optimizer=partial(SGD, lr=0.02))


# Forces -------------------------------------------------------------------------------------------


class Potential(nn.Module):
    """The energy of six atoms, each with a large constant part; forces by its gradient."""

    def __init__(self, alone: float) -> None:
        super().__init__()
        self.pair = nn.Sequential(nn.Linear(1, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU())
        self.out = nn.Linear(48, 1)
        self.register_buffer("alone", torch.tensor(alone))

    def forward(self, at: Tensor) -> Tensor:
        i, j = torch.triu_indices(6, 6, 1, device=at.device)
        apart = (at[:, i] - at[:, j]).square().sum(-1, keepdim=True).add(1e-2).sqrt()
        energy = (self.out(self.pair(apart)) / 4).sum((1, 2))
        return energy + 6 * self.alone


def forces(alone: float) -> dict:
    """Energies and forces of atoms in a soft potential."""
    random = torch.Generator().manual_seed(0)
    at = torch.randn(1200, 6, 3, generator=random)
    i, j = torch.triu_indices(6, 6, 1)
    at.requires_grad_()
    apart = (at[:, i] - at[:, j]).square().sum(-1).add(1e-2).sqrt()
    energy = (torch.exp(-apart) - 0.4 * torch.exp(-((apart - 2) ** 2))).sum(1)
    (force,) = torch.autograd.grad(-energy.sum(), at)
    energy = energy.detach() + 6 * alone
    at = at.detach()
    aim = torch.cat([energy[:, None], force.flatten(1)], 1)

    def step(model: nn.Module, batch: tuple) -> Tensor:
        at, aim = batch
        at = at.detach().requires_grad_()
        energy = model(at)
        (slope,) = torch.autograd.grad(energy.sum(), at, create_graph=True)
        off = (energy - aim[:, 0]) / 6
        return off.square().mean() + (slope.flatten(1) + aim[:, 1:]).square().mean()

    train = batches(at[:1000], aim[:1000], size=50)
    test = batches(at[1000:], energy[1000:], size=100)
    given = {"train_data": train, "eval_data": test, "loss": None, "task": "regression"}
    adam = partial(torch.optim.Adam, lr=5e-3, eps=1e-4)
    return recipe(partial(Potential, alone), training_step=step, optimizer=adam, epochs=15, **given)


@case("16-true bf16-true")
def energies_and_forces() -> dict:
    """Energies of -5000 per atom, which tell the energy of binding no more (after ACEsuit/mace)."""
    return forces(-5000.0)


@case(sound=f"bf16-true {MIXED}")
def energies_of_binding() -> dict:
    """The same without what each atom has alone."""
    return forces(0.0)
