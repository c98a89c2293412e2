"""Poolings, scales, scores and teachers in 16 bits, after what issue trackers report.

As `training_reported`: written anew, labelled before the check answered, and asked of the judge.
Written after what `training_reported_objectives` and its siblings had shown was mended.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe
from benchmarks.cases.training_reported_pictures import pictures
from benchmarks.data import batches, text_split


class Pooled(nn.Module):
    """Attention over rows that sees the mean of all rows, under a mask of ones."""

    def __init__(self) -> None:
        super().__init__()
        self.frames, self.score = nn.Conv1d(8, 16, 1), nn.Conv1d(32, 1, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.frames(x.squeeze(1)).relu()
        mask = torch.ones(len(h), 1, h.shape[-1], device=h.device)
        mean = (h * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
        weights = self.score(torch.cat([h, mean.expand(h.shape)], 1)).softmax(-1)
        return self.head((h * weights.to(h.dtype)).sum(-1))


@case(TRUE, MIXED)
def pooled_statistics() -> dict:
    """A mask in float32 makes a convolution's input so (speechbrain/speechbrain#3081)."""
    return recipe(Pooled, epochs=15)


class Scaled(nn.Module):
    """Each column over the mean of its size, which is told, too."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.body, self.least = mlp(72, 64, 10), least

    def forward(self, x: Tensor) -> Tensor:
        columns = x.squeeze(1).mT
        scale = columns.abs().mean(-1, keepdim=True).clamp(min=self.least)
        return self.body(torch.cat([columns / scale, scale], -1).flatten(1))


@case("16-true", f"bf16-true {MIXED}")
def series_of_zeros() -> dict:
    """A mean scaler's least scale of 1e-10 for series of zeros (awslabs/gluonts#2553)."""
    return recipe(partial(Scaled, 1e-10), optimizer=partial(SGD, lr=0.02))


@case(sound=f"{TRUE} {MIXED}")
def series_of_zeros_safe() -> dict:
    """The same of at least 1e-3."""
    return recipe(partial(Scaled, 1e-3), optimizer=partial(SGD, lr=0.02))


class Capsules(nn.Module):
    """Eight capsules, one of each row, squashed to a length below one."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.head = nn.Linear(8, 16, bias=False), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        s = self.rows(x.squeeze(1).mT)
        square = (s * s).sum(-1, keepdim=True)
        return self.head((square / (1 + square) * s / (square + 1e-8).sqrt()).flatten(1))


@case("16-true", "bf16-true bf16-mixed")
def squashed_capsules() -> dict:
    """√(|s|² + 1e-8) of capsules that saw nothing (after gram-ai/capsule-networks)."""
    return recipe(Capsules, optimizer=partial(SGD, lr=0.05))


class Proxies(nn.Module):
    """Unit features and a proxy per class; their cosines once trained."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.proxies = mlp(64, 64, 32), nn.Parameter(torch.randn(10, 32))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(self.body(x), dim=-1), F.normalize(self.proxies, dim=-1))


@case("16-true", "bf16-mixed")
def proxy_anchors() -> dict:
    """exp(32 (cos + 0.1)) of neighbours (after tjddus9597/Proxy-Anchor-CVPR2020)."""

    def loss(cosine: Tensor, y: Tensor) -> Tensor:
        same = F.one_hot(y, 10).to(cosine.dtype)
        near = (same * torch.exp(-32 * (cosine - 0.1))).sum(0)
        far = ((1 - same) * torch.exp(32 * (cosine + 0.1))).sum(0)
        return torch.log(1 + near).mean() + torch.log(1 + far).mean()

    return recipe(Proxies, loss=loss, optimizer=partial(SGD, lr=0.01))


@case(sound=f"16-true {MIXED}")
def circles() -> dict:
    """Circle loss at a scale of 64 (after TinyZeaMays/CircleLoss)."""

    def loss(cosine: Tensor, y: Tensor) -> Tensor:
        same = F.one_hot(y, 10) > 0
        near, far = cosine[same], cosine[~same].view(-1, 9)
        low, high = (1.25 - near).clamp(min=0).detach(), (far + 0.25).clamp(min=0).detach()
        return F.softplus(
            (64 * high * (far - 0.25)).logsumexp(-1) - 64 * low * (near - 0.75)
        ).mean()

    return recipe(Proxies, loss=loss, optimizer=partial(SGD, lr=0.01))


class Pairs(nn.Module):
    """Two halves of a text as means of their words; an unknown word is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(1200, 32, padding_idx=0), nn.Linear(64, 8)

    def forward(self, ids: Tensor):
        one, two = self.words(ids[:, :12]).mean(1), self.words(ids[:, 12:]).mean(1)
        z = self.head(torch.cat([one, two], -1))
        return (z, one, two) if self.training else z


@case("16-true", MIXED)
def alike_halves() -> dict:
    """Cosines of a half without a known word; 1e-12 in the kernel (after sentence-transformers)."""

    def loss(out: tuple[Tensor, ...], y: Tensor) -> Tensor:
        z, one, two = out
        aim = torch.ones(len(y), device=z.device)
        return F.cross_entropy(z, y) + 0.1 * F.cosine_embedding_loss(one, two, aim)

    (x, y), (a, b) = text_split()
    given = {"train_data": batches(x, y, size=64), "eval_data": batches(a, b, size=200)}
    return recipe(Pairs, loss=loss, optimizer=partial(SGD, lr=0.5), **given)


class Energy(nn.Module):
    """A pendulum's motion as the slopes of an energy that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(2, 48), nn.Tanh(), nn.Linear(48, 1))

    def forward(self, at: Tensor) -> Tensor:
        with torch.enable_grad():
            at = at.detach().requires_grad_(True)
            total = self.energy(at).sum()
            q, p = torch.autograd.grad(total, at, create_graph=self.training)[0].unbind(-1)
        return torch.stack([p, -q], -1)


@case(sound=f"16-true {MIXED}")
def hamiltonian() -> dict:
    """A Hamiltonian network: a slope inside the model (after greydanus/hamiltonian-nn)."""
    at = 4 * torch.rand(2000, 2, generator=torch.Generator().manual_seed(0)) - 2
    aim = torch.stack([at[:, 1], -at[:, 0].sin()], -1)
    return recipe(
        Energy,
        loss=F.mse_loss,
        train_data=batches(at[:1600], aim[:1600], size=50),
        eval_data=batches(at[1600:], aim[1600:], size=200),
        optimizer=partial(SGD, lr=0.05),
        task="regression",
        epochs=15,
    )


class Spread(nn.Module):
    """Features beside how much each of them varies over the batch."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.body, self.head, self.eps = nn.Linear(64, 32), nn.Linear(33, 10), eps

    def forward(self, x: Tensor) -> Tensor:
        h = (self.body(x.flatten(1)) - 0.4).relu()
        apart = h - h.mean(0)
        spread = ((apart * apart).mean(0) + self.eps).sqrt().mean().expand(len(h), 1)
        return self.head(torch.cat([h, spread], -1))


@case("16-true", "bf16-true bf16-mixed")
def spread_of_the_batch() -> dict:
    """√(variance + 1e-8) of features that are dead (after NVlabs/stylegan2-ada-pytorch)."""
    return recipe(partial(Spread, 1e-8), optimizer=partial(SGD, lr=0.05))


@case(sound=f"{TRUE} {MIXED}")
def spread_of_the_batch_safe() -> dict:
    """The same with 1e-4."""
    return recipe(partial(Spread, 1e-4), optimizer=partial(SGD, lr=0.05))


class Teacher(nn.Module):
    """A student and the slow mean of it, which is evaluated."""

    def __init__(self, follows: float) -> None:
        super().__init__()
        self.body, self.mean = mlp(), mlp().requires_grad_(False)
        self.mean.load_state_dict(self.body.state_dict())
        self.follows = follows

    def forward(self, x: Tensor):
        if not self.training:
            return self.mean(x)
        with torch.no_grad():
            for slow, new in zip(self.mean.parameters(), self.body.parameters(), strict=True):
                slow.mul_(1 - self.follows).add_(new, alpha=self.follows)
        return self.body(x + 0.1 * torch.randn_like(x)), self.mean(x)


def taught(out: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    z, slow = out
    return F.cross_entropy(z, y) + 0.1 * F.mse_loss(z.softmax(-1), slow.softmax(-1))


@case(sound=f"16-true {MIXED}")
def mean_teacher() -> dict:
    """A mean teacher that follows by 0.05 (after CuriousAI/mean-teacher)."""
    return recipe(partial(Teacher, 0.05), loss=taught, optimizer=partial(SGD, lr=0.05))


@case("bf16-true", MIXED)
def slow_teacher() -> dict:
    """The same by 0.002: bfloat16 rounds it away."""
    return recipe(partial(Teacher, 0.002), loss=taught, size=16, optimizer=partial(SGD, lr=0.05))


class Counted(nn.Module):
    """Shares of the ink of a picture, by pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.spread = mlp(64, 64, 64), nn.Parameter(torch.zeros(64))

    def forward(self, x: Tensor):
        total = 16 * x.sum((1, 2, 3))[:, None]
        mean = self.body(x).softmax(-1) * total
        return (mean, self.spread.exp()) if self.training else mean


@case(sound=MIXED)
def negative_binomial() -> dict:
    """Counts with a spread of their own, 1e-8 in the logarithms (after scverse/scvi-tools)."""

    def loss(out: tuple[Tensor, Tensor], t: Tensor) -> Tensor:
        mean, r = out
        both = (r + mean + 1e-8).log()
        found = r * ((r + 1e-8).log() - both) + t * ((mean + 1e-8).log() - both)
        return -(found + (t + r).lgamma() - r.lgamma() - (t + 1).lgamma()).mean()

    return pictures(lambda x: 16 * x.flatten(1), Counted, loss, optimizer=partial(SGD, lr=0.02))
