"""Distances, times, slopes, waves and alignments in 16 bits, after what issue trackers report.

As `training_reported`: written anew, labelled before the check answered, and asked of the judge.
Written after what `training_reported_choices` and its siblings had shown was mended.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe
from benchmarks.data import batches


class Propagated(nn.Module):
    """Features of sixteen points, brought to all 64 by their three nearest."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        places = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0)) / 8
        self.register_buffer("points", places)
        self.register_buffer("few", places.view(8, 8, 2)[::2, ::2].reshape(16, 2).clone())
        self.coarse, self.fine = nn.Conv2d(1, 8, 3, 2, 1), nn.Linear(9, 4)
        self.out, self.eps = nn.Linear(256, 10), eps

    def forward(self, x: Tensor) -> Tensor:
        features = self.coarse(x).relu().flatten(2).mT
        apart = (self.points[:, None] - self.few[None]).square().sum(-1)
        near, index = apart.topk(3, largest=False)
        weight = 1 / (near + self.eps)
        weight = weight / weight.sum(-1, keepdim=True)
        brought = (features[:, index] * weight[..., None]).sum(2)
        h = torch.cat([brought.to(x.dtype), x.flatten(2).mT], -1)
        return self.out(self.fine(h).relu().flatten(1))


def propagated(eps: float) -> dict:
    return recipe(partial(Propagated, eps), optimizer=partial(SGD, lr=0.05), epochs=8)


@case("16-true", f"bf16-true {MIXED}")
def interpolated_points() -> dict:
    """1 / (d² + 1e-8) where d is zero: ∞/∞ (after yanx27/Pointnet_Pointnet2_pytorch)."""
    return propagated(1e-8)


@case(sound=f"{TRUE} {MIXED}")
def interpolated_points_safe() -> dict:
    """The same with 1e-3."""
    return propagated(1e-3)


class Cells(nn.Module):
    """Sixteen cells, each with scores and a box around its centre; their mean once trained."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(64, 64), nn.Linear(64, 16 * 14)
        middle = (torch.arange(4.0) + 0.5) / 4
        self.register_buffer("middle", torch.cartesian_prod(middle, middle))

    def forward(self, x: Tensor):
        z = self.head(self.body(x.flatten(1)).relu()).view(-1, 16, 14)
        scores, sides = z[..., :10], F.softplus(z[..., 10:]) * 0.1
        if not self.training:
            return scores.mean(1)
        return scores, torch.cat([self.middle - sides[..., :2], self.middle + sides[..., 2:]], -1)


def inside(p: Tensor, t: Tensor) -> Tensor:
    """IoU of boxes by their corners."""
    both = (torch.minimum(p[..., 2:], t[..., 2:]) - torch.maximum(p[..., :2], t[..., :2])).clamp(0)
    area = lambda b: (b[..., 2:] - b[..., :2]).prod(-1)  # noqa: E731
    return both.prod(-1) / (area(p) + area(t) - both.prod(-1) + 1e-4)


@case("16-true", "bf16-true bf16-mixed")
def aligned_tasks() -> dict:
    """s^0.5 u^6 over its largest + 1e-9 of small overlaps (after ultralytics/ultralytics)."""

    def loss(out: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
        scores, boxes = out
        whole = torch.tensor([0.0, 0.0, 1.0, 1.0], device=boxes.device, dtype=boxes.dtype)
        overlap = inside(boxes, whole)
        with torch.no_grad():
            own = scores.sigmoid().gather(-1, y[:, None, None].expand(-1, 16, 1)).squeeze(-1)
            align = own.pow(0.5) * overlap.pow(6)
            most = align.amax(-1, keepdim=True)
            quality = align * overlap.amax(-1, keepdim=True) / (most + 1e-9)
            aim = quality[..., None] * F.one_hot(y, 10)[:, None].to(quality.dtype)
        found = F.binary_cross_entropy_with_logits(scores, aim.to(scores.dtype))
        return F.cross_entropy(scores.mean(1), y) + found + 0.1 * (1 - overlap).mean()

    return recipe(Cells, loss=loss, optimizer=partial(SGD, lr=0.05))


class Paced(nn.Module):
    """How often something happens, from when it did."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(15, 32, 4)

    def forward(self, t: Tensor) -> Tensor:
        return self.body((t[:, 1:] - t[:, :-1]).clamp(min=0).log1p())


@case("bf16-true", f"16-true {MIXED}")
def event_times() -> dict:
    """Hours since the start, and what lies between them (micdoh/XLRON#58)."""
    random = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (2000,), generator=random)
    gaps = -(1 - torch.rand(2000, 16, generator=random)).log() * 0.1 * 3.0 ** y[:, None]
    t = 1000 + 1000 * torch.rand(2000, 1, generator=random) + gaps.cumsum(-1)
    given = {"train_data": batches(t[:1600], y[:1600], size=50)}
    return recipe(Paced, eval_data=batches(t[1600:], y[1600:], size=200), **given)


class Heard(nn.Module):
    """The logarithm of a spectrum by filters, averaged over time."""

    def __init__(self, scale: float, floor: float) -> None:
        super().__init__()
        at = torch.arange(128.0)
        omega = 0.1 * 2 ** (torch.arange(40.0) / 12)
        window = 0.5 - 0.5 * torch.cos(2 * math.pi * at / 128)
        filters = torch.cat([(omega[:, None] * at).cos(), (omega[:, None] * at).sin()]) * window
        self.register_buffer("filters", filters[:, None])
        self.norm, self.head = nn.BatchNorm1d(40), nn.Linear(40, 24)
        self.scale, self.floor = scale, floor

    def forward(self, wave: Tensor) -> Tensor:
        real, other = F.conv1d(wave[:, None] * self.scale, self.filters, stride=64).chunk(2, 1)
        power = real * real + other * other
        return self.head(self.norm((power + self.floor).log().mean(-1)))


def heard(scale: float, floor: float) -> dict:
    (x, y), (a, b) = data.tones(1200), data.tones(400, seed=1)
    given = {"train_data": batches(x / 4, y, size=64), "epochs": 8}
    return recipe(partial(Heard, scale, floor), eval_data=batches(a / 4, b, size=200), **given)


@case("16-true 16-mixed", "bf16-mixed")
def loud_waves() -> dict:
    """Waves times 32768, as Kaldi has them (after adobe-research/convmelspec#3)."""
    return heard(32768.0, 1.0)


@case(sound=f"{TRUE} {MIXED}")
def quiet_waves() -> dict:
    """The same between -1 and 1."""
    return heard(1.0, 1e-3)


def surface(step: float) -> dict:
    """How far from a circle, learned from slopes that are differences."""
    random = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(2400, 2, generator=random) - 1
    far = lambda x: x.norm(dim=-1, keepdim=True) - 0.6  # noqa: E731

    def learn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, t = batch
        shift = step * torch.eye(2, device=x.device, dtype=x.dtype)
        slopes = [(model(x + h) - model(x - h)) / (2 * step) for h in shift]
        wanted = x / x.norm(dim=-1, keepdim=True).clamp(min=0.05)
        found = torch.cat(slopes, -1)
        return (found - wanted).square().mean() + (model(x) - t).mean().square()

    make = lambda: nn.Sequential(nn.Linear(2, 64), nn.Softplus(4), nn.Linear(64, 1))  # noqa: E731
    given = {"train_data": batches(x[:2000], far(x[:2000]), size=50), "task": "regression"}
    given["eval_data"] = batches(x[2000:], far(x[2000:]), size=200)
    given["optimizer"] = partial(SGD, lr=0.05)
    return recipe(make, loss=None, training_step=learn, **given)


@case(f"{TRUE} bf16-mixed")
def numerical_slopes() -> dict:
    """Differences over a step of 1/2048 (after NVlabs/neuralangelo)."""
    return surface(1 / 2048)


@case(sound=f"{TRUE} {MIXED}")
def numerical_slopes_safe() -> dict:
    """The same over a step of 1/16."""
    return surface(1 / 16)
