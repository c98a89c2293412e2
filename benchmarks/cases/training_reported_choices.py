"""Choices, orders and risks in 16 bits, after what issue trackers report.

As `training_reported`: written anew, labelled before the check answered, and asked of the judge.
Written after what `training_reported_rest` and its siblings had shown was mended.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe
from benchmarks.cases.training_reported_pictures import pictures
from benchmarks.data import batches


def ordered(eps: float):
    """ListMLE: the right class first, then the others by how far from it they are."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        order = (torch.arange(10, device=z.device) - y[:, None]).abs().argsort(-1)
        scores = z.gather(-1, order)
        scores = scores - scores.max(-1, keepdim=True).values
        rest = scores.exp().flip(-1).cumsum(-1).flip(-1)
        return ((rest + eps).log() - scores)[:, :3].sum(-1).mean()

    return loss


def pairwise(z: Tensor, y: Tensor) -> Tensor:
    """BPR of the right class against one drawn at random."""
    other = (y + torch.randint(1, 10, y.shape, device=y.device)) % 10
    right, wrong = (z.gather(-1, i[:, None]) for i in (y, other))
    return -(torch.sigmoid(right - wrong) + 1e-10).log().mean()


@case(sound=f"{TRUE} {MIXED}")
def ranked_pairs() -> dict:
    """log(sigmoid + 1e-10) of pairs that never get 17 apart (after RUCAIBox/RecBole)."""
    return recipe(scale=30.0, loss=pairwise, optimizer=partial(SGD, lr=0.01))


@case("16-true", "bf16-true bf16-mixed")
def ranked_lists() -> dict:
    """log(Σ exp + 1e-10) of what is left of a list (after allegro/allRank)."""
    return recipe(scale=30.0, loss=ordered(1e-10), optimizer=partial(SGD, lr=0.001))


@case(sound=f"{TRUE} {MIXED}")
def ranked_lists_safe() -> dict:
    """The same with 1e-4, of pixels up to one."""
    return recipe(loss=ordered(1e-4), optimizer=partial(SGD, lr=0.05))


class Prototypes(nn.Module):
    """Squared distances to a prototype of each class, by `torch.cdist` or by squares."""

    def __init__(self, kernel: bool) -> None:
        super().__init__()
        self.body, self.kinds, self.kernel = (
            mlp(64, 64, 16),
            nn.Parameter(torch.randn(10, 16)),
            kernel,
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        if self.kernel:
            return -torch.cdist(h, self.kinds).square()
        return 2 * h @ self.kinds.T - h.square().sum(-1, keepdim=True) - self.kinds.square().sum(-1)


@case(sound=f"{TRUE} {MIXED}")
def prototypes() -> dict:
    """torch.cdist, a product where there are many (after jakesnell/prototypical-networks)."""
    return recipe(partial(Prototypes, True), optimizer=partial(SGD, lr=0.02))


@case(sound=f"{TRUE} {MIXED}")
def prototypes_by_squares() -> dict:
    """The same as 2ab - a² - b²."""
    return recipe(partial(Prototypes, False), optimizer=partial(SGD, lr=0.02))


@case("16-true", "bf16-true bf16-mixed")
def swapped_codes() -> dict:
    """SwAV's exp(cosine / 0.05) before Sinkhorn's steps (after facebookresearch/swav)."""
    return recipe(Swapped, loss=None, training_step=partial(swap, wide=False), epochs=15)


@case(sound=f"{TRUE} {MIXED}")
def swapped_codes_safe() -> dict:
    """The same in float32."""
    return recipe(Swapped, loss=None, training_step=partial(swap, wide=True), epochs=15)


class Swapped(nn.Module):
    """Logits, and cosines to sixteen prototypes while training."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = mlp(64, 64, 32), nn.Linear(32, 10)
        self.kinds = nn.Linear(32, 16, bias=False)

    def forward(self, x: Tensor):
        h = self.body(x)
        z = self.head(h)
        unit = F.normalize(h, dim=-1), F.normalize(self.kinds.weight, dim=-1)
        return (z, F.linear(*unit)) if self.training else z


def swap(model: nn.Module, batch: tuple[Tensor, Tensor], wide: bool) -> Tensor:
    x, y = batch
    views = [model(x + 0.1 * torch.randn_like(x)) for _ in range(2)]
    loss = sum(F.cross_entropy(z, y) for z, _ in views)
    for (_, from_), (_, to) in (views, views[::-1]):
        with torch.no_grad():
            codes = ((from_.float() if wide else from_) / 0.05).exp()
            for _ in range(3):
                codes = codes / codes.sum(0, keepdim=True) / 16
                codes = codes / codes.sum(1, keepdim=True) / len(x)
            codes = codes * len(x)
        loss = loss - 0.1 * (codes * (to / 0.1).log_softmax(-1)).sum(-1).mean()
    return loss


@case("16-true", "bf16-true bf16-mixed")
def earth_movers() -> dict:
    """√(d² + 1e-8) of two sums that become the same (after titu1994/neural-image-assessment)."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        moved = z.softmax(-1).cumsum(-1) - F.one_hot(y, 10).to(z.dtype).cumsum(-1)
        return (moved.square().mean(-1) + 1e-8).sqrt().mean()

    return recipe(loss=loss, scale=2.0, epochs=25, optimizer=partial(SGD, lr=0.1))


@case(TRUE, MIXED)
def class_weights() -> dict:
    """Weights of classes stay in float32 (NVIDIA/apex#837)."""
    weights = torch.linspace(0.5, 1.5, 10)
    return recipe(loss=nn.CrossEntropyLoss(weight=weights, label_smoothing=0.1))


@case(sound=f"{TRUE} {MIXED}")
def positive_weights() -> dict:
    """Weights of positives in float32 promote what they meet (after pytorch/pytorch#101213)."""
    (x, _), (a, _) = data.digits()
    lit = lambda x: (x.flatten(1) > 0.5).float()  # noqa: E731
    train, test = batches(x, lit(x), size=64), batches(a, lit(a), size=200)
    loss = nn.BCEWithLogitsLoss(pos_weight=torch.full((64,), 2.0))
    given = {"task": "multilabel", "train_data": train, "eval_data": test, "loss": loss}
    return recipe(lambda: mlp(64, 64, 64), **given)


@case(sound=f"{TRUE} {MIXED}")
def symmetric_entropy() -> dict:
    """Probabilities of at least 1e-7, and labels of at least 1e-4 (after HanxunH/SCELoss)."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        p = z.softmax(-1).clamp(min=1e-7, max=1.0)
        t = F.one_hot(y, 10).to(z.dtype).clamp(min=1e-4, max=1.0)
        return F.cross_entropy(z, y) - 0.1 * (p * t.log()).sum(-1).mean()

    return recipe(loss=loss, epochs=20)


@case(sound=f"{TRUE} {MIXED}")
def evidence() -> dict:
    """Σ exp of up to 10, of which one class has all (after Cogito2012/DEAR#1)."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        alpha = z.clamp(-10, 10).exp() + 1
        total = alpha.sum(-1, keepdim=True)
        t = F.one_hot(y, 10).to(z.dtype)
        return (t * (total.log() - alpha.log())).sum(-1).mean()

    return recipe(loss=loss, scale=16.0, optimizer=partial(SGD, lr=0.01), epochs=20)


def risks(both) -> dict:
    """The amount of ink as a risk; who has most goes first."""

    def loss(z: Tensor, t: Tensor) -> Tensor:
        risk = z.squeeze(-1)[t.squeeze(-1).argsort()]
        return (both(risk) - risk).mean() + 4 * F.mse_loss(z, t)

    ink = lambda x: (x.mean((1, 2, 3)) * 8 - 2.4)[:, None]  # noqa: E731
    return pictures(ink, lambda: mlp(64, 64, 1), loss, optimizer=partial(SGD, lr=0.02))


@case(sound=f"{TRUE} {MIXED}")
def cox_in_one_call() -> dict:
    """logcumsumexp, whose slope float16 had not always (KatherLab/MediSwarm#438)."""
    return risks(lambda risk: torch.logcumsumexp(risk, 0))


@case(sound=f"{TRUE} {MIXED}")
def cox_by_hand() -> dict:
    """Cox's likelihood with 1e-7 inside the logarithm (havakv/pycox#147)."""

    def both(risk: Tensor) -> Tensor:
        most = risk.max()
        return (risk - most).exp().cumsum(0).add(1e-7).log() + most

    return risks(both)
