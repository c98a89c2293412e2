"""Held-out sights: cones of rays, frustums of cameras, holes in pictures.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import FP16, TRUE, Built, healthy, planted
from benchmarks.cases.reported_quantities import perceptron
from benchmarks.cases.reported_structures import settled
from benchmarks.cases.reported_tongues import drawn


class Gaussians(NamedTuple):
    """What a cone is made of: means and diagonal covariances along a ray."""

    means: Tensor
    covs: Tensor


def expected_sin(x: Tensor, x_var: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of a sine of what is normally distributed, as mip-NeRF has them."""
    y = torch.exp(-0.5 * x_var) * torch.sin(x)
    y_var = 0.5 * (1 - torch.exp(-2 * x_var) * torch.cos(2 * x)) - y**2
    y_var = torch.maximum(torch.zeros_like(y_var), y_var)
    return y, y_var


class IntegratedPositionalEncoder(nn.Module):
    """Sines of 1, 2, 4, … times a place, each weakened by how uncertain it is."""

    def __init__(self, min_deg: int, max_deg: int) -> None:
        super().__init__()
        self.degrees = range(min_deg, max_deg)

    def forward(self, rays: Gaussians) -> Tensor:
        means, covs = rays
        scales = torch.tensor([2**i for i in self.degrees], device=means.device)
        y = (means.unsqueeze(-2) * scales.unsqueeze(-1)).flatten(-2)
        y_var = (covs.unsqueeze(-2) * scales.unsqueeze(-1) ** 2).flatten(-2)
        return expected_sin(
            torch.cat([y, y + 0.5 * math.pi], dim=-1), torch.cat([y_var] * 2, dim=-1)
        )[0]


class MipField(nn.Module):
    """Cones of eight parts, each by its encoding, and what they show."""

    def __init__(self, max_deg: int) -> None:
        super().__init__()
        self.encoder = IntegratedPositionalEncoder(0, max_deg)
        self.field, self.head = perceptron(6 * max_deg, 24), nn.Linear(24, 4)

    def forward(self, means: Tensor, covs: Tensor) -> Tensor:
        seen = self.field(self.encoder(Gaussians(means, covs)))
        return self.head(seen.mean(1) * 6)


def cones() -> tuple[Tensor, Tensor]:
    """Places in a room of a few metres, and how far each part of a cone reaches, squared."""
    return 1.5 * drawn(400, 8, 3, seed=1), (0.35 * drawn(400, 8, 3, seed=2).exp()) ** 2


@planted("overflow", "encoder", "mul", fails=("16-true",), family="rays")
def cones_by_their_highest_octave() -> Built:
    """google/mipnerf and its ports: 2^15 times three metres is infinite, and its weight nothing."""
    return settled(partial(MipField, 16), cones())


@healthy()
def cones_by_twelve_octaves() -> Built:
    """The same encoding to 2^11: no angle leaves float16, and those it garbles weigh nothing."""
    return settled(partial(MipField, 12), cones())


class QuickCumsum(torch.autograd.Function):
    """Sums of the points in each cell, by differences of a running sum over all of them."""

    @staticmethod
    def forward(ctx, x, geom_feats, ranks):
        x = x.cumsum(0)
        kept = torch.ones(x.shape[0], device=x.device, dtype=torch.bool)
        kept[:-1] = ranks[1:] != ranks[:-1]
        x, geom_feats = x[kept], geom_feats[kept]
        x = torch.cat((x[:1], x[1:] - x[:-1]))
        ctx.save_for_backward(kept)
        ctx.mark_non_differentiable(geom_feats)
        return x, geom_feats

    @staticmethod
    def backward(ctx, gradx, gradgeom):
        (kept,) = ctx.saved_tensors
        back = torch.cumsum(kept, 0)
        back[kept] -= 1
        return gradx[back], None, None


class LiftSplat(nn.Module):
    """Features of an image, spread over depths, and gathered in cells of the ground."""

    def __init__(self, typed: bool, depths: int = 8, channels: int = 6, cells: int = 6) -> None:
        super().__init__()
        self.typed, self.d, self.c, self.n = typed, depths, channels, cells
        self.depthnet = nn.Conv2d(3, depths + channels, 3, padding=1)
        self.bevencode = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3)
        )
        self.head = nn.Linear(16, 4)
        across = torch.arange(6).view(1, 1, 6) - 2.5
        depth = torch.arange(depths).view(depths, 1, 1) + 1.0
        x = (across * depth / depths + 2.5).round().clamp(0, cells - 1)
        y = (depth * (cells - 1) / depths).round()
        geom = torch.stack(torch.broadcast_tensors(x, y.expand(depths, 6, 6)), -1)
        self.register_buffer("geom", geom.long())

    def voxel_pooling(self, geom: Tensor, x: Tensor) -> Tensor:
        b, c = x.shape[0], self.c
        x = x.reshape(-1, c)
        place = torch.arange(b, device=x.device).repeat_interleave(geom.shape[0])
        geom = torch.cat([geom.repeat(b, 1), place.unsqueeze(1)], 1)
        ranks = (geom[:, 2] * self.n + geom[:, 1]) * self.n + geom[:, 0]
        order = ranks.argsort()
        x, geom, ranks = x[order], geom[order], ranks[order]
        x, geom = QuickCumsum.apply(x, geom, ranks)
        kind = {"dtype": x.dtype} if self.typed else {}
        final = torch.zeros((b, c, self.n, self.n), device=x.device, **kind)
        final[geom[:, 2], :, geom[:, 1], geom[:, 0]] = x
        return final

    def forward(self, image: Tensor) -> Tensor:
        x = self.depthnet(image)
        depth = x[:, : self.d].softmax(dim=1)
        x = depth.unsqueeze(1) * F.relu(x[:, self.d :]).unsqueeze(2)
        x = self.voxel_pooling(self.geom.view(-1, 2), x.permute(0, 2, 3, 4, 1))
        return self.head(F.relu(self.bevencode(x)).mean((2, 3)) * 6)


def roads() -> tuple[Tensor]:
    """Six by six pixels of a camera, of a brightness of its own."""
    return (drawn(256, 3, 6, 6, seed=3) + drawn(256, 3, 1, 1, seed=4),)


@planted("unsupported-op", "", "index_put", fails=TRUE, family="vision")
def ground_gathered_in_float32() -> Built:
    """nv-tlabs/lift-splat-shoot: zeros of the default type take no values of 16 bits."""
    return settled(partial(LiftSplat, False), roads())


@planted("cancellation", "", "cumsum sub", fails=TRUE, family="vision",
         also=("absorption", "precision-loss"))  # fmt: skip
def ground_by_differences_of_a_running_sum() -> Built:
    """The same with zeros of the features' type: cells are differences of a sum of the batch."""
    return settled(partial(LiftSplat, True), roads())


class PartialConv2d(nn.Conv2d):
    """NVIDIA's: a convolution of the pixels that are there, scaled by how many these are."""

    def __init__(self, into: int, out: int, epsilon: float) -> None:
        super().__init__(into, out, 3)
        self.epsilon, self.slide_winsize = epsilon, 9
        self.weight_maskUpdater = torch.ones(1, 1, 3, 3)

    def forward(self, input: Tensor, mask_in: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            if self.weight_maskUpdater.type() != input.type():
                self.weight_maskUpdater = self.weight_maskUpdater.to(input)
            update_mask = F.conv2d(mask_in, self.weight_maskUpdater)
            mask_ratio = self.slide_winsize / (update_mask + self.epsilon)
            update_mask = torch.clamp(update_mask, 0, 1)
            mask_ratio = torch.mul(mask_ratio, update_mask)
        raw_out = super().forward(torch.mul(input, mask_in))
        bias_view = self.bias.view(1, self.out_channels, 1, 1)
        output = torch.mul(raw_out - bias_view, mask_ratio) + bias_view
        return torch.mul(output, update_mask), update_mask


class Holes(nn.Module):
    """Pictures with holes, which two such layers make smaller."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.conv1 = PartialConv2d(3, 12, epsilon)
        self.conv2 = PartialConv2d(12, 16, epsilon)
        self.head = nn.Linear(16, 4)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        x, mask = self.conv1(image, mask)
        x, mask = self.conv2(F.relu(x), mask)
        return self.head(F.relu(x).mean((2, 3)) * 6)


def torn() -> tuple[Tensor, Tensor]:
    """Pictures, each with a hole of five pixels a side."""
    mask = torch.ones(300, 1, 12, 12)
    for i in range(300):
        mask[i, :, i % 7 : i % 7 + 5, i % 5 : i % 5 + 5] = 0
    return drawn(300, 3, 12, 12, seed=5) + drawn(300, 3, 1, 1, seed=6), mask


@planted("eps-underflow", "conv1", "add div reciprocal mul", fails=FP16, family="vision")
def holes_over_a_floor_of_1e_8() -> Built:
    """NVIDIA/partialconv: where no pixel is, nine is divided by nothing, and times nothing NaN."""
    return settled(partial(Holes, 1e-8), torn())


@planted("overflow", "conv1", "div reciprocal mul", fails=("16-true",), family="vision",
         also=("eps-underflow",))  # fmt: skip
def holes_over_a_floor_of_1e_6() -> Built:
    """NVIDIA/partialconv: 1e-6, advised for mixed precision, has no inverse in float16."""
    return settled(partial(Holes, 1e-6), torn())


@healthy()
def holes_over_a_floor_of_a_thousandth() -> Built:
    """The same over 1e-3: nine thousand is a number of float16."""
    return settled(partial(Holes, 1e-3), torn())
