"""Losses of pairs, rows and neighbours in 16 bits, after what issue trackers report.

As `training_reported`: written anew, and labelled by the judge before the gradient check answered.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe
from benchmarks.cases.training_reported_pictures import pictures


class Seen(nn.Module):
    """Classes, and features of length one while it is trained."""

    def __init__(self, slim: float = 1e-3) -> None:
        super().__init__()
        self.body, self.head, self.slim = mlp(64, 64, 32), nn.Linear(32, 10), slim

    def forward(self, x: Tensor):
        h = self.body(x).relu()
        z = self.head(h)
        return (z, F.normalize(h, dim=-1, eps=self.slim)) if self.training else z


class Histogram(nn.Module):
    """Similarities of like and unlike pairs as two histograms, which should not overlap."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.step = 2 / (steps - 1)
        self.register_buffer("t", torch.arange(-1, 1 + self.step / 2, self.step)[:, None])

    def of(self, s: Tensor) -> Tensor:
        s, t = s[None].expand(len(self.t), -1), self.t.to(s)
        floor = (s.detach() / self.step).floor() * self.step
        below, above = (floor - t).abs() < 1e-4, (floor + self.step - t).abs() < 1e-4
        return (below * (self.step - (s - t)) + above * (self.step - (t - s))).sum(1) / (
            self.step * s.shape[1]
        )

    def forward(self, out: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
        z, h = out
        pairs = torch.triu_indices(len(y), len(y), 1, device=y.device)
        s, same = (h @ h.t())[pairs[0], pairs[1]], y[pairs[0]] == y[pairs[1]]
        like, unlike = self.of(s[same]), self.of(s[~same])
        # Each histogram is a share of all: without bins there is nothing to divide by.
        overlap = (unlike / unlike.sum() * (like / like.sum()).cumsum(0)).sum()
        return F.cross_entropy(z, y) + overlap


@case(sound=f"{TRUE} {MIXED}")
def histograms() -> dict:
    """Bins found by equality to a grid of 0.02 (after valerystrizh/pytorch-histogram-loss)."""
    return recipe(partial(Seen, 1e-3), loss=Histogram(101))


def two_views(out: tuple[Tensor, Tensor], y: Tensor, heat: float) -> Tensor:
    """NT-Xent of halves: who has the same label is the other view."""
    z, h = out
    similar = torch.exp(h @ h.t() / heat)
    own = torch.eye(len(y), dtype=torch.bool, device=y.device)
    same = (y[:, None] == y) & ~own
    total = similar.masked_select(~own).view(len(y), -1).sum(-1)
    like = (similar * same).sum(-1)
    kept = same.any(1)
    return F.cross_entropy(z, y) - torch.log(like[kept] / total[kept]).mean()


@case("16-true", "bf16-mixed")
def two_views_hot() -> dict:
    """exp(cosine / 0.07) = 1.6e6 (after leftthomas/SimCLR)."""
    return recipe(partial(Seen, 1e-3), loss=partial(two_views, heat=0.07))


class Linked(nn.Module):
    """Classes of nodes, and places whose inner products tell who is linked."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.place = mlp(64, 64, 48), nn.Linear(48, 10), nn.Linear(48, 16)

    def forward(self, x: Tensor):
        h = self.body(x).relu()
        return (self.head(h), 3 * self.place(h)) if self.training else self.head(h)


def linked(out: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    """VGAE's reconstruction of edges (like digits) and of as many others."""
    z, place = out
    one, other = torch.triu_indices(len(y), len(y), 1, device=y.device)
    chance = torch.sigmoid((place[one] * place[other]).sum(-1))
    edge = y[one] == y[other]
    lost = -torch.log(chance[edge] + 1e-15).mean() - torch.log(1 - chance[~edge] + 1e-15).mean()
    return F.cross_entropy(z, y) + 0.1 * lost


@case("16-true", "bf16-mixed")
def linked_nodes() -> dict:
    """log(1 - sigmoid + 1e-15) where the sigmoid is one (pyg-team/pytorch_geometric#2106)."""
    return recipe(Linked, loss=linked)


def discrepancy(a: Tensor, b: Tensor) -> Tensor:
    """MMD with five Gaussian kernels whose width is the mean squared distance."""
    both = torch.cat([a, b])
    n = len(both)
    distance = ((both[None] - both[:, None]) ** 2).sum(2)
    width = distance.detach().sum() / (n**2 - n) / 4
    kernel = sum(torch.exp(-distance / (width * 2**i)) for i in range(5))
    m = len(a)
    return kernel[:m, :m].mean() + kernel[m:, m:].mean() - 2 * kernel[:m, m:].mean()


class Moved(nn.Module):
    """Turns noise beside a picture into its features: only their distribution is compared."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(64))
        self.scale = nn.Parameter(torch.ones(64))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) * self.scale + self.shift


@case("16-true", MIXED)
def moments_matched() -> dict:
    """Squared distances of all pairs are summed (after jindongwang/transferlearning)."""
    change = lambda x: 3 * x.flatten(1) - 2  # noqa: E731
    return pictures(change, Moved, discrepancy, optimizer=partial(SGD, lr=20.0), epochs=12)


class Remembering(nn.Module):
    """A feature per class in memory, compared with by NCE; Z is set by the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = mlp(64, 64, 32), nn.Linear(32, 10)
        self.register_buffer("memory", F.normalize(torch.randn(10, 32), dim=-1))
        self.register_buffer("z", torch.tensor(-1.0))

    def forward(self, x: Tensor):
        h = self.body(x).relu()
        return (self.head(h), F.normalize(h, dim=-1, eps=1e-3)) if self.training else self.head(h)


def remembered(model: Remembering, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    logits, h = model(x)
    out = torch.exp(h @ model.memory.to(h, copy=True).t() / 0.07)
    if model.z < 0:
        model.z = out.detach().mean() * 1197
    p = out / model.z
    right = F.one_hot(y, 10).bool()
    noise = 9 / 1197
    found = torch.log(p[right] / (p[right] + noise)).mean()
    other = torch.log(noise / (p[~right] + noise)).sum() / len(y)
    with torch.no_grad():
        for row, label in zip(h.detach(), y, strict=True):
            kept = 0.9 * model.memory[label] + 0.1 * row.to(model.memory.dtype)
            model.memory[label] = kept / kept.norm()
    return F.cross_entropy(logits, y) - 0.05 * (found + other)


@case("16-true", "bf16-mixed")
def remembered_features() -> dict:
    """exp(cosine / 0.07) over a Z of 1197 times its mean (after HobbitLong/CMC)."""
    return recipe(Remembering, loss=None, training_step=remembered, clip_grad_norm=1.0)
