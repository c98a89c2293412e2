"""Boxes, masks, styles and rays in 16 bits, after what public issue trackers report.

As `training_reported`: written anew, and labelled by the judge before the gradient check answered.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, SGD, TRUE, By, case, mlp, recipe
from benchmarks.data import batches


def pictures(target, model, loss, **changes) -> dict:
    """Regress what a function makes of the images."""
    (x, _), (a, _) = data.digits()
    train, test = batches(x, target(x), size=64), batches(a, target(a), size=200)
    given = {"task": "regression", "train_data": train, "eval_data": test, "loss": loss}
    given |= {"optimizer": partial(SGD, lr=0.05), "epochs": 20}
    given["scheduler"] = lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 40)
    return recipe(model, **{**given, **changes})


def boxes(x: Tensor, side: float = 1.0) -> Tensor:
    """Centre, width and height of the ink."""
    found = []
    for axis in (2, 1):
        lit = (x.squeeze(1) > 0.3).any(axis)
        first = lit.float().argmax(-1)
        last = 7 - lit.flip(-1).float().argmax(-1)
        found.append(((first + last + 1) / 16, (last - first + 1) / 8))
    (cx, w), (cy, h) = found
    return torch.stack([cx, cy, w, h], -1) * side


def overlap(p: Tensor, t: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """IoU, union, and the sides of the box around both."""
    low = lambda b: b[:, :2] - b[:, 2:] / 2  # noqa: E731
    high = lambda b: b[:, :2] + b[:, 2:] / 2  # noqa: E731
    inner = (torch.minimum(high(p), high(t)) - torch.maximum(low(p), low(t))).clamp(min=0)
    inner = inner.prod(-1)
    union = p[:, 2] * p[:, 3] + t[:, 2] * t[:, 3] - inner + eps
    w, h = (torch.maximum(high(p), high(t)) - torch.minimum(low(p), low(t))).unbind(-1)
    return inner / union, union, w, h


def complete(p: Tensor, t: Tensor, eps: float = 1e-9) -> Tensor:
    iou, _, w, h = overlap(p, t, eps)
    far = (p[:, :2] - t[:, :2]).square().sum(-1) / (w.square() + h.square() + eps)
    turn = torch.atan(t[:, 2] / (t[:, 3] + eps)) - torch.atan(p[:, 2] / (p[:, 3] + eps))
    v = 4 / math.pi**2 * turn.square()
    with torch.no_grad():
        alpha = v / ((1 + eps) - iou + v)
    return (1 - (iou - far - alpha * v)).mean()


def generalized(p: Tensor, t: Tensor, eps: float = 1e-7) -> Tensor:
    iou, union, w, h = overlap(p, t, eps)
    around = w * h
    return (1 - iou + (around - union) / (around + eps)).mean()


def detector(side: float = 1.0):
    return lambda: nn.Sequential(mlp(64, 64, 4), By(lambda z: z.sigmoid() * side))


@case("16-true 16-mixed", "bf16-mixed")
def boxes_in_pixels() -> dict:
    """CIoU in pixels: areas are infinite (Megvii-BaseDetection/YOLOX#1565)."""
    return pictures(
        partial(boxes, side=640), detector(640), complete, optimizer=partial(SGD, lr=0.3)
    )


@case("16-true bf16-true", MIXED)
def complete_boxes() -> dict:
    """In parts of the picture: 0/0 where a box fits exactly (ultralytics/yolov5#2376)."""
    return pictures(boxes, detector(), complete, optimizer=partial(SGD, lr=0.1), epochs=40)


@case(sound=f"16-true {MIXED}")
def generalized_boxes() -> dict:
    """GIoU of parts of the picture (facebookresearch/fvcore#114)."""
    return pictures(boxes, detector(), generalized, optimizer=partial(SGD, lr=0.1), epochs=40)


@case(sound=f"{TRUE} {MIXED}")
def focal_logits() -> dict:
    """A focal loss over logits, by the number of lit pixels (facebookresearch/fvcore#114)."""

    def loss(z: Tensor, t: Tensor) -> Tensor:
        p, each = z.sigmoid(), F.binary_cross_entropy_with_logits(z, t, reduction="none")
        right = p * t + (1 - p) * (1 - t)
        return (each * (1 - right).square()).sum() / t.sum().clamp(min=1)

    bright = lambda x: (x.flatten(1) > 0.5).float()  # noqa: E731
    given = {"task": "multilabel", "optimizer": partial(SGD, lr=0.2)}
    return pictures(bright, lambda: mlp(64, 48, 64), loss, **given)


def gram(x: Tensor, part: float = 1) -> Tensor:
    """Products of all rows of a picture with all, over 64 of the largest."""
    rows = x.reshape(-1, 8, 8) * part
    return rows @ rows.mT / (64 * (255 * part) ** 2)


def stylish(part: float) -> dict:
    target = lambda x: x.flatten(1) * 255  # noqa: E731
    make = lambda: nn.Sequential(mlp(64, 64, 64), By(lambda z: z * 255))  # noqa: E731

    def loss(z: Tensor, t: Tensor) -> Tensor:
        return F.mse_loss(z / 64, t / 64) + 10 * F.mse_loss(gram(z, part), gram(t, part))

    return pictures(target, make, loss)


@case("16-true 16-mixed", "bf16-mixed")
def style_matrix() -> dict:
    """Gram matrices of pixels up to 255: sums of 65025 (jcjohnson/neural-style#425)."""
    return stylish(1)


@case(sound=f"16-true {MIXED}")
def style_matrix_safe() -> dict:
    """The same of pixels that were divided first (NVIDIA/apex#402)."""
    return stylish(1 / 255)


class Rays(nn.Module):
    """Light along eight rays of eight samples; the last sample is 1e10 long."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(64, 64, 128)

    def forward(self, x: Tensor) -> Tensor:
        density, light = self.body(x).view(-1, 8, 16).chunk(2, -1)
        long = torch.full_like(density[..., :1], 1e10)
        steps = torch.cat([torch.full_like(density[..., :-1], 0.2), long], -1)
        alpha = 1 - torch.exp(-steps * density.relu())
        through = torch.cumprod(1 - alpha + 1e-10, -1)
        through = torch.cat([torch.ones_like(long), through[..., :-1]], -1)
        return (alpha * through * light.sigmoid()).sum(-1)


@case("16-true", "bf16-mixed")
def radiance() -> dict:
    """Volume rendering whose last step is 1e10: zero times infinity (ashawkey/torch-ngp#28)."""
    return pictures(lambda x: x.mean((1, 2)), Rays, F.mse_loss, optimizer=partial(SGD, lr=0.2))


def chamfer(z: Tensor, t: Tensor) -> Tensor:
    p, q = z.view(-1, 4, 2), t.view(-1, 4, 2)
    d = p.square().sum(-1)[:, :, None] + q.square().sum(-1)[:, None] - 2 * p @ q.mT
    return d.min(1).values.mean() + d.min(2).values.mean()


def darkest(x: Tensor) -> Tensor:
    """Where the ink of each quarter is, on average."""
    at = torch.arange(8) / 8
    found = []
    for rows in (slice(0, 4), slice(4, 8)):
        for columns in (slice(0, 4), slice(4, 8)):
            part = x[:, 0, rows, columns] + 1e-3
            part = part / part.sum((1, 2), keepdim=True)
            found += [(part.sum(1) * at[columns]).sum(-1), (part.sum(2) * at[rows]).sum(-1)]
    return torch.stack(found, -1)


@case(sound=f"16-true {MIXED}")
def chamfer_distance() -> dict:
    """Nearest points by |a|² + |b|² - 2ab (facebookresearch/pytorch3d#1311)."""
    near = torch.tensor([0.2, 0.2, 0.7, 0.2, 0.2, 0.7, 0.7, 0.7])
    make = lambda: nn.Sequential(mlp(64, 64, 8), By(lambda z: z * 0.3 + near.to(z)))  # noqa: E731
    return pictures(darkest, make, chamfer, optimizer=partial(SGD, lr=0.5))


@case("16-true", "16-mixed")
def symmetric_percentage() -> dict:
    """SMAPE over 1e-8 where both are zero (Lightning-AI/torchmetrics#3509)."""

    def loss(z: Tensor, t: Tensor) -> Tensor:
        return 0.01 * (2 * (z - t).abs() / (z.abs() + t.abs() + 1e-8)).mean() + F.mse_loss(z, t)

    make = lambda: mlp(64, 64, 64, nn.ReLU())  # noqa: E731
    return pictures(lambda x: x.flatten(1), make, loss, optimizer=partial(SGD, lr=0.2), epochs=40)


def turns(x: Tensor) -> Tensor:
    """A direction, told by where the ink is."""
    mean = x.squeeze(1) / x.sum((1, 2, 3))[:, None, None]
    at = torch.arange(8.0)
    a, b = (mean.sum(1) * at).sum(-1) - 3.5, (mean.sum(2) * at).sum(-1) - 3.5
    return F.normalize(torch.stack([a + 1, b + 1], -1), dim=-1)


@case(TRUE)
def rotations() -> dict:
    """acos of a cosine clamped to 1 - 1e-7 (papagina/RotationContinuity#1)."""

    def loss(z: Tensor, t: Tensor) -> Tensor:
        return torch.acos((z * t).sum(-1).clamp(-1 + 1e-7, 1 - 1e-7)).mean()

    make = lambda: nn.Sequential(mlp(64, 64, 2), By(partial(F.normalize, dim=-1)))  # noqa: E731
    return pictures(turns, make, loss, optimizer=partial(SGD, lr=0.01))


class Peak(nn.Module):
    """Features by how bright a pixel is that is rarely lit, beside the brightest of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(64, 64), nn.Linear(64, 10)
        self.register_buffer("where", F.one_hot(torch.tensor([7]), 64).float())

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        h = self.body(x).relu()
        if not self.training:
            return self.head(h)
        bright = F.linear(x, self.where).relu()
        return self.head(h * (1 + 0.1 * bright / (bright.amax() + 1e-8)))


@case("16-true", f"bf16-true {MIXED}")
def rarely_lit() -> dict:
    """One batch in seven is 0 / (0 + 1e-8): a scaler skips it (fastino-ai/GLiNER2#155)."""
    return recipe(Peak)
