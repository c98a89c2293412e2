"""Pairs, margins, triplets and hyperbolic distances in 16 bits, after what issue trackers report.

As `training_reported`: written anew, labelled before the check answered, and asked of the judge.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe
from benchmarks.data import batches

ADAM = partial(torch.optim.Adam, lr=3e-3, eps=1e-4)

# Pairs --------------------------------------------------------------------------------------------


class Towers(nn.Module):
    """A picture and a class, each as a long vector; their cosines once trained."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.names = mlp(64, 64, 256), nn.Embedding(10, 256)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return h if self.training else 10 * F.cosine_similarity(h[:, None], self.names.weight, -1)


@case("16-true", f"bf16-true {MIXED}")
def long_pairs() -> dict:
    """F.cosine_embedding_loss multiplies both squared lengths (after pytorch/pytorch#69512)."""
    (x, y), (a, b) = data.digits()
    random = torch.Generator().manual_seed(0)
    x, y = x.repeat(3, 1, 1, 1), y.repeat(3)
    asked = torch.where(torch.rand(y.shape, generator=random) < 0.4, y, (y + 1 + y % 7) % 10)
    seen = torch.stack([asked, 2 * (asked == y).long() - 1], 1)

    def step(model: nn.Module, batch: tuple) -> Tensor:
        x, seen = batch
        return F.cosine_embedding_loss(model(x), model.names(seen[:, 0]), seen[:, 1], margin=0.2)

    train, test = batches(16 * x, seen, size=64), batches(16 * a, b, size=200)
    given = {"train_data": train, "eval_data": test, "training_step": step, "loss": None}
    return recipe(Towers, optimizer=ADAM, **given)


# Margins ------------------------------------------------------------------------------------------


@case("16-true", f"bf16-true {MIXED}")
def soft_margins() -> dict:
    """F.soft_margin_loss is log1p(exp(-tz)), by parts (after pytorch/pytorch's Loss.cpp)."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return F.soft_margin_loss(z, 2 * F.one_hot(y, 10).to(z.dtype) - 1)

    return recipe(loss=loss, scale=64.0, optimizer=partial(SGD, lr=3e-3))


class Judged(nn.Module):
    """Classes, and in training the features that they are told from."""

    def __init__(self, features: int = 32) -> None:
        super().__init__()
        self.body, self.head = mlp(64, 64, features), nn.Linear(features, 10)

    def forward(self, x: Tensor) -> Any:
        h = self.body(x)
        return (self.head(h), h) if self.training else self.head(h)


def triplets(soft: Callable[[Tensor], Tensor]) -> dict:
    """The farthest of the same class should be nearer than the nearest of another."""

    def loss(out: Any, y: Tensor) -> Tensor:
        told, h = out
        far = (h[:, None] - h).square().sum(-1)
        same = y[:, None] == y
        positive = far.masked_fill(~same, 0).amax(1)
        negative = far.masked_fill(same, torch.finfo(far.dtype).max).amin(1)
        return F.cross_entropy(told, y) + 0.1 * soft(positive - negative).mean()

    return recipe(Judged, loss=loss, scale=8.0, optimizer=partial(SGD, lr=3e-3))


@case("16-true", "bf16-true bf16-mixed")
def hard_triplets() -> dict:
    """log1p(exp(d - d')) of the hardest (before huggingface/sentence-transformers#4019)."""
    return triplets(lambda d: torch.log1p(torch.exp(d)))


@case(sound=f"{TRUE} {MIXED}")
def hard_triplets_softly() -> dict:
    """The same by softplus (huggingface/sentence-transformers#4019)."""
    return triplets(F.softplus)


@case(sound=f"{TRUE} {MIXED}")
def ordered_pairs() -> dict:
    """CoSENT: who is in no order is put off by 1e12 (after huggingface/sentence-transformers)."""

    def loss(out: Any, y: Tensor) -> Tensor:
        told, h = out
        one, other = F.normalize(h, eps=1e-4).chunk(2)
        score, near = 20 * (one * other).sum(-1), -(y.chunk(2)[0] - y.chunk(2)[1]).abs()
        score = score[:, None] - score
        off = (near[:, None] >= near).to(score.dtype)
        score = (score - off * 1e12).flatten()
        score = torch.cat([torch.zeros(1, dtype=score.dtype, device=score.device), score])
        return F.cross_entropy(told, y) + 0.1 * torch.logsumexp(score, 0)

    (x, y), _ = data.digits()
    train = batches(x[:1152], y[:1152], size=64)
    return recipe(Judged, loss=loss, train_data=train, optimizer=ADAM, epochs=20)


# Distances ----------------------------------------------------------------------------------------


def hyperbolic(x: Tensor, y: Tensor) -> Tensor:
    """Distances of all pairs on the hyperboloid, by what of them is in space."""
    x_time = torch.sqrt(1 + x.pow(2).sum(-1, keepdim=True))
    y_time = torch.sqrt(1 + y.pow(2).sum(-1, keepdim=True))
    inner = x @ y.T - x_time @ y_time.T
    return torch.acosh(torch.clamp(-inner, min=1 + 1e-7))


def hyperbolic_in_float32(x: Tensor, y: Tensor) -> Tensor:
    """The same wherever it is called."""
    with torch.autocast(x.device.type, enabled=False):
        return hyperbolic(x.float(), y.float())


class Hyperboloid(nn.Module):
    """The nearest of ten points, all of which start near the origin."""

    def __init__(self, distance: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.names = mlp(64, 64, 64), nn.Embedding(10, 16)
        self.place = nn.Linear(64, 16)
        for part in (self.place, self.names):
            nn.init.normal_(part.weight, std=0.02)
        self.distance = distance

    def forward(self, x: Tensor) -> Tensor:
        return -10 * self.distance(self.place(self.body(x).relu()), self.names.weight)


@case("bf16-true bf16-mixed")
def near_on_a_hyperboloid() -> dict:
    """acosh of at least 1 + 1e-7, which is one (after facebookresearch/meru's lorentz.py)."""
    return recipe(partial(Hyperboloid, hyperbolic), optimizer=ADAM)


@case(sound=f"{TRUE} {MIXED}")
def near_on_a_hyperboloid_widely() -> dict:
    """The same in float32 without autocast, as that repository calls it."""
    return recipe(partial(Hyperboloid, hyperbolic_in_float32), optimizer=ADAM)
