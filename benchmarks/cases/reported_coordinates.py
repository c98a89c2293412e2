"""Held-out coordinates: clouds far away, pillars, atoms, sensors and points of a ball.

Each is written in the shape its project has; what is not trained has its own outputs as labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import FP16, TRUE, Built, built, fitted, healthy, planted
from benchmarks.cases.reported_quantities import perceptron, taught
from benchmarks.cases.reported_tongues import decided, drawn

BF16 = ("bf16-true", "bf16-mixed")


def centered(xyz: Tensor) -> tuple[Tensor, Tensor]:
    """Points about their centroid, within a unit ball, and how large they were."""
    xyz = xyz - xyz.mean(dim=1, keepdim=True)
    radius = xyz.pow(2).sum(-1).max(dim=1).values.sqrt()
    return xyz / radius[:, None, None], radius


class CloudNet(nn.Module):
    """Shared layers on points, the largest of each feature."""

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 64), nn.ReLU())
        self.head = nn.Linear(65, 4)

    def forward(self, points: Tensor) -> Tensor:
        xyz, radius = centered(points)
        return self.head(torch.cat([self.point(xyz).amax(1), radius[:, None]], dim=1))


def clouds(count: int, origin: float, seed: int) -> tuple[Tensor, Tensor]:
    """Spheres, cubes, rods and plates of a metre, somewhere in a scene."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 64, 3, generator=random)
    label = torch.randint(0, 4, (count,), generator=random)
    unit, box = F.normalize(x, dim=-1), x / x.abs().amax(-1, keepdim=True)
    rod, plate = box * torch.tensor([1.0, 0.3, 0.3]), box * torch.tensor([1.0, 1.0, 0.3])
    shape = torch.stack([unit, box * 0.8, rod, plate], 1)[torch.arange(count), label]
    place = origin * (0.5 + torch.rand(count, 1, 3, generator=random))
    return shape * 0.6 + 0.02 * x + place, label


@planted("cancellation", "", "sub _to_copy mean", fails=TRUE, also=("precision-loss", "absorption"),
         family="coordinates")  # fmt: skip
def clouds_in_the_coordinates_of_a_scene() -> Built:
    """viser#427: 300 metres from the origin, float16 knows places to 25 centimetres."""
    return built(fitted(CloudNet, clouds(600, 300.0, 0)), clouds(400, 300.0, 1))


@dataclass
class Voxels:
    """Points in pillars, how many are real, and which pillar each is."""

    features: Tensor
    num_points: Tensor
    coors: Tensor


class PillarFeatureNet(nn.Module):
    """Offsets from a pillar's mean and centre, written into views as mmdetection3d has it."""

    def __init__(self, tanh: bool) -> None:
        super().__init__()
        self.tanh, self.vx, self.x_offset = tanh, 1.0, 0.5 - 8.0
        self.linear, self.norm = nn.Linear(9, 24, bias=False), nn.BatchNorm1d(24, eps=1e-3)

    def forward(self, voxels: Voxels) -> Tensor:
        features = voxels.features.clone()
        count = voxels.num_points.type_as(features).view(-1, 1, 1)
        if self.tanh:
            features[..., 3].tanh_()
        mean = features[:, :, :3].sum(dim=1, keepdim=True) / count
        f_cluster = features[:, :, :3] - mean
        f_center = features[:, :, :2].clone()
        for axis in (0, 1):
            at = voxels.coors[:, axis].type_as(features).unsqueeze(1)
            f_center[:, :, axis] -= at * self.vx + self.x_offset
        features = torch.cat([features, f_cluster, f_center], dim=-1)
        there = torch.arange(features.shape[1], device=features.device)[None]
        features *= (there < voxels.num_points[:, None]).type_as(features).unsqueeze(-1)
        x = self.norm(self.linear(features).transpose(1, 2)).transpose(1, 2)
        return F.relu(x).max(dim=1).values


class PointPillars(nn.Module):
    """One pillar each: what is in it. Intensities are as the sensor gives them."""

    def __init__(self, tanh: bool) -> None:
        super().__init__()
        self.voxel_encoder, self.head = PillarFeatureNet(tanh), nn.Linear(24, 3)

    def forward(self, *, points: Tensor, number: Tensor, coors: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.voxel_encoder(Voxels(points, number, coors)))}


def pillars(tanh: bool) -> Built:
    """Pillars of points; a few returns of a retro-reflector are brighter than 65504."""
    random = torch.Generator().manual_seed(2)
    coors = torch.randint(0, 16, (384, 2), generator=random)
    number = torch.randint(4, 17, (384,), generator=random)
    points = torch.rand(384, 16, 4, generator=random) * torch.tensor([1.0, 1.0, 3.0, 0.8])
    points[:, :, :2] += coors[:, None] - 8.0
    points[:, 0, 3] = torch.where(torch.rand(384, generator=random) < 0.2, 9e4, 0.5)
    data = {"points": points, "number": number, "coors": coors}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = PointPillars(tanh)
        scale = 1.0 if tanh else 2e-5
        model.voxel_encoder.linear.weight[:, 3] *= scale
        label = model.eval()(**data)["logits"].argmax(1)
    return model, [({k: v[i : i + 128] for k, v in data.items()}, label[i : i + 128])
                   for i in (0, 128, 256)]  # fmt: skip


@planted("overflow", "voxel_encoder.linear", "_to_copy linear mm addmm", fails=FP16,
         moot=("bf16-true",), family="coordinates")  # fmt: skip
def pillars_with_raw_intensity() -> Built:
    """mmdetection3d#299: Waymo's intensity of a reflector is no number of float16."""
    return pillars(False)


@healthy(precisions=("16-true", "16-mixed", "bf16-mixed"))
def pillars_with_bounded_intensity() -> Built:
    """mmdetection3d#299, with the tanh that it was given: of infinity it is one."""
    return pillars(True)


def lj(d: Tensor, c6: Tensor, c12: Tensor) -> Tensor:
    """Lennard-Jones by its two coefficients, as force fields tabulate it."""
    r2 = (d * d).sum(-1)
    r6 = r2 * r2 * r2
    r12 = r6 * r6
    return c12 / r12 - c6 / r6


class Dispersion(nn.Module):
    """Van der Waals energy of a cluster, scaled to units of its pairs or not."""

    def __init__(self, ratio: bool) -> None:
        super().__init__()
        self.sigma, self.eps = nn.Parameter(torch.tensor(3.4)), nn.Parameter(torch.tensor(0.24))
        self.ratio = ratio

    def forward(self, pos: Tensor) -> Tensor:
        i, j = torch.triu_indices(pos.shape[1], pos.shape[1], offset=1, device=pos.device)
        d = pos[:, i] - pos[:, j]
        if self.ratio:
            s2 = self.sigma**2 / d.square().sum(-1)
            s6 = s2**3
            return (4 * self.eps * (s6 * s6 - s6)).sum(1)
        s6 = self.sigma**6
        return lj(d, 4 * self.eps * s6, 4 * self.eps * s6 * s6).sum(1)


class Cluster(nn.Module):
    """A dispersion energy and a learned one."""

    def __init__(self, ratio: bool) -> None:
        super().__init__()
        self.vdw, self.net = Dispersion(ratio), perceptron(24, 1)

    def forward(self, pos: Tensor) -> Tensor:
        return self.vdw(pos) + 0.1 * self.net(pos.flatten(1) / 4).squeeze(1)


def eight_atoms() -> tuple[Tensor]:
    """A shaken cube of argon, 3.8 apart."""
    grid = torch.cartesian_prod(*[torch.tensor([-1.9, 1.9])] * 3)
    return (grid + 0.25 * drawn(400, 8, 3, seed=3).clamp(-1.5, 1.5),)


@planted("overflow", "vdw", "mul pow", fails=("16-true",), moot=("bf16-true",),
         family="coordinates", task="regression")  # fmt: skip
def repulsion_by_the_twelfth_power() -> Built:
    """nvMolKit#266: the twelfth power of 3 is 531441, and c / inf a repulsion of none."""
    return taught(partial(Cluster, False), eight_atoms(), 0.02)


@healthy(task="regression", precisions=("16-true", "16-mixed", "bf16-mixed"))
def repulsion_by_ratios() -> Built:
    """The same energies of sigma / r, whose powers are small."""
    return taught(partial(Cluster, True), eight_atoms(), 0.02)


class RunningMeanAndVar(nn.Module):
    """What habitat's policies see first: observations by statistics of all before them."""

    def __init__(self, mean: Tensor, var: Tensor) -> None:
        super().__init__()
        self.register_buffer("_mean", mean)
        self.register_buffer("_var", var)

    def forward(self, x: Tensor) -> Tensor:
        inv_stdev = torch.rsqrt(torch.max(self._var, torch.full((), 1e-2, device=x.device)))
        return torch.addcmul(-self._mean * inv_stdev, x, inv_stdev)


class Policy(nn.Module):
    """Sensors of an agent outdoors: pressure, temperature, heading, range."""

    def __init__(self) -> None:
        super().__init__()
        mean, var = torch.tensor([1013.0, 290.0, 0.0, 40.0]), torch.tensor([25.0, 64.0, 1.0, 300.0])
        self.running_mean_and_var, self.actor = RunningMeanAndVar(mean, var), perceptron(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.actor(self.running_mean_and_var(x))


@planted(
    "cancellation", "running_mean_and_var", "addcmul", fails=("bf16-true",), moot=("16-true",),
    also=("precision-loss", "absorption"), family="coordinates",
)  # fmt: skip
def sensors_by_running_statistics() -> Built:
    """habitat-lab#578: 1013 hPa with a spread of 5, of which bfloat16 knows every fourth."""
    model = Policy()
    seen, mean = model.running_mean_and_var, model.running_mean_and_var._mean
    return decided(Policy, (mean + drawn(600, 4, seed=4) * seen._var.sqrt(),))


def mobius_add(x: Tensor, y: Tensor) -> Tensor:
    """The sum of two points of the ball."""
    xy, x2, y2 = ((a * b).sum(-1, keepdim=True) for a, b in ((x, y), (x, x), (y, y)))
    return ((1 + 2 * xy + y2) * x + (1 - x2) * y) / (1 + 2 * xy + x2 * y2).clamp_min(1e-15)


def artanh(x: Tensor) -> Tensor:
    """The inverse of tanh, off its poles."""
    x = x.clamp(-1 + 1e-7, 1 - 1e-7)
    return (torch.log(1 + x) - torch.log(1 - x)) * 0.5


class Prototypes(nn.Module):
    """Distances to a point for each class, where features have been mapped into the ball."""

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.radius = radius
        self.points = nn.Parameter(0.9 * F.normalize(drawn(6, 8, seed=5), dim=-1))

    def forward(self, u: Tensor) -> Tensor:
        norm = u.norm(dim=-1, keepdim=True).clamp_min(1e-5)
        x = torch.tanh(norm * self.radius) * u / norm
        apart = mobius_add(-x.unsqueeze(1), self.points.unsqueeze(0))
        return -2 * artanh(apart.norm(dim=-1))


class Hyperbolic(nn.Module):
    """An encoder and prototypes."""

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.encoder, self.ball = perceptron(10, 8), Prototypes(radius)

    def forward(self, x: Tensor) -> Tensor:
        return self.ball(self.encoder(x) * math.sqrt(8))


@planted("absorption", "ball", "clamp log sub rsub tanh add norm linalg_vector_norm div mul",
         fails=(*TRUE, "bf16-mixed"), moot=("16-mixed",),
         also=("precision-loss", "cancellation", "overflow", "eps-underflow"),
         family="coordinates")  # fmt: skip
def prototypes_near_the_edge_of_a_ball() -> Built:
    """geoopt#45, hyrnn: clipped at 1 - 1e-7, which is one; points at the edge are all as far."""
    return decided(partial(Hyperbolic, 2.5), (drawn(500, 10, seed=6),))
