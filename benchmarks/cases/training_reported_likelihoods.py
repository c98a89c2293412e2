"""Likelihoods and priors in 16 bits, after what issue trackers report.

As `training_reported`: written anew, and labelled by the judge before the gradient check answered.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, SGD, By, case, mlp, recipe
from benchmarks.cases.training_reported_pictures import pictures


class Hidden(nn.Module):
    """Ten hidden Markov models over the rows, each with four states."""

    def __init__(self) -> None:
        super().__init__()
        self.emit = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 40))
        self.moves = nn.Parameter(torch.randn(10, 4, 4) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        seen = (self.emit(x.squeeze(1)) - 2).sigmoid().view(-1, 8, 10, 4)
        moves, alpha = self.moves.softmax(-1), seen[:, 0] / 4
        for row in range(1, 8):
            alpha = torch.einsum("bks,kst->bkt", alpha, moves) * seen[:, row]
        return alpha.sum(-1).log()


@case("16-true 16-mixed", "bf16-mixed")
def forward_algorithm() -> dict:
    """Products of probabilities over time, no rescaling (after lorenlugosch/pytorch_HMM)."""
    return recipe(Hidden, optimizer=partial(SGD, lr=0.05), epochs=15)


class Mixture(nn.Module):
    """Three normals of six coordinates each."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(64, 64, 3 * 13)

    def forward(self, x: Tensor):
        share, mean, width = self.body(x).split((3, 18, 18), -1)
        share, mean = share.softmax(-1), mean.view(-1, 3, 6)
        if self.training:
            return share, width.view(-1, 3, 6).exp(), mean
        return (share.unsqueeze(-1) * mean).sum(1)


def mixed(out: tuple[Tensor, ...], t: Tensor) -> Tensor:
    share, width, mean = out
    each = torch.exp(-0.5 * ((t.unsqueeze(1) - mean) / width) ** 2) / width / math.sqrt(2 * math.pi)
    return -torch.log((share * each.prod(-1)).sum(-1)).mean()


def places(x: Tensor) -> Tensor:
    """The ink of six regions, as a density that spreads over some units."""
    parts = F.adaptive_avg_pool2d(x, (2, 3)).flatten(1)
    return 12 * (parts - 0.3)


@case("16-true")
def mixture_product() -> dict:
    """log Σ Π N, without a guard (after sagelywizard/pytorch-mdn)."""
    return pictures(places, Mixture, mixed, optimizer=partial(SGD, lr=0.005), epochs=25)


class Drawn(nn.Linear):
    """Weights with a mean and a width each."""

    def __init__(self, *size: int) -> None:
        super().__init__(*size)
        self.rho = nn.Parameter(torch.full_like(self.weight, -5.0))
        self.divergence = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.linear(x, self.weight, self.bias)
        width = torch.log1p(self.rho.exp())
        w = self.weight + width * torch.randn_like(width)
        posterior = (-math.log(math.sqrt(2 * math.pi)) - width.log()).sum()
        posterior = posterior - ((w - self.weight) ** 2 / (2 * width**2)).sum()
        prior = (-math.log(math.sqrt(2 * math.pi)) - w**2 / 2).sum()
        self.divergence = posterior - prior
        return F.linear(x, w, self.bias)


class Bayesian(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Drawn(64, 300), Drawn(300, 10)

    def forward(self, x: Tensor):
        z = self.last(self.first(x.flatten(1)).relu())
        return (z, self.first.divergence + self.last.divergence) if self.training else z


@case("16-true", MIXED)
def drawn_weights() -> dict:
    """The log-density of 20 000 weights is a sum (after nitarshan/bayes-by-backprop)."""
    loss = lambda out, y: F.cross_entropy(out[0], y) + 1e-6 * out[1]  # noqa: E731
    return recipe(Bayesian, loss=loss)


class Pondering(nn.Module):
    """A recurrent cell that decides after each of twelve steps whether it has thought enough."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(64, 48), nn.Linear(48, 10)
        self.halt = nn.Linear(48, 1)
        nn.init.constant_(self.halt.bias, 1.5)

    def forward(self, x: Tensor):
        x = x.flatten(1)
        h, left = x.new_zeros(len(x), 48), x.new_ones(len(x))
        answers, chances = [], []
        for step in range(12):
            h = self.cell(x, h)
            stop = torch.sigmoid(self.halt(h)).squeeze(-1) if step < 11 else torch.ones_like(left)
            answers.append(self.head(h))
            chances.append(left * stop)
            left = left * (1 - stop)
        z, p = torch.stack(answers), torch.stack(chances)
        return (z, p) if self.training else (p.unsqueeze(-1) * z).sum(0)


def pondered(out: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    z, p = out
    each = torch.stack([F.cross_entropy(one, y, reduction="none") for one in z])
    prior = 0.3 * 0.7 ** torch.arange(12, device=p.device, dtype=p.dtype)
    prior = (prior / prior.sum()).unsqueeze(1).expand_as(p)
    return (p * each).sum(0).mean() + 0.01 * F.kl_div(p.log(), prior, reduction="batchmean")


@case("16-true", f"bf16-true {MIXED}")
def pondering() -> dict:
    """The chance to come to step 12, and its logarithm (after jankrepl/mildlyoverfitted)."""
    return recipe(Pondering, loss=pondered, optimizer=partial(SGD, lr=0.05), epochs=15)


def turned(x: Tensor) -> Tensor:
    """Cosine and sine of the direction in which the ink lies."""
    place = torch.arange(8.0) - 3.5
    ink = x.squeeze(1)
    c = torch.stack([(ink * place).mean((1, 2)), (ink.mT * place).mean((1, 2))], -1)
    return F.normalize(c / c.std() + torch.tensor([1.0, 0.5]), dim=-1)


class Pointing(nn.Module):
    """A direction, and how sure it is."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(64, 96, 3)

    def forward(self, x: Tensor):
        z = self.body(x)
        unit = F.normalize(z[:, :2], dim=-1, eps=1e-3)
        return (unit, F.softplus(z[:, 2] + 1)) if self.training else unit


def von_mises(out: tuple[Tensor, Tensor], t: Tensor) -> Tensor:
    unit, kappa = out
    return (torch.log(2 * math.pi * torch.i0(kappa)) - kappa * (unit * t).sum(-1)).mean()


@case("16-true")
def sure_directions() -> dict:
    """I₀(κ) leaves the range as κ grows (after sergeyprokudin/deep_direct_stat)."""
    return pictures(
        turned, Pointing, von_mises, optimizer=partial(SGD, lr=0.01), clip_grad_norm=1.0
    )


class Unbounded(nn.Module):
    """Positive inputs by the inverse of softplus."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.body, self.least = mlp(), least

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1) + self.least
        return self.body(torch.log(torch.exp(x) - 1) / 4)


@case("bf16-true", f"16-true {MIXED}")
def inverse_softplus() -> dict:
    """log(exp(x) - 1) of x = 0.003 (after pyro-ppl/pyro)."""
    return recipe(partial(Unbounded, 0.003), optimizer=partial(SGD, lr=0.02))


class Forger(nn.Module):
    """Draws the right half of a picture from the left one; another tells it from true ones."""

    def __init__(self) -> None:
        super().__init__()
        self.draw = nn.Sequential(mlp(32, 96, 32), By(torch.sigmoid))
        self.tell = nn.Sequential(mlp(64, 96, 1), By(lambda z: torch.sigmoid(4 * z)))

    def forward(self, x: Tensor) -> Tensor:
        return self.draw(x)


def forging(model: Forger, batch: tuple[Tensor, Tensor], eps: float) -> Tensor:
    left, right = batch
    drawn = model(left)
    true = model.tell(torch.cat([left, right], -1))
    false = model.tell(torch.cat([left, drawn.detach()], -1))
    telling = -(torch.log(true + eps) + torch.log(1 - false + eps)).mean()
    fooled = torch.func.functional_call(
        model.tell,
        {n: p.detach() for n, p in model.tell.named_parameters()},
        (torch.cat([left, drawn], -1),),
    )
    return 20 * F.mse_loss(drawn, right) - 0.02 * torch.log(fooled + eps).mean() + telling


@case(sound="16-true bf16-mixed")
def forged_halves() -> dict:
    """log(D + 1e-8) of a D that is not that sure (after eriklindernoren/PyTorch-GAN)."""
    from benchmarks.data import batches

    (x, _), (a, _) = data.digits()
    (left, right), (one, other) = (t.flatten(1).view(-1, 8, 2, 4).unbind(2) for t in (x, a))
    given = {"train_data": batches(left.flatten(1), right.flatten(1), size=64), "epochs": 25}
    given["eval_data"] = batches(one.flatten(1), other.flatten(1), size=200)
    given |= {"task": "regression", "optimizer": partial(SGD, lr=0.02)}
    return recipe(Forger, loss=None, training_step=partial(forging, eps=1e-8), **given)
