"""Held-out views: homographies, points by exponentials, depths by focal lengths, matched points.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import Built, healthy, planted
from benchmarks.cases.reported_quantities import perceptron, taught
from benchmarks.cases.reported_tongues import decided, drawn


class Warp(nn.Module):
    """Features of another view at each of a few depths, by a projection of pixels."""

    def __init__(self, early: bool) -> None:
        super().__init__()
        self.early = early

    def forward(self, src: Tensor, proj: Tensor, depth: Tensor) -> Tensor:
        b, c, h, w = src.shape
        y, x = torch.meshgrid(
            torch.arange(h, dtype=src.dtype, device=src.device),
            torch.arange(w, dtype=src.dtype, device=src.device),
            indexing="ij",
        )
        xyz = torch.stack((x.flatten(), y.flatten(), torch.ones_like(x).flatten()))
        rotated = torch.matmul(proj[:, :, :3], xyz.unsqueeze(0).expand(b, -1, -1)).unsqueeze(2)
        far = depth.view(b, 1, -1, 1)
        if self.early:
            there = rotated + proj[:, :, 3:].unsqueeze(-1) / far
        else:
            there = rotated * far + proj[:, :, 3:].unsqueeze(-1)
        xy = there[:, :2] / there[:, 2:3]
        grid = torch.stack((xy[:, 0] / ((w - 1) / 2) - 1, xy[:, 1] / ((h - 1) / 2) - 1), dim=-1)
        warped = F.grid_sample(
            src, grid.to(src.dtype), mode="bilinear", padding_mode="zeros", align_corners=True
        )
        return warped.view(b, c, -1, h, w)


class Swept(nn.Module):
    """Two views, a volume of variances over depths, and the likeliest depth of the picture."""

    def __init__(self, early: bool) -> None:
        super().__init__()
        self.features, self.warp = nn.Conv2d(1, 6, 3, padding=1), Warp(early)
        self.regularize = nn.Conv3d(6, 1, (1, 3, 3), padding=(0, 1, 1))
        with torch.no_grad():
            self.regularize.weight.copy_(-self.regularize.weight.abs() * 30)

    def forward(self, ref: Tensor, src: Tensor, proj: Tensor, depth: Tensor) -> Tensor:
        ref, warped = self.features(ref).unsqueeze(2), self.warp(self.features(src), proj, depth)
        mean = (ref + warped) / 2
        variance = (ref - mean) ** 2 + (warped - mean) ** 2
        return self.regularize(variance).mean((1, 3, 4))


def two_views() -> tuple[Tensor, ...]:
    """Smooth pictures 8 high and 160 wide, moved by a tenth of a metre; depths in millimetres."""
    t = torch.arange(160) / 160
    waves = sum(
        drawn(96, 1, 1, seed=i) * (2 * torch.pi * i * t + 6 * drawn(96, 1, 1, seed=i + 20)).sin()
        for i in range(1, 9)
    )
    ref = waves.unsqueeze(1).expand(-1, -1, 8, -1).contiguous()
    depth = torch.linspace(425, 935, 6).expand(96, -1).contiguous()
    which = torch.arange(96) % 6
    shift = 6000.0 / depth[0, which]
    place = (torch.arange(160) - shift.unsqueeze(1)) / 159 * 2 - 1
    grid = torch.stack((place.unsqueeze(1).expand(-1, 8, -1), torch.zeros(96, 8, 160)), -1)
    src = F.grid_sample(ref, grid, align_corners=True)
    proj = torch.eye(3, 4).repeat(96, 1, 1)
    proj[:, 0, 3] = 6000.0
    return ref, src, proj, depth


@planted("overflow", "warp", "mul", fails=("16-true",), family="projection")
def pixels_times_their_depth() -> Built:
    """kwea123/CasMVSNet_pl#11: a pixel of 160 times 900 millimetres is beyond float16."""
    return settled_views(early=False)


@healthy()
def pixels_before_their_depth() -> Built:
    """kwea123/CasMVSNet_pl#11: translations are divided by the depth, and nothing is multiplied."""
    return settled_views(early=True)


def settled_views(early: bool) -> Built:
    """The depth that two views have, as the model itself finds it."""
    return decided(lambda: Swept(early), two_views(), 40)


class PointHead(nn.Module):
    """DUSt3R's: a direction and a distance, grown by expm1, and how sure it is."""

    def forward(self, out: Tensor) -> tuple[Tensor, Tensor]:
        xyz, conf = out[..., :3], out[..., 3]
        d = xyz.norm(dim=-1, keepdim=True)
        xyz = xyz / d.clip(min=1e-8) * torch.expm1(d)
        return xyz, 1 + conf.exp().clip(max=1e4)


class Pointed(nn.Module):
    """Points of a few patches; the places of those that are near, and the mean of them."""

    def __init__(self, far: float) -> None:
        super().__init__()
        self.body, self.points = nn.Linear(10, 4), PointHead()
        self.head = perceptron(4, 2)
        with torch.no_grad():
            self.body.weight[:3] *= far
            self.body.weight[3] *= 2

    def forward(self, x: Tensor) -> Tensor:
        xyz, conf = self.points(self.body(x))
        near = xyz / (1 + xyz.abs())
        weight = conf / conf.sum(1, keepdim=True)
        pooled = torch.cat((near, xyz.norm(dim=-1, keepdim=True).log1p() / 10), dim=-1)
        return self.head((pooled * weight.unsqueeze(-1)).sum(1).to(self.head[0].weight.dtype))


@planted(
    "overflow",
    "points",
    "expm1 mul",
    fails=("16-true",),
    fails_cpu=("16-mixed",),
    task="regression",
    family="points",
)
def points_as_far_as_the_sky() -> Built:
    """naver/dust3r: expm1 of twelve is beyond float16, and the sky is that far away."""
    return taught(lambda: Pointed(5.5), (drawn(240, 12, 10, seed=3),))


@healthy(task="regression")
def points_within_a_room() -> Built:
    """naver/dust3r: a norm's floor of 1e-8 that nothing reaches, and distances of some metres."""
    return taught(lambda: Pointed(1.5), (drawn(240, 12, 10, seed=3),))


class Metric(nn.Module):
    """Depth Pro: a canonical inverse depth, a field of view, and metres from both."""

    def __init__(self, width: int = 1536) -> None:
        super().__init__()
        self.width, self.encoder = width, nn.Conv2d(1, 8, 3, padding=1)
        self.depth, self.fov = nn.Conv2d(8, 1, 1), perceptron(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.encoder(x))
        canonical = F.softplus(self.depth(x))
        fov_deg = 55 + 12 * self.fov(x.mean((2, 3)))
        f_px = 0.5 * self.width / torch.tan(0.5 * torch.deg2rad(fov_deg.to(torch.float)))
        inverse = canonical * (self.width / f_px).view(-1, 1, 1, 1)
        inverse = F.interpolate(inverse, size=(6, 6), mode="bilinear", align_corners=False)
        return (1.0 / torch.clamp(inverse, min=1e-4, max=1e4)).flatten(1)


@healthy(task="regression")
def metres_by_a_field_of_view() -> Built:
    """apple/ml-depth-pro: focal lengths of 1536 pixels, and one over 1e-4, which float16 holds."""
    return taught(Metric, (drawn(160, 1, 8, 8, seed=4) + drawn(160, 1, 1, 1, seed=5),))


class Assignment(nn.Module):
    """LightGlue's: a softmax both ways in logarithms, times how likely a point has a partner."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.dim, self.matchability = dim, nn.Linear(dim, 1)
        self.final_proj = nn.Linear(dim, dim)
        with torch.no_grad():
            self.final_proj.weight.copy_(torch.eye(dim) * 6)

    def forward(self, d0: Tensor, d1: Tensor) -> Tensor:
        m0, m1 = (self.final_proj(d) / self.dim**0.25 for d in (d0, d1))
        sim = torch.einsum("bmd,bnd->bmn", m0, m1)
        z0, z1 = self.matchability(d0), self.matchability(d1)
        certain = F.logsigmoid(z0) + F.logsigmoid(z1).transpose(1, 2)
        scores = F.log_softmax(sim, 2) + F.log_softmax(sim.transpose(1, 2), 2).transpose(1, 2)
        out = sim.new_full((len(sim), sim.shape[1] + 1, sim.shape[2] + 1), 0)
        out[:, :-1, :-1] = scores + certain
        out[:, :-1, -1] = F.logsigmoid(-z0.squeeze(-1))
        out[:, -1, :-1] = F.logsigmoid(-z1.squeeze(-1))
        return out


class Matched(nn.Module):
    """Descriptors, Fourier features of where they are, and what the first point is matched with."""

    def __init__(self) -> None:
        super().__init__()
        self.wr, self.assign = nn.Linear(2, 8, bias=False), Assignment()

    def forward(self, d0: Tensor, d1: Tensor, size: Tensor) -> Tensor:
        shift, scale = size / 2, size.max(-1).values / 2
        place = (d0[..., :2] * 100 + 300 - shift.unsqueeze(1)) / scale.view(-1, 1, 1)
        angles = self.wr(place.to(self.wr.weight.dtype))
        turned = torch.cat((angles.cos(), angles.sin()), dim=-1) * 0.1
        return self.assign(d0 + turned.to(d0.dtype), d1)[:, 0, :-1]


@healthy()
def points_matched_both_ways() -> Built:
    """cvg/LightGlue: logarithms of two softmaxes, of which some are -200; sizes of a picture."""
    d1 = drawn(240, 12, 16, seed=6)
    order = drawn(240, 12, seed=7).argsort(1).unsqueeze(-1).expand(-1, -1, 16)
    d0 = d1.gather(1, order) + 0.3 * drawn(240, 12, 16, seed=8)
    size = torch.tensor([[640.0, 480.0]]).repeat(240, 1)
    return decided(Matched, (d0, d1, size))
