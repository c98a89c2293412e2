"""Held-out pools, powers, angles and bases: formulas written out as papers print them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import FP16, TRUE, Built, built, fitted, healthy, planted


class SoftMaximum(nn.Module):
    """Log-mean-exp over a map, as weakly supervised localisers pool."""

    def __init__(self, written: bool) -> None:
        super().__init__()
        self.written = written

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        if self.written:
            return torch.log(torch.exp(x).mean(-1))
        return torch.logsumexp(x, -1) - math.log(x.shape[-1])


class Maps(nn.Module):
    """A map of evidence per digit."""

    def __init__(self, written: bool) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(),
            nn.Conv2d(24, 10, 3, padding=1),
        )  # fmt: skip
        self.pool = SoftMaximum(written)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.maps(x))


def pooled(written: bool) -> Built:
    """Trained with the kernel."""
    train, test = data.digits()
    model = fitted(lambda: Maps(False), train, epochs=25)
    model.pool.written = written
    return built(model, test)


@planted("overflow", "pool", "exp", fails=("16-true",), fails_cpu=("16-mixed",), family="pooling")
def soft_maximum_written_out() -> Built:
    """coreai-torch#22, coremltools#2725: log(sum(exp(x))) ends at 11 in float16."""
    return pooled(True)


@healthy()
def soft_maximum_by_the_kernel() -> Built:
    """The same by torch.logsumexp."""
    return pooled(False)


class Interactions(nn.Module):
    """DeepFM's second order: half of the square of the sum less the sum of squares."""

    def __init__(self, fields: int, dim: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(fields, dim) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        v = x.unsqueeze(-1) * self.vectors
        return 0.5 * (v.sum(1).pow(2) - v.pow(2).sum(1)).sum(-1, keepdim=True)


class DeepFM(nn.Module):
    """Counts of what a user did: first order, second order, a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.fm, self.norm = Interactions(12, 8), nn.BatchNorm1d(1)
        self.deep = nn.Sequential(
            nn.BatchNorm1d(12), nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        second = self.norm(self.fm(x))
        return self.deep(x) + torch.cat([second, -second], -1)


@planted("overflow", "fm", "pow sum mul", fails=("16-true",),
         moot=("bf16-true",), family="interactions")  # fmt: skip
def interactions_of_counts() -> Built:
    """DeepCTR-Torch and its kin: twelve counts of hundreds, and the square of their sum."""
    random = torch.Generator().manual_seed(4)
    x = torch.rand(1500, 12, generator=random).mul(6.5).exp().floor()
    y = ((x[:, 0] > 20).long() + (x[:, 1] > 40).long() + (x[:, 2] > 60).long() > 1).long()
    return built(fitted(DeepFM, (x[:1000], y[:1000]), epochs=30), (x[1000:], y[1000:]))


class Flatness(nn.Module):
    """Spectral flatness by bands of 16: geometric over arithmetic mean."""

    def __init__(self, by_logarithms: bool) -> None:
        super().__init__()
        self.by_logarithms = by_logarithms

    def forward(self, x: Tensor) -> Tensor:
        power = torch.fft.rfft(x.float())[:, 1:].abs().square()
        power = (power / power.mean(-1, keepdim=True)).to(x.dtype).view(len(x), -1, 16)
        if self.by_logarithms:
            return power.clamp(1e-5).log().mean(-1).exp()
        return power.clamp(1e-5).prod(-1) ** (1 / 16)


class Voices(nn.Module):
    """How much of a sound is noise, from its flatness."""

    def __init__(self, by_logarithms: bool) -> None:
        super().__init__()
        self.flatness = Flatness(by_logarithms)
        self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.flatness(x))


def voices(by_logarithms: bool) -> Built:
    """Three kinds of noise: white, rumbling, hissing, with a tone each."""
    random = torch.Generator().manual_seed(9)
    tone, _ = data.tones(1200, 6, 256)
    kind = torch.arange(1200) % 3
    noise = torch.randn(1200, 256, generator=random)
    rough = [noise, noise.cumsum(-1) / 4, noise.diff(dim=-1, prepend=noise[:, :1]) * 3]
    x = torch.stack(rough, 1)[torch.arange(1200), kind] + tone
    parts = x / x.std(-1, keepdim=True), kind
    model = fitted(lambda: Voices(True), tuple(p[:800] for p in parts), epochs=40)
    model.flatness.by_logarithms = by_logarithms
    return built(model, tuple(p[800:] for p in parts))


@planted("underflow", "flatness", "prod", fails=("16-true",), also=("overflow",), family="means")
def geometric_mean_by_a_product() -> Built:
    """librosa's flatness, ported: a product of 16 powers far below one, then the root."""
    return voices(False)


@healthy()
def geometric_mean_by_logarithms() -> Built:
    """The same by the mean of logarithms; the floor of 1e-5 is a number of float16."""
    return voices(True)


class Squash(nn.Module):
    """Capsules' nonlinearity with Keras' epsilon under the root."""

    def forward(self, s: Tensor) -> Tensor:
        square = s.square().sum(-1, keepdim=True)
        return s * square / (1 + square) / torch.sqrt(square + 1e-7)


class Capsules(nn.Module):
    """Sixteen capsules of eight, and one capsule a class whose length is the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 128, bias=False)
        self.second = nn.Linear(128, 160, bias=False)
        self.squash = Squash()

    def forward(self, x: Tensor) -> Tensor:
        x = self.squash(F.relu(self.first(x.flatten(1))).unflatten(1, (16, 8)))
        x = self.squash(self.second(x.flatten(1)).unflatten(1, (10, 16)))
        return 12 * torch.linalg.vector_norm(x, dim=-1)


@healthy(precisions=FP16)
def squash_of_a_blank_page() -> Built:
    """Pytorch-CapsuleNet#13 is of its kin: 1e-7 is a number of float16, 1e-8 is none."""
    train, (x, y) = data.digits()
    model = fitted(Capsules, train, epochs=20)
    return built(model, (torch.cat([x, torch.zeros(3, 1, 8, 8)]), torch.cat([y, y[:3] * 0])))


class FourierFeatures(nn.Module):
    """Sines and cosines of many random projections of a place."""

    def __init__(self, count: int, scale: float) -> None:
        super().__init__()
        self.register_buffer("directions", scale * torch.randn(2, count))

    def forward(self, x: Tensor) -> Tensor:
        angles = 2 * math.pi * x @ self.directions
        return torch.cat([angles.sin(), angles.cos()], -1)


@healthy()
def fourier_features_of_a_picture() -> Built:
    """segment-anything and NeRF: an angle of 100 is known to a half, and 64 of them are enough.

    It was labelled as failing in bfloat16; the judge turned that round.
    """
    x, y = data.picture(48)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))

    def make() -> nn.Module:
        body = (nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 2))
        names = {"features": FourierFeatures(64, 8.0), "body": nn.Sequential(*body)}
        model = nn.Sequential()
        for name, part in names.items():
            model.add_module(name, part)
        return model

    x, y = x[order], y[order]
    return built(fitted(make, (x, y), epochs=30), (x, y), 512)


class Angle(nn.Module):
    """The angle between two unit vectors."""

    def __init__(self, by_cosine: bool) -> None:
        super().__init__()
        self.by_cosine = by_cosine

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        cosine = (a * b).sum(-1, keepdim=True)
        if self.by_cosine:
            return torch.acos(cosine.clamp(-1, 1))
        return torch.atan2(torch.linalg.cross(a, b).norm(dim=-1, keepdim=True), cosine)


class Gaze(nn.Module):
    """How far two eyes converge, in degrees, from their directions."""

    def __init__(self, by_cosine: bool) -> None:
        super().__init__()
        self.angle, self.unit = Angle(by_cosine), 180 / math.pi

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.angle(a, b) * self.unit


def gazes(by_cosine: bool) -> Built:
    """Directions that differ by half a degree to four."""
    random = torch.Generator().manual_seed(2)
    a = F.normalize(torch.randn(600, 3, generator=random), dim=-1)
    aside = F.normalize(torch.linalg.cross(a, torch.randn(600, 3, generator=random)), dim=-1)
    y = (0.5 + 3.5 * torch.rand(600, 1, generator=random)) * math.pi / 180
    return built(Gaze(by_cosine), (a, y.cos() * a + y.sin() * aside, y * 180 / math.pi))


@planted("cancellation", "angle", "sum acos mul", fails=TRUE, task="regression",
         also=("precision-loss", "absorption"), family="angles")  # fmt: skip
def angle_by_its_cosine() -> Built:
    """pytorch3d's so3_rotation_angle, l2cs: the cosine of two degrees is 0.9994, as is that of one.

    Under autocast nothing here is 16-bit.
    """
    return gazes(True)
