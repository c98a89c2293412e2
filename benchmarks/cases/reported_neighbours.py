"""Held-out neighbours: votes of a memory, kernels of points, levels of a pyramid, bits of a code.

Each is written in the shape its project has; outputs of a random model are mostly the labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import FP16, Built, built, fitted, healthy, planted
from benchmarks.cases.reported_quantities import taught
from benchmarks.cases.reported_tongues import decided, drawn
from benchmarks.data import digits


class Memory(nn.Module):
    """A backbone, and DINO's votes of the twenty nearest of what is remembered."""

    def __init__(self, temperature: float, classes: int = 6, k: int = 20) -> None:
        super().__init__()
        self.t, self.classes, self.k = temperature, classes, k
        self.backbone = nn.Sequential(nn.Linear(24, 64), nn.GELU(), nn.Linear(64, 16))
        centres = drawn(classes, 24, seed=30)
        labels = torch.arange(240) % classes
        seen = centres[labels] + 0.6 * drawn(240, 24, seed=31)
        self.register_buffer("train_labels", labels)
        self.register_buffer("train_features", F.normalize(self.backbone(seen)).detach())

    def forward(self, x: Tensor) -> Tensor:
        features = F.normalize(self.backbone(x), dim=1, p=2)
        similarity = torch.mm(features, self.train_features.t())
        distances, indices = similarity.topk(self.k, largest=True, sorted=True)
        candidates = self.train_labels.view(1, -1).expand(len(x), -1)
        retrieved = torch.gather(candidates, 1, indices)
        one_hot = torch.zeros(len(x) * self.k, self.classes).to(x.device)
        one_hot.scatter_(1, retrieved.reshape(-1, 1), 1)
        weights = distances.clone().div_(self.t).exp_()
        votes = one_hot.view(len(x), -1, self.classes) * weights.view(len(x), -1, 1)
        return torch.sum(votes, 1)


def looked_up() -> Tensor:
    """Points around six centres."""
    return drawn(6, 24, seed=30)[torch.arange(300) % 6] + 0.8 * drawn(300, 24, seed=32)


@planted("overflow", "", "exp exp_", fails=FP16, family="neighbours")
def votes_of_the_nearest() -> Built:
    """facebookresearch/dino's eval_knn: exp_ of 1 / 0.07, in place, where autocast leaves it."""
    return decided(lambda: Memory(0.07), (looked_up(),))


@healthy()
def votes_of_the_nearest_at_a_higher_temperature() -> Built:
    """facebookresearch/dino's eval_knn at 0.2: exp of five, and an equal vote hardly matters."""
    return decided(lambda: Memory(0.2), (looked_up(),))


class KPConv(nn.Module):
    """Neighbours weigh as near as they are to points of a kernel; what is none is far away."""

    def __init__(self, into: int, out: int, points: int = 9, extent: float = 0.6) -> None:
        super().__init__()
        self.extent = extent
        self.weights = nn.Parameter(torch.randn(points, into, out) / into**0.5)
        self.kernel_points = nn.Parameter(0.5 * torch.randn(points, 3), requires_grad=False)

    def forward(self, points: Tensor, indices: Tensor, x: Tensor) -> Tensor:
        shadow = torch.cat((points, torch.zeros_like(points[:, :1, :]) + 1e6), 1)
        row = torch.arange(len(points), device=points.device).view(-1, 1, 1)
        neighbors = shadow[row, indices] - points.unsqueeze(2)
        neighbors = neighbors.unsqueeze(3)
        differences = neighbors - self.kernel_points
        sq_distances = torch.sum(differences**2, dim=4)
        weights = torch.clamp(1 - torch.sqrt(sq_distances) / self.extent, min=0.0)
        x = torch.cat((x, torch.zeros_like(x[:, :1, :])), 1)
        weighted = torch.matmul(weights.transpose(2, 3), x[row, indices])
        return torch.einsum("npkc,kcd->npd", weighted, self.weights)


class Cloud(nn.Module):
    """Two such convolutions, the largest of all points, a class."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = KPConv(1, 16), KPConv(16, 24)
        self.head = nn.Linear(24, 5)
        with torch.no_grad():
            self.head.weight *= 4

    def forward(self, points: Tensor, indices: Tensor) -> Tensor:
        x = torch.ones_like(points[:, :, :1])
        x = F.leaky_relu(self.first(points, indices, x), 0.1)
        x = F.leaky_relu(self.second(points, indices, x), 0.1)
        return self.head(x.amax(1))


def clouds(count: int = 300, size: int = 24, most: int = 12) -> tuple[Tensor, Tensor]:
    """Points of boxes, and the neighbours within 0.7 of each; `size` stands for none."""
    points = 2 * torch.rand(count, size, 3, generator=torch.Generator().manual_seed(4)) - 1
    points = points * (0.4 + drawn(count, 1, 3, seed=5).abs())
    near, indices = torch.cdist(points, points).topk(most, largest=False)
    return points, indices.masked_fill(near > 0.7, size)


@healthy()
def points_that_are_no_neighbours() -> Built:
    """HuguesTHOMAS/KPConv: shadows are at 1e6, infinite in float16, and far away as meant."""
    return decided(Cloud, clouds())


class LevelMapper(nn.Module):
    """FPN's: the larger a box, the coarser the level it is read from."""

    def forward(self, boxes: Tensor) -> Tensor:
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        levels = torch.floor(4 + torch.log2(torch.sqrt(area) / 224 + 1e-8))
        return torch.clamp(levels, min=2, max=5).to(torch.int64) - 2


class Pyramid(nn.Module):
    """A box's features at every level, those of its own, and what it is."""

    def __init__(self) -> None:
        super().__init__()
        self.mapper, self.head = LevelMapper(), nn.Linear(12, 5)
        self.lateral = nn.ModuleList(nn.Linear(8, 12) for _ in range(4))
        with torch.no_grad():
            self.head.weight *= 4

    def forward(self, boxes: Tensor, features: Tensor) -> Tensor:
        levels = self.mapper(boxes)
        out = torch.stack([f(features[:, i]) for i, f in enumerate(self.lateral)], 1)
        return self.head(F.gelu(out[torch.arange(len(boxes), device=boxes.device), levels]))


def boxed(sides: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Boxes of those sides, a tenth longer or shorter, and features of four levels."""
    random = torch.Generator().manual_seed(6)
    side = torch.tensor(sides)[torch.randint(0, len(sides), (400,), generator=random)].view(-1, 1)
    corner = 100 * torch.rand(400, 2, generator=random)
    size = side * (0.95 + 0.1 * torch.rand(400, 2, generator=random))
    return torch.cat([corner, corner + size], 1), drawn(400, 4, 8, seed=7)


@planted("overflow", "mapper", "mul", fails=("16-true",), family="decision")
def levels_of_middling_boxes() -> Built:
    """detectron2's assign_boxes_to_levels: 300 by 300 is infinite, and so read from the last."""
    return decided(Pyramid, boxed((50.0, 160.0, 320.0, 600.0)))


@healthy()
def levels_of_small_and_large_boxes() -> Built:
    """The same: 600 by 600 is infinite in float16, too, and the coarsest level is its own."""
    return decided(Pyramid, boxed((50.0, 80.0, 160.0, 600.0, 900.0)))


class LowerBound(nn.Module):
    """CompressAI's: a bound that is a buffer."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.register_buffer("bound", torch.tensor([bound]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.max(x, self.bound)


class NonNegativeParametrizer(nn.Module):
    """Squares of roots, so that what is learned stays above a bound."""

    def __init__(self, minimum: float = 0.0, offset: float = 2**-18) -> None:
        super().__init__()
        self.pedestal = offset**2
        self.lower_bound = LowerBound((minimum + self.pedestal) ** 0.5)

    def init(self, x: Tensor) -> Tensor:
        return torch.sqrt(torch.clamp(x + self.pedestal, min=self.pedestal))

    def forward(self, x: Tensor) -> Tensor:
        return self.lower_bound(x) ** 2 - self.pedestal


class GDN(nn.Module):
    """Each channel by the root of what all channels have, squared and weighed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.beta_reparam, self.gamma_reparam = (
            NonNegativeParametrizer(1e-6), NonNegativeParametrizer(),
        )  # fmt: skip
        self.beta = nn.Parameter(self.beta_reparam.init(torch.ones(width)))
        self.gamma = nn.Parameter(self.gamma_reparam.init(0.1 * torch.eye(width)))

    def forward(self, x: Tensor) -> Tensor:
        c = x.size(1)
        beta, gamma = self.beta_reparam(self.beta), self.gamma_reparam(self.gamma)
        norm = F.conv2d(x**2, gamma.reshape(c, c, 1, 1), beta)
        return x * torch.rsqrt(norm)


class Analysis(nn.Sequential):
    """Convolutions with such norms between them, and a class."""

    def __init__(self, width: int = 24) -> None:
        super().__init__(
            nn.Conv2d(1, width, 3, 1, 1), GDN(width), nn.Conv2d(width, width, 3, 2, 1), GDN(width),
            nn.Flatten(), nn.Linear(width * 16, 10),
        )  # fmt: skip


@healthy()
def divisive_norms_of_learned_codecs() -> Built:
    """InterDigitalInc/CompressAI's GDN: 2^-36 and 1e-6 are next to nothing in every format."""
    (x, y), (u, v) = digits()
    model = fitted(Analysis, (x[:900], y[:900]), epochs=12)
    return built(model, (u[:400], v[:400]))


class GaussianConditional(nn.Module):
    """How likely a rounded number is: a bell between its halves, and no less than 1e-9."""

    def __init__(self) -> None:
        super().__init__()
        self.lower_bound_scale, self.likelihood_lower_bound = LowerBound(0.11), LowerBound(1e-9)

    def cumulative(self, x: Tensor) -> Tensor:
        return 0.5 * torch.erfc(-(2**-0.5) * x)

    def forward(self, y: Tensor, scales: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.round(y - means) + means
        scales, values = self.lower_bound_scale(scales), torch.abs(y - means)
        upper = self.cumulative((0.5 - values) / scales)
        lower = self.cumulative((-0.5 - values) / scales)
        return y, self.likelihood_lower_bound(upper - lower)


class Codec(nn.Module):
    """A mean-scale hyperprior: what it costs to store a picture, in bits."""

    def __init__(self, least: float, width: int = 8) -> None:
        super().__init__()
        self.least = least
        self.g_a = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1), GDN(width))
        self.h = nn.Conv2d(width, 2 * width, 1)
        self.gaussian_conditional = GaussianConditional()
        with torch.no_grad():
            self.g_a[0].weight *= 3

    def forward(self, x: Tensor) -> Tensor:
        y = self.g_a(x)
        scales, means = self.h(torch.abs(y)).chunk(2, 1)
        scales = F.softplus(scales) + self.least
        _, likelihood = self.gaussian_conditional(3 * y, scales, means)
        bits = -torch.log2(likelihood).flatten(2).sum(2)
        return bits / 16


@planted(
    "eps-underflow", "gaussian_conditional.likelihood_lower_bound", "maximum max",
    fails=("16-true",), also=("underflow",), family="codec",
    moot=("bf16-true", "bf16-mixed"),
    task="regression",
)  # fmt: skip
def bits_of_surprising_pictures() -> Built:
    """InterDigitalInc/CompressAI: the floor of likelihoods is a buffer of 1e-9, zero in float16."""
    return taught(lambda: Codec(0.0), (drawn(300, 1, 8, 8, seed=8),))


@healthy(task="regression", precisions=FP16)
def bits_of_likely_pictures() -> Built:
    """InterDigitalInc/CompressAI: erfc of what is expected; the same floor, which nothing meets."""
    return taught(lambda: Codec(3.0), (drawn(300, 1, 8, 8, seed=8),), noise=0.1)
