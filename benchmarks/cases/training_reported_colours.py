"""Colours, depths, perception, turned boxes and many pixels in 16 bits, after issue trackers.

As `training_reported`: written anew, labelled before the check answered, and asked of the judge.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe
from benchmarks.data import batches

ADAM = partial(torch.optim.Adam, lr=1e-2, eps=1e-4)

# Colours ------------------------------------------------------------------------------------------


def hue_and_saturation(image: Tensor, saturation: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Hue, saturation and value of red, green and blue."""
    most, which = image.max(-3)
    spread = most - image.amin(-3)
    sat = saturation(spread, most)
    spread = torch.where(spread == 0, torch.ones_like(spread), spread)
    red, green, blue = (most.unsqueeze(-3) - image).unbind(-3)
    turns = (blue - green, red - blue + 2 * spread, green - red + 4 * spread)
    hue = torch.stack(turns, -3) / spread.unsqueeze(-3)
    hue = hue.gather(-3, which.unsqueeze(-3)).squeeze(-3)
    return torch.stack([2 * math.pi * (hue / 6 % 1), sat, most], -3)


class Coloured(nn.Module):
    """Which of six colours the ink of a picture has, from its hue and saturation."""

    def __init__(self, saturation: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.saturation, self.body = saturation, mlp(192, 48, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(hue_and_saturation(x, self.saturation))


def coloured(saturation: Callable[[Tensor, Tensor], Tensor]) -> dict:
    """Digits in colours on black."""
    (x, _), (a, _) = data.digits()
    random = torch.Generator().manual_seed(0)
    inks = torch.tensor([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(1, 7)])

    def painted(x: Tensor) -> tuple[Tensor, Tensor]:
        which = torch.randint(0, 6, (len(x),), generator=random)
        ink = 0.3 + 0.6 * inks[which] + 0.1 * torch.rand(len(x), 3, generator=random)
        return x * ink[..., None, None], which

    train, test = batches(*painted(x), size=64), batches(*painted(a), size=200)
    adam = partial(torch.optim.Adam, lr=5e-3, eps=1e-3)
    given = {"train_data": train, "eval_data": test, "optimizer": adam}
    return recipe(partial(Coloured, saturation), epochs=15, **given)


@case("16-true", f"bf16-true {MIXED}")
def saturated_ink() -> dict:
    """(most - least) / (most + 1e-8) of what is black (kornia/kornia#4560)."""
    return coloured(lambda spread, most: spread / (most + 1e-8))


@case(sound=f"{TRUE} {MIXED}")
def saturated_ink_repaired() -> dict:
    """The same over one where it is black (kornia/kornia#4561)."""
    return coloured(lambda s, v: s / torch.where(v == 0, torch.ones_like(v), v + 1e-8))


# Depths -------------------------------------------------------------------------------------------


@cache
def depths() -> tuple[Tensor, Tensor]:
    """Pictures of clothes, and how near they are: up to ten where they are bright."""
    x = data.fashion()[0][:700]
    y = F.avg_pool2d(x, 5, 1, 2).squeeze(1)
    low, high = y.amin((1, 2), keepdim=True), y.amax((1, 2), keepdim=True)
    return x, 10 * (y - low) / (high - low)


def depth_net() -> nn.Module:
    """A map of numbers of the size of the picture."""
    layers = (nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 1, 5, padding=2))
    return nn.Sequential(*layers, nn.Flatten(1, 2))


def deep(loss: Callable[[Tensor, Tensor], Tensor], target: Tensor, **changes: object) -> dict:
    """600 pictures to train and 100 to test, six times."""
    x, _ = depths()
    train, test = batches(x[:600], target[:600], size=30), batches(x[600:], target[600:])
    given = {"task": "regression", "loss": loss, "epochs": 6, "optimizer": ADAM}
    return recipe(depth_net, **{**given, "train_data": train, "eval_data": test, **changes})


def aligned(z: Tensor, t: Tensor) -> Tensor:
    """The scale and shift that bring a map nearest to another, by 2 x 2 equations."""
    mask = torch.ones_like(z)
    a_00, a_01, a_11 = ((mask * v).sum((1, 2)) for v in (z * z, z, mask))
    b_0, b_1 = (mask * z * t).sum((1, 2)), (mask * t).sum((1, 2))
    scale, shift = torch.zeros_like(b_0), torch.zeros_like(b_1)
    det = a_00 * a_11 - a_01 * a_01
    valid = det.nonzero()
    scale[valid] = (a_11[valid] * b_0[valid] - a_01[valid] * b_1[valid]) / det[valid]
    shift[valid] = (-a_01[valid] * b_0[valid] + a_00[valid] * b_1[valid]) / det[valid]
    return scale[:, None, None] * z + shift[:, None, None]


@case("16-true", "bf16-true bf16-mixed")
def scale_and_shift() -> dict:
    """Sums over 784 pixels are multiplied (after antocad/FocusOnDepth#22, MiDaS's loss)."""

    def loss(z: Tensor, t: Tensor) -> Tensor:
        return F.mse_loss(aligned(z, t), t) + F.mse_loss(z, t)

    return deep(loss, depths()[1])


@case(sound=f"{TRUE} {MIXED}")
def logarithms_of_depth() -> dict:
    """10 √(mean(d²) - 0.85 mean(d)²) of logarithms (after cleinc/bts and isl-org/ZoeDepth#56)."""

    def loss(z: Tensor, t: Tensor) -> Tensor:
        d = torch.log(1 + 9 * torch.sigmoid(z)) - torch.log(1 + 9 * torch.sigmoid(t))
        return 10 * torch.sqrt(d.square().mean() - 0.85 * d.mean().square())

    return deep(loss, torch.logit(depths()[1].clamp(1, 9) / 10))


# Perception ---------------------------------------------------------------------------------------


class Restored(nn.Module):
    """A picture without its noise, and fixed features that judge it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(mlp(64, 96, 64), nn.ReLU())
        self.seen = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.ReLU())
        self.seen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def unit(feature: Tensor, eps: float = 1e-8) -> Tensor:
    """Features of every pixel over their length."""
    length = torch.sqrt((feature**2).sum(1, keepdim=True) + eps)
    return feature / (length + eps)


@case("16-true", "bf16-true bf16-mixed")
def perceived_features() -> dict:
    """√(Σf² + 1e-8) + 1e-8 of pixels without features (Project-MONAI/MONAI#8982)."""
    (x, _), (a, _) = data.digits()
    random = torch.Generator().manual_seed(0)

    def step(model: nn.Module, batch: tuple) -> Tensor:
        x, clear = batch
        out = model(x)
        one, other = (unit(model.seen(p.unflatten(1, (1, 8, 8)))) for p in (out, clear))
        return F.mse_loss(out, clear) + 0.1 * (one - other).square().sum(1).mean()

    def noisy(x: Tensor) -> Tensor:
        return x + 0.2 * torch.randn(x.shape, generator=random)

    train = batches(noisy(x), x.flatten(1), size=64)
    test = batches(noisy(a), a.flatten(1), size=200)
    given = {"train_data": train, "eval_data": test, "training_step": step, "loss": None}
    return recipe(Restored, task="regression", optimizer=ADAM, **given)


# Turned boxes -------------------------------------------------------------------------------------


def spread(box: Tensor) -> Tensor:
    """Half of width and height, squared and turned: a covariance of squared pixels."""
    side, turn = box[:, 2:4].clamp(min=1e-2), box[:, 4]
    turned = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], -1).view(-1, 2, 2)
    return turned @ torch.diag_embed((side / 2).square()) @ turned.transpose(1, 2)


def determinant(m: Tensor) -> Tensor:
    """Of two by two."""
    return m[:, 0, 0] * m[:, 1, 1] - m[:, 0, 1] * m[:, 1, 0]


def between_gaussians(box: Tensor, target: Tensor) -> Tensor:
    """Wasserstein's distance of two boxes as Gaussians, by their traces and determinants."""
    one, other = spread(box), spread(target)
    first, second, both = (m.diagonal(dim1=1, dim2=2).sum(-1) for m in (one, other, one @ other))
    root = (determinant(one) * determinant(other)).clamp(min=1e-6).sqrt()
    far = first + second - 2 * (both + 2 * root).clamp(min=1e-6).sqrt()
    return ((box[:, :2] - target[:, :2]).square().sum(-1) + far).clamp(min=1e-2).sqrt()


@cache
def ink_boxes() -> tuple[Tensor, Tensor]:
    """Where the ink of all digits lies, in pixels of a picture eight times as large."""
    (x, _), (a, _) = data.digits()
    x = torch.cat([x, a])
    place = torch.arange(8.0)
    grid = torch.stack(torch.meshgrid(place, place, indexing="xy"), -1).view(64, 2)
    weight = x.flatten(1) / x.flatten(1).sum(1, keepdim=True)
    centre = weight @ grid
    off = grid - centre[:, None]
    cov = torch.einsum("np,npi,npj->nij", weight, off, off)
    turn = 0.5 * torch.atan2(2 * cov[:, 0, 1], cov[:, 0, 0] - cov[:, 1, 1])
    size = torch.linalg.eigvalsh(cov).flip(-1).sqrt() * 4
    return x, 8 * torch.cat([centre, size, turn[:, None] / 8], 1)


@case(f"{TRUE} 16-mixed")
def turned_boxes() -> dict:
    """Determinants of squared pixels (after open-mmlab/mmrotate#204's gwd_loss)."""
    x, box = ink_boxes()
    unit = torch.tensor([32.0, 32.0, 64.0, 32.0, 1.0])

    class Boxes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(64, 64, 5)

        def forward(self, x: Tensor) -> Tensor:
            return (1 + self.body(x)) * unit.to(x)

    def loss(z: Tensor, t: Tensor) -> Tensor:
        return torch.log1p(between_gaussians(z, t)).mean()

    train, test = batches(x[:1197], box[:1197], size=64), batches(x[1197:], box[1197:], size=200)
    given = {"loss": loss, "train_data": train, "eval_data": test, "task": "regression"}
    return recipe(Boxes, optimizer=partial(SGD, lr=0.01), **given)


# Many pixels --------------------------------------------------------------------------------------


@case("16-true", f"bf16-true {MIXED}")
def pixels_of_a_batch() -> dict:
    """The mean over 78400 pixels is a quotient of two sums (pytorch/pytorch#29429)."""
    x, deep = depths()
    target = (deep > 2).long() + (deep > 6).long()

    def make() -> nn.Module:
        layers = (nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 3, 5, padding=2))
        return nn.Sequential(*layers)

    train, test = batches(x[:600], target[:600]), batches(x[600:], target[600:])
    given = {"train_data": train, "eval_data": test, "optimizer": partial(SGD, lr=0.1)}
    return recipe(make, epochs=5, **given)
