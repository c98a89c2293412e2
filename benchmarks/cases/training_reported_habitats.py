"""Graphs, slots, replays, queues, residuals and language in 16 bits, after what trackers report.

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

# Links --------------------------------------------------------------------------------------------


class Linked(nn.Module):
    """Codes of pictures whose products say whether two are the same digit."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.spread = mlp(64, 64, 16), nn.Linear(64, 16)
        self.far = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Any:
        h = self.body[2](self.body[1](x.flatten(1)))
        mean, width = self.body[3](h), self.spread(h).clamp(max=10)
        if self.training:
            z = mean + torch.randn_like(mean) * width.exp()
            return z @ z.t() - self.far, mean, width
        score = (mean[0::2] * mean[1::2]).sum(-1) - self.far
        return torch.stack([torch.zeros_like(score), score], 1)


def links(eps: float) -> dict:
    """A variational autoencoder of links: products, a sigmoid, logarithms."""
    (x, y), (a, b) = data.digits()

    def step(model: nn.Module, batch: tuple) -> Tensor:
        x, y = batch
        z, mean, width = model(x)
        same = y[:, None] == y[None]
        p = torch.sigmoid(z)
        linked = -torch.log(p[same] + eps).mean() - torch.log(1 - p[~same] + eps).mean()
        prior = -0.5 * (1 + 2 * width - mean**2 - width.exp() ** 2).sum(1).mean()
        return linked + prior / len(x)

    mates = (b[0::2] == b[1::2]).long()
    pairs = [(a[i : i + 200], mates[i // 2 : i // 2 + 100]) for i in range(0, 600, 200)]
    adam = partial(torch.optim.Adam, lr=3e-3, eps=1e-4)
    train = batches(x, y, size=64)
    given = {"training_step": step, "loss": None, "train_data": train, "eval_data": pairs}
    return recipe(Linked, optimizer=adam, epochs=25, **given)


@case("16-true bf16-true")
def linked_pictures() -> dict:
    """log(1 - sigmoid + 1e-15) of pairs that are not linked (pyg-team/pytorch_geometric#500)."""
    return links(1e-15)


# Slots --------------------------------------------------------------------------------------------


class Slots(nn.Module):
    """Patches compete for slots; each slot takes the mean of what it won."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.patch, self.eps = nn.Linear(4, 32), eps
        self.where = nn.Parameter(torch.randn(16, 32) / 4)
        self.slots = nn.Parameter(torch.randn(6, 32))
        self.query, self.key, self.value = (nn.Linear(32, 32, bias=False) for _ in range(3))
        self.norm, self.mix, self.head = nn.LayerNorm(32), nn.Linear(64, 32), nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(F.unfold(x, 2, stride=2).transpose(1, 2)) + self.where
        keys, values = self.key(x), self.value(x)
        slots = self.slots.expand(len(x), -1, -1)
        for _ in range(3):
            dots = self.query(self.norm(slots)) @ keys.transpose(1, 2) * 4
            won = dots.softmax(dim=1) + self.eps
            won = won / won.sum(-1, keepdim=True)
            slots = self.mix(torch.cat([won @ values, slots], -1)).tanh()
        return self.head(slots.flatten(1))


@case("16-true", "bf16-true")
def competing_slots() -> dict:
    """(softmax over slots + 1e-8) over its sum, of some that win little (after lucidrains)."""
    adam = partial(torch.optim.Adam, lr=3e-3, eps=1e-4)
    return recipe(partial(Slots, 1e-8), optimizer=adam)


# Replays ------------------------------------------------------------------------------------------


class Replayed(nn.Module):
    """A value, and how far off it last was for each of the pictures."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.body = mlp(64, 64, 1)
        self.register_buffer("off", torch.ones(count))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def replays(eps: float) -> dict:
    """Pictures drawn by how far off their value was, and weighed against it."""
    (x, y), (a, b) = data.digits()
    aim, count = lambda y: (y.float()[:, None] - 4.5) / 2.9, len(x)

    def step(model: Replayed, batch: tuple) -> Tensor:
        (x, at), y = batch
        share = model.off[at] ** 0.6
        share = share / model.off.pow(0.6).sum()
        weight = (count * share) ** -0.4
        off = (model(x) - y).abs().squeeze(1)
        with torch.no_grad():
            model.off[at] = off.to(model.off.dtype) + eps
        return (weight / weight.max() * off**2).mean()

    train = batches(x, torch.arange(count), aim(y), size=64)
    given = {"train_data": train, "eval_data": batches(a, aim(b), size=200), "task": "regression"}
    sgd = partial(SGD, lr=0.05)
    return recipe(
        partial(Replayed, count), training_step=step, loss=None, optimizer=sgd, epochs=20, **given
    )


@case(sound="16-true 16-mixed bf16-mixed")
def weighed_replays() -> dict:
    """(N p) ** -0.4 of priorities |error| + 1e-6 (after Kaixhin/Rainbow's memory)."""
    return replays(1e-6)


# Queues -------------------------------------------------------------------------------------------


class Queued(nn.Module):
    """A slow encoder writes keys into a queue; the quick one is to find its own."""

    def __init__(self, keep: float) -> None:
        super().__init__()
        self.quick, self.slow, self.head = mlp(64, 64, 32), mlp(64, 64, 32), nn.Linear(64, 10)
        self.slow.load_state_dict(self.quick.state_dict())
        self.slow.requires_grad_(False)
        self.keep = keep
        self.register_buffer("queue", F.normalize(torch.randn(256, 32), dim=1))
        self.register_buffer("at", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.quick[:3](x))

    def contrast(self, x: Tensor, other: Tensor) -> Tensor:
        with torch.no_grad():
            for p, q in zip(self.quick.parameters(), self.slow.parameters(), strict=True):
                q.mul_(self.keep).add_(p, alpha=1 - self.keep)
            key = F.normalize(self.slow(other), dim=1).to(self.queue.dtype)
        found = F.normalize(self.quick(x), dim=1)
        near = (found * key).sum(1, keepdim=True)
        z = torch.cat([near, found @ self.queue.clone().t().to(found.dtype)], 1) / 0.1
        with torch.no_grad():
            place = (int(self.at) + torch.arange(len(key))) % len(self.queue)
            self.queue[place] = key
            self.at.add_(len(key)).remainder_(len(self.queue))
        return F.cross_entropy(z, torch.zeros(len(z), dtype=torch.long, device=z.device))


def queued(keep: float) -> dict:
    """Labels, and contrast with a queue beside them."""

    def step(model: Queued, batch: tuple) -> Tensor:
        x, y = batch
        views = [(x + 0.1 * torch.randn_like(x)).clamp(0, 1) for _ in range(2)]
        return F.cross_entropy(model(x), y) + 0.1 * model.contrast(*views)

    given = {"optimizer": partial(SGD, lr=0.05), "loss": None, "training_step": step}
    return recipe(partial(Queued, keep), **given)


@case(sound=f"{TRUE} {MIXED}")
def momentum_queue() -> dict:
    """A slow encoder that keeps 0.999, and stays in bfloat16 (after facebookresearch/moco)."""
    return queued(0.999)


# Residuals ----------------------------------------------------------------------------------------


def residuals(waves: int, weight: float) -> dict:
    """u'' = f for a sum of waves, by second derivatives of a network."""
    random = torch.Generator().manual_seed(0)
    x = torch.rand(2048, 1, generator=random)
    at = torch.linspace(0, 1, 256)[:, None]
    wave = lambda x: torch.sin(math.pi * x) + 0.35 * torch.sin(waves * math.pi * x)  # noqa: E731

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.body = nn.Linear(1, 64), nn.Sequential(nn.Linear(64, 64), nn.Tanh())
            self.last = nn.Linear(64, 1)
            nn.init.uniform_(self.first.weight, -waves * math.pi, waves * math.pi)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.body(torch.sin(self.first(x)))) * x * (1 - x) * 4

    def step(model: nn.Module, batch: tuple) -> Tensor:
        x = batch[0].detach().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        (bent,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        return weight * (bent - batch[1]).square().mean()

    force = -(math.pi**2) * torch.sin(math.pi * x)
    force = force - 0.35 * (waves * math.pi) ** 2 * torch.sin(waves * math.pi * x)
    train = batches(x, force, size=128)
    given = {"train_data": train, "eval_data": batches(at, wave(at), size=128), "loss": None}
    adam = partial(torch.optim.Adam, lr=2e-3, eps=1e-4)
    return recipe(Net, training_step=step, optimizer=adam, task="regression", epochs=40, **given)


@case(sound="16-true 16-mixed")
def curvature_of_waves() -> dict:
    """The squared residual of (9π)² leaves float16, its slope does not (after lululxvi/deepxde)."""
    return residuals(9, 1e-3)


# Policies -----------------------------------------------------------------------------------------


class Betas(nn.Module):
    """The two concentrations of a beta distribution; their mean once trained."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(64, 64, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = (F.softplus(self.body(x)) + 1).unbind(1)
        return torch.stack([a, b], 1) if self.training else (a / (a + b))[:, None]


@case("16-true", "bf16-true 16-mixed bf16-mixed")
def beta_policy() -> dict:
    """lgamma(a + b) - lgamma(a) - lgamma(b) of sure actions (tensorforce/tensorforce#94)."""
    (x, y), (a, b) = data.digits()
    aim = lambda y: y.float()[:, None] / 12 + 0.1  # noqa: E731

    def loss(z: Tensor, t: Tensor) -> Tensor:
        policy = torch.distributions.Beta(z[:, 0], z[:, 1])
        return -policy.log_prob(t[:, 0]).mean()

    train, test = batches(x, aim(y), size=64), batches(a, aim(b), size=200)
    adam = partial(torch.optim.Adam, lr=3e-3, eps=1e-4)
    given = {"loss": loss, "optimizer": adam, "task": "regression", "epochs": 30}
    return recipe(Betas, train_data=train, eval_data=test, **given)


# Language -----------------------------------------------------------------------------------------


class Tied(nn.Module):
    """A small causal language model whose words are its classes."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(28, 48), nn.Embedding(47, 48)
        for part in (self.words, self.places):
            nn.init.normal_(part.weight, std=0.02)
        self.mix, self.out = nn.Linear(48, 144, bias=False), nn.Linear(48, 48, bias=False)
        self.up, self.down = nn.Linear(48, 96), nn.Linear(96, 48)
        self.gains = nn.Parameter(torch.ones(3, 48))
        self.head = nn.Linear(48, 28, bias=False)
        self.head.weight = self.words.weight

    def norm(self, x: Tensor, which: int) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * self.gains[which]

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        q, k, v = self.mix(self.norm(x, 0)).unflatten(-1, (3, 4, 12)).transpose(1, 3).unbind(2)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.norm(x, 1))))
        return self.head(self.norm(x, 2)).transpose(1, 2)


@case("16-true", "bf16-true")
def tied_words() -> dict:
    """Tied words of 0.02, whose mean square + 1e-6 is not much (after karpathy/nanoGPT)."""
    ids = data.characters()
    train, test = batches(ids[:1280, :-1], ids[:1280, 1:], size=32), ids[-200:]
    cosine = lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 6e-3, total_steps=160)  # noqa: E731
    adam = partial(torch.optim.AdamW, lr=6e-3, betas=(0.9, 0.95), weight_decay=0.1)
    given = {"optimizer": adam, "scheduler": cosine, "scheduler_step": "step", "epochs": 4}
    given["eval_data"] = batches(test[:, :-1], test[:, 1:], size=100)
    return recipe(Tied, train_data=train, clip_grad_norm=1.0, **given)
