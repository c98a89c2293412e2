"""Losses as they were before a commit that repaired them for 16 bits, and after it.

As `training_reported`: written anew after what the commit changed, labelled before the check
answered, and asked of the judge.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe


class Embedded(nn.Module):
    """Classes, and in training what they are told from."""

    def __init__(self, body: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.head = body or mlp(64, 64, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor):
        h = self.body(x)
        return (self.head(h), h) if self.training else self.head(h)


def apart(out: tuple[Tensor, Tensor], y: Tensor, same_type: bool) -> Tensor:
    """A contrastive loss; who has a distance of zero is helped by 1e-16 under the root."""
    z, h = out
    squares = h.square().sum(1)
    d = squares[:, None] + squares - 2 * h @ h.t()
    d = (d - torch.diag(d.diag())).clamp(0.0)
    zero = (d == 0).to(h.dtype) if same_type else (d == 0).float()
    d = (d + zero * 1e-16).sqrt() * (1.0 - zero)
    like = y[:, None] == y
    pairs = torch.where(like, d, (2.0 - d).relu())
    return F.cross_entropy(z, y) + 0.2 * pairs.mean()


@case(sound=f"{TRUE} bf16-mixed")
def distances_widened() -> dict:
    """A mask in float32 widens them (before KevinMusgrave/pytorch-metric-learning@ee7ca86)."""
    return recipe(Embedded, loss=partial(apart, same_type=False))


@case("16-true 16-mixed", "bf16-true bf16-mixed")
def distances_in_their_type() -> dict:
    """The same with the mask in the embeddings' type, as that commit left it."""
    return recipe(Embedded, loss=partial(apart, same_type=True))


def arc(cosine: Tensor, y: Tensor, cast: bool) -> Tensor:
    """ArcFace, which writes what the right class gets into a copy."""
    right = F.one_hot(y, 10).bool()
    moved = (cosine[right].clamp(-0.95, 0.95).acos() + 0.2).cos()
    logits = cosine.clone()
    logits[right] = moved.to(cosine.dtype) if cast else moved
    return F.cross_entropy(8 * logits, y)


class Cosines(nn.Module):
    """Cosines to a direction per class."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.directions = mlp(64, 64, 16), nn.Parameter(torch.randn(10, 16))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(self.body(x), eps=1e-4), F.normalize(self.directions, eps=1e-4))


@case(sound=TRUE)
def arc_written() -> dict:
    """acos widens under CUDA's autocast (before KevinMusgrave/pytorch-metric-learning@7ed980e)."""
    return recipe(Cosines, loss=partial(arc, cast=False))


@case(sound=f"{TRUE} {MIXED}")
def arc_written_cast() -> dict:
    """The same, cast before it is written."""
    return recipe(Cosines, loss=partial(arc, cast=True))


def focal(z: Tensor, y: Tensor, mended: bool) -> Tensor:
    """kornia's focal loss over all classes, of which one is kept by a factor of one."""
    p = z.softmax(1)
    log = z.log_softmax(1) if mended else (p + 1e-8).log()
    terms = -((1 - p) ** 2) * log
    return (F.one_hot(y, 10).to(z.dtype) * terms).sum(1).mean()


@case("16-true", "bf16-true bf16-mixed")
def focal_of_all() -> dict:
    """0 log(0 + 1e-8) of classes that are ruled out (before kornia/kornia@b8f3411)."""
    return recipe(loss=partial(focal, mended=False), optimizer=partial(SGD, lr=0.3), epochs=15)


@case(sound=f"{TRUE} {MIXED}")
def focal_of_all_by_logs() -> dict:
    """The same by log_softmax."""
    return recipe(loss=partial(focal, mended=True), optimizer=partial(SGD, lr=0.3), epochs=15)


def smoothed(z: Tensor, y: Tensor, mended: bool) -> Tensor:
    """transformers' LabelSmoother: minus the logarithms of all words, summed."""
    log = -z.log_softmax(-1)
    log = log.float() if mended else log
    nll, spread = log.gather(-1, y[:, None]), log.sum(-1, keepdim=True)
    return 0.9 * nll.sum() / len(y) + 0.1 * spread.sum() / (len(y) * z.shape[-1])


@case("16-true", "bf16-true bf16-mixed")
def smoothed_words() -> dict:
    """8192 words: the sum of their logarithms is above 65504 (huggingface/transformers#10674)."""
    wide = partial(mlp, outputs=8192)
    return recipe(wide, loss=partial(smoothed, mended=False), epochs=3)


@case(sound=f"{TRUE} {MIXED}")
def smoothed_words_widened() -> dict:
    """The same, summed in float32."""
    wide = partial(mlp, outputs=8192)
    return recipe(wide, loss=partial(smoothed, mended=True), epochs=3)


class Boxed(nn.Module):
    """Classes, and in training a box as logarithms of its sides, in one slot of two."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(64, 64, 32)
        self.kind, self.sides = nn.Linear(32, 10), nn.Linear(32, 4)

    def forward(self, x: Tensor):
        h = self.body(x).relu()
        return (self.kind(h), self.sides(h).unflatten(1, (2, 2))) if self.training else self.kind(h)


def boxed(model: nn.Module, batch: tuple[Tensor, Tensor], eps: float) -> Tensor:
    """The second slot is padding: a box without sides, whose loss is masked."""
    x, y = batch
    z, sides = model(x)
    ink = x.squeeze(1) > 0.25
    true = torch.stack([ink.any(1).sum(1), ink.any(2).sum(1)], -1).to(x.dtype) / 8
    wanted = torch.stack([true, torch.zeros_like(true)], 1)
    valid = torch.tensor([1.0, 0.0], device=x.device, dtype=x.dtype)[:, None]
    code = ((wanted + eps) / (0.5 + eps)).log()
    return F.cross_entropy(z, y) + ((sides - code).square() * valid).mean()


@case("16-true", f"bf16-true {MIXED}")
def padded_boxes() -> dict:
    """log(w + 1e-8) of padding, times zero (rwightman/efficientdet-pytorch#291)."""
    return recipe(Boxed, loss=None, training_step=partial(boxed, eps=1e-8))


@case(sound=f"{TRUE} {MIXED}")
def padded_boxes_mended() -> dict:
    """The same with 1e-7, as that issue proposes."""
    return recipe(Boxed, loss=None, training_step=partial(boxed, eps=1e-7))
