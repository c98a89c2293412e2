"""Likenesses, landmarks, histories, wings and pairs in 16 bits, after what issue trackers report.

As `training_reported`: written anew, labelled before the check answered, and asked of the judge.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, TRUE, case, mlp, recipe
from benchmarks.data import batches

ADAM = partial(torch.optim.Adam, lr=3e-3, eps=1e-4)

# Likenesses ---------------------------------------------------------------------------------------


class Placed(nn.Module):
    """Classes, and in training the features of length one that they are told from."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = mlp(64, 64, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Any:
        h = F.normalize(self.body(x), dim=1)
        return (self.head(h), h) if self.training else self.head(h)


def multi_similarity(h: Tensor, y: Tensor, up: float = 2.0, down: float = 40.0) -> Tensor:
    """Pairs that are hard for each anchor, through log(1 + Σ exp)."""
    sim, losses = torch.matmul(h, h.t()), []
    for i in range(len(h)):
        near = sim[i][y == y[i]]
        near, far = near[near < 1 - 1e-5], sim[i][y != y[i]]
        if len(near) == 0 or len(far) == 0:
            continue
        hard = far[far + 0.1 > min(near)]
        near = near[near - 0.1 < max(far)]
        if len(hard) < 1 or len(near) < 1:
            continue
        pull = 1.0 / up * torch.log(1 + torch.sum(torch.exp(-up * (near - 0.5))))
        push = 1.0 / down * torch.log(1 + torch.sum(torch.exp(down * (hard - 0.5))))
        losses.append(pull + push)
    return sum(losses) / len(h) if losses else h.sum() * 0


@case("16-true", "bf16-true bf16-mixed")
def similar_pairs() -> dict:
    """exp(40 (cos - 0.5)) is 10⁸ (after msight-tech/research-ms-loss)."""
    (x, y), _ = data.digits()
    loss = lambda out, y: F.cross_entropy(4 * out[0], y) + 0.2 * multi_similarity(out[1], y)  # noqa: E731
    given = {"train_data": batches(x[:640], y[:640], size=32), "epochs": 4}
    return recipe(Placed, loss=loss, optimizer=partial(ADAM, lr=1e-2), **given)


def contextual(a: Tensor, b: Tensor, eps: float) -> Tensor:
    """How alike two pictures are, patch by patch, wherever the patches lie."""
    a, b = (F.unfold(t, 3, padding=1) for t in (a, b))
    mean = b.mean(dim=(0, 2), keepdim=True)
    a, b = (F.normalize(t - mean, dim=1, eps=1e-4) for t in (a, b))
    far = 1 - torch.bmm(a.transpose(1, 2), b)
    far = far.clamp(min=0)
    relative = far / (far.min(dim=2, keepdim=True)[0] + eps)
    w = torch.exp((1 - relative) / 0.5)
    alike = w / w.sum(dim=2, keepdim=True)
    return -torch.log(alike.max(dim=1)[0].mean(dim=1) + eps).mean()


class Cleaned(nn.Module):
    """A small network that takes noise away from pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 3, padding=1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def likeness(eps: float) -> dict:
    (x, _), (a, _) = data.digits()
    random = torch.Generator().manual_seed(0)
    noisy = lambda x: x + 0.3 * torch.randn(x.shape, generator=random)  # noqa: E731
    x, a = x[:640], a[:200]
    loss = lambda z, t: F.mse_loss(z, t) + 0.02 * contextual(z, t, eps)  # noqa: E731
    train, test = batches(noisy(x), x, size=32), batches(noisy(a), a, size=100)
    given = {"task": "regression", "loss": loss, "optimizer": ADAM, "epochs": 8}
    return recipe(Cleaned, train_data=train, eval_data=test, **given)


@case("16-true bf16-true 16-mixed")
def contextual_likeness() -> dict:
    """d / (min d + 1e-5) of patches that are the same (after S-aiueo32/contextual_loss_pytorch)."""
    return likeness(1e-5)


@case("16-true", f"bf16-true {MIXED}")
def contextual_likeness_apart() -> dict:
    """The same with 1e-2; Adam's second moments are lost in float16, without this loss, too."""
    return likeness(1e-2)


# Attention ----------------------------------------------------------------------------------------


def pseudo_inverse(x: Tensor, steps: int = 6) -> Tensor:
    """Moore and Penrose's, by steps of third order."""
    size = torch.abs(x)
    z = x.transpose(-1, -2) / (torch.max(size.sum(-1)) * torch.max(size.sum(-2)))
    one = torch.eye(x.shape[-1], device=x.device).unsqueeze(0)
    for _ in range(steps):
        xz = x @ z
        z = 0.25 * z @ (13 * one - (xz @ (15 * one - (xz @ (7 * one - xz)))))
    return z


class Landmarks(nn.Module):
    """Attention of 16 strips of pixels through the means of four groups of them."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.place = nn.Linear(4, 32), nn.Parameter(torch.randn(16, 32) * 0.5)
        self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.head = mlp(32, 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x.reshape(-1, 16, 4)) + self.place
        q, k, v = self.qkv(self.norm(h)).chunk(3, -1)
        q = q * 32**-0.5
        ql, kl = (t.view(len(t), 4, 4, 32).mean(2) for t in (q, k))
        one = (q @ kl.transpose(1, 2)).softmax(-1)
        two = (ql @ kl.transpose(1, 2)).softmax(-1)
        three = (ql @ k.transpose(1, 2)).softmax(-1)
        out = (one @ pseudo_inverse(two).to(v.dtype)) @ (three @ v)
        return self.head((h + self.out(out)).mean(1))


@case(TRUE, MIXED)
def landmarks() -> dict:
    """An identity in float32 meets weights in 16 bits (after lucidrains/nystrom-attention)."""
    return recipe(Landmarks, optimizer=partial(ADAM, lr=1e-2), epochs=14)


class History(nn.Module):
    """Attention over what came before; a place of padding sees nothing."""

    def __init__(self, filled: str) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(1200, 32, padding_idx=0), nn.Embedding(24, 32)
        self.norm, self.qkv, self.head = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 8)
        self.filled = filled

    def forward(self, ids: Tensor) -> Tensor:
        steps = torch.arange(ids.shape[1], device=ids.device)
        h = self.words(ids) * 32**0.5 + self.places(steps)
        q, k, v = self.qkv(self.norm(h)).chunk(3, -1)
        scores = q @ k.transpose(1, 2) / 32**0.5
        nothing = (ids == 0).unsqueeze(-1).expand(-1, -1, ids.shape[1])
        later = (steps[:, None] < steps[None, :]).expand(len(ids), -1, -1)
        if self.filled == "float32":
            padding = torch.ones(scores.shape, device=ids.device) * (-(2**32) + 1)
        else:
            padding = torch.ones_like(scores) * (-(2**32) + 1)
        scores = torch.where(nothing, padding, scores)
        scores = torch.where(later, padding, scores)
        h = h + scores.softmax(-1) @ v
        return self.head((h * (ids != 0).unsqueeze(-1)).mean(1))


def history(filled: str) -> dict:
    (x, y), (a, b) = data.text_split()
    left = lambda ids: torch.stack([torch.cat([r[r == 0], r[r != 0]]) for r in ids])  # noqa: E731
    train, test = batches(left(x), y, size=64), batches(left(a), b, size=200)
    given = {"optimizer": partial(ADAM, lr=1e-2), "epochs": 12}
    return recipe(partial(History, filled), train_data=train, eval_data=test, **given)


@case(TRUE, MIXED)
def padded_history() -> dict:
    """torch.where of float32 and scores, before a product (after JiachengLi1995/TiSASRec)."""
    return history("float32")


@case("16-true 16-mixed", "bf16-mixed")
def padded_history_alike() -> dict:
    """-2³² + 1 in the scores' type, which is -inf in whole rows (after kang205/SASRec's ports)."""
    return history("scores")


# Wings and pairs ----------------------------------------------------------------------------------


@case("16-true", f"bf16-true {MIXED}")
def adaptive_wings() -> dict:
    """14 log(1 + d^(2.1 - y)), and Adam in float16 (after protossw512/AdaptiveWingLoss)."""
    (x, _), (a, _) = data.digits()

    def bump(x: Tensor) -> Tensor:
        i, j = torch.arange(8)[None, :, None], torch.arange(8)[None, None, :]
        ink = x.squeeze(1) / x.sum((1, 2, 3))[:, None, None]
        row, column = (ink * i).sum((1, 2), True), (ink * j).sum((1, 2), True)
        return torch.exp(-((i - row) ** 2 + (j - column) ** 2) / 3.0).flatten(1)

    def loss(z: Tensor, y: Tensor) -> Tensor:
        omega, theta, epsilon, alpha = 14, 0.5, 1, 2.1
        p, delta = alpha - y, (y - z).abs()
        a = omega * (1 / (1 + (theta / epsilon) ** p)) * p * ((theta / epsilon) ** (p - 1))
        c = theta * a - omega * torch.log(1 + (theta / epsilon) ** p)
        near = omega * torch.log(1 + (delta / epsilon) ** p)
        return torch.where(delta < theta, near, a * delta - c).mean()

    train, test = batches(x, bump(x), size=64), batches(a, bump(a), size=200)
    given = {"task": "regression", "loss": loss, "optimizer": ADAM, "epochs": 15}
    return recipe(partial(mlp, 64, 96, 64), train_data=train, eval_data=test, **given)


class Siamese(nn.Module):
    """How much nearer than a half two pictures are."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(64, 64, 16)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        d = F.pairwise_distance(self.body(a), self.body(b), keepdim=True)
        return d if self.training else 0.5 - d


@case("16-true", f"bf16-true {MIXED}")
def siamese_pairs() -> dict:
    """A contrastive loss, some pairs one picture, and Adam in float16 (after PyTorch's forum)."""
    (x, y), (a, b) = data.digits()

    def pairs(x: Tensor, y: Tensor) -> tuple:
        random = torch.Generator().manual_seed(0)
        other = torch.randint(0, len(y), (len(y),), generator=random)
        for i in range(0, len(y), 2):
            like = (y == y[i]).nonzero().flatten()
            other[i] = like[int(torch.randint(0, len(like), (1,), generator=random))]
        other[::16] = torch.arange(len(y))[::16]
        return x, x[other], (y == y[other]).float().unsqueeze(1)

    def loss(d: Tensor, same: Tensor) -> Tensor:
        return torch.mean(same * d.pow(2) + (1 - same) * torch.clamp(1.0 - d, min=0.0).pow(2))

    train, test = batches(*pairs(x, y), size=64), batches(*pairs(a, b), size=200)
    given = {"task": "multilabel", "loss": loss, "optimizer": ADAM, "epochs": 15}
    return recipe(Siamese, train_data=train, eval_data=test, **given)
