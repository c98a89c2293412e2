"""Held-out models that compare features with features: volumes, cosines, distances, neighbours."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import FP16, TRUE, Built, built, fitted, healthy, planted


class Correlation(nn.Module):
    """All pairs of places of two views, divided by a root as RAFT does."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        root = a.shape[1] ** 0.5
        if self.first:
            return (a / root).transpose(1, 2) @ b
        return a.transpose(1, 2) @ b / root


class Stereo(nn.Module):
    """By how many places is one line shifted against the other?"""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(1, 32, 5, padding=2), nn.ReLU(), nn.Conv1d(32, 64, 5, padding=2)
        )
        self.volume, self.scale = Correlation(first), 1.0

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        volume = self.volume(self.features(left), self.features(right))
        shifts = [volume.diagonal(d, 1, 2).mean(-1) for d in range(8)]
        return torch.stack(shifts, -1) * self.scale


def stereo(first: bool) -> Built:
    """Lines of noise, the second shifted by up to seven places, and features of 40 and more."""
    random = torch.Generator().manual_seed(3)
    wide, shift = torch.randn(1600, 1, 40, generator=random), torch.arange(1600) % 8
    right = torch.stack([w.roll(int(s), -1) for w, s in zip(wide, shift, strict=True)])
    right = right + 0.8 * torch.randn(1600, 1, 40, generator=random)
    parts = (wide[..., 8:], right[..., 8:], shift)
    model = fitted(lambda: Stereo(True), tuple(p[:1000] for p in parts), epochs=15)
    with torch.no_grad():
        size = model.features(wide[:100, :, 8:]).square().sum(1).max() ** 0.5
        model.scale = float(size / 400) ** 2
        for tensor in model.features[2].parameters():
            tensor.mul_(400 / size)
    model.volume.first = first
    return built(model, tuple(p[1000:] for p in parts))


@planted("overflow", "volume", "bmm matmul", fails=FP16, family="volumes")
def volume_divided_afterwards() -> Built:
    """RAFT-Stereo#70: the product of features is divided by a root, once it is infinite."""
    return stereo(False)


@healthy()
def volume_divided_first() -> Built:
    """The same volume, the features of one view divided before."""
    return stereo(True)


class CosineHead(nn.Module):
    """Cosines with ten prototypes, sharpened."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(10, width))

    def forward(self, x: Tensor) -> Tensor:
        return 16 * F.cosine_similarity(x.unsqueeze(1), self.prototypes, dim=-1)


class DistanceHead(nn.Module):
    """Minus the distance from ten prototypes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(10, width))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(x, self.prototypes)


class Prototypes(nn.Module):
    """Features without a bias, a head of prototypes."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 32, bias=False)
        )
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@planted("eps-underflow", "head", "cosine_similarity linalg_vector_norm clamp_min div",
         fails=("16-true",), fails_cpu=("16-mixed",),
         moot=("bf16-true", "bf16-mixed"), family="cosines")  # fmt: skip
def cosine_of_a_blank_page() -> Built:
    """pytorch#69512, #51912: the kernel's epsilon of 1e-8 is zero in float16, and a page blank."""
    train, (x, y) = data.digits()
    model = fitted(lambda: Prototypes(CosineHead(32)), train)
    return built(model, (torch.cat([x, torch.zeros(3, 1, 8, 8)]), torch.cat([y, y[:3] * 0])))


def by_distance(size: int) -> Built:
    """The same model, in batches of that many: above 25 rows cdist is a product of matrices."""
    train, test = data.digits()
    return built(fitted(lambda: Prototypes(DistanceHead(32)), train), test, size)


@planted("unsupported-op", "head", "_cdist_forward cdist", fails=TRUE, family="distances")
def distances_of_a_few() -> Built:
    """pytorch's cdist has no kernel of 16 bits for batches of 25 and less."""
    return by_distance(16)


@healthy()
def distances_of_many() -> Built:
    """The same distances, which larger batches take from a product of matrices."""
    return by_distance(128)


class AlexStem(nn.Module):
    """AlexNet's first layers on pixels of 0 to 255: a response is divided by its neighbours'."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.lrn = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0)
        self.conv2, self.head = nn.Conv2d(16, 32, 3, stride=2), nn.Linear(288, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(self.lrn(F.relu(self.conv(x)))))
        return self.head(x.flatten(1))


@planted(
    "overflow",
    "lrn",
    "mul",
    fails=FP16,
    also=("unsupported-op",),
    moot=("bf16-true", "bf16-mixed"),
    family="norms",
)
def response_norm_of_bytes() -> Built:
    """AMDMIGraphX#850: Inception v1 in float16, and the squares of its local response norm."""
    (x, y), (tx, ty) = data.digits()
    return built(fitted(AlexStem, (x * 1020, y), epochs=20), (tx * 1020, ty))
