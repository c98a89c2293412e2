"""Held-out grids: splats, warps, resampled waves, phases; what is known by places and angles.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import ALL, FP16, Built, healthy, planted
from benchmarks.cases.reported_quantities import perceptron, taught
from benchmarks.cases.reported_tongues import decided, drawn


class Splats(NamedTuple):
    """Flat Gaussians of a picture."""

    angle: Tensor
    scale: Tensor
    colour: Tensor


def rotations(angle: Tensor) -> Tensor:
    """Matrices of angles."""
    c, s = angle.cos(), angle.sin()
    return torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)


def by_covariance(splats: Splats, d: Tensor) -> Tensor:
    """Exponents by the inverse of a covariance, as rasterizers of splats have it."""
    m = rotations(splats.angle) * splats.scale.unsqueeze(-2)
    cov = torch.einsum("bnij,bnkj->bnik", m, m)
    a, b, c = cov[..., 0, 0], cov[..., 0, 1], cov[..., 1, 1]
    det = (a * c - b * b).clamp(min=1e-6)
    conic = torch.stack([c / det, -b / det, a / det], -1)
    dx, dy = d.unbind(-1)
    return -0.5 * (conic[..., 0] * dx * dx + conic[..., 2] * dy * dy) - conic[..., 1] * dx * dy


def by_axes(splats: Splats, d: Tensor) -> Tensor:
    """The same along the axes of each splat."""
    along = torch.einsum("bnij,bni->bnj", rotations(splats.angle), d) / splats.scale
    return -0.5 * along.square().sum(-1)


class Rasterizer(nn.Module):
    """What a splat adds to the pixels around it."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.power = by_axes if mended else by_covariance

    def forward(self, splats: Splats, d: Tensor) -> Tensor:
        alpha = torch.exp(self.power(splats, d).clamp(max=0.0))
        return (alpha.unsqueeze(-1) * splats.colour).sum(1)


class Renderer(nn.Module):
    """Splats from a code, seen from a point."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.body, self.raster = perceptron(6, 16 * 3), Rasterizer(mended)

    def forward(self, code: Tensor, at: Tensor) -> Tensor:
        angle, *rest = self.body(code).view(-1, 16, 3).unbind(-1)
        scale = torch.stack([torch.ones_like(angle), torch.full_like(angle, 0.03)], -1)
        colour = torch.stack([r.sigmoid() for r in rest], -1)
        splats = Splats(0.8 + 0.2 * angle, scale, colour)
        along = torch.stack([splats.angle.cos(), splats.angle.sin()], -1).detach()
        d = along * at[:, :16, None] + 0.02 * at[:, 16:].reshape(-1, 16, 2)
        return self.raster(splats, d)


def seen() -> tuple[Tensor, Tensor]:
    """Codes, and where each splat is looked at: along it, and a little beside it."""
    return drawn(400, 6, seed=1), drawn(400, 48, seed=2) * 0.5


@planted("cancellation", "raster", "sub", fails=ALL, also=("precision-loss", "absorption"),
         family="geometry", task="regression")  # fmt: skip
def splats_by_their_covariance() -> Built:
    """playcanvas/engine#7380: ac - b² of a thin splat is all rounding, and it loses a dimension."""
    return taught(partial(Renderer, False), seen(), 0.02)


@healthy(task="regression", precisions=("16-mixed", "16-true"))
def splats_by_their_axes() -> Built:
    """The same by rotation and scale, as they were sent to the GPU after it."""
    return taught(partial(Renderer, True), seen(), 0.02)


class Warp(nn.Module):
    """A picture turned and shifted a little, by a grid."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = perceptron(4, 6)

    def forward(self, img: Tensor, code: Tensor) -> Tensor:
        same = torch.eye(2, 3, dtype=code.dtype, device=code.device)
        theta = same + 0.02 * self.loc(code).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(img.shape), align_corners=False)
        return F.grid_sample(img, grid.to(img.dtype), align_corners=False, padding_mode="border")


class Aligned(nn.Module):
    """A warp, and what a convolution reads of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stn, self.read = Warp(), nn.Conv2d(1, 6, 5, stride=4)

    def forward(self, image: Tensor, code: Tensor) -> Tensor:
        return self.read(self.stn(image, code))[..., 2:-2, 2:-2].flatten(1)


@planted(
    "precision-loss", "stn", "affine_grid_generator grid_sampler grid_sampler_2d add addmm bmm",
    fails=("bf16-true",), moot=("16-true", "bf16-mixed"), also=("absorption",), family="geometry",
    task="regression",
)  # fmt: skip
def textures_by_grids_of_16_bits() -> Built:
    """pytorch#96429: a grid near one is known to a 256th, which is a third of a pixel."""
    return taught(Aligned, (drawn(48, 1, 128, 128, seed=3), drawn(48, 4, seed=4)), 0.02)


def sinc_kernel(orig: int, new: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A bank of windowed sincs, one for each place of a new sample between old ones."""
    base, width = min(orig, new) * 0.99, math.ceil(6 * orig / min(orig, new))
    idx = torch.arange(-width, width + orig, dtype=dtype, device=device)[None] / orig
    t = torch.arange(0, -new, -1, dtype=dtype, device=device)[:, None] / new + idx
    t = (t * base).clamp_(-6, 6)
    window = torch.cos(t * math.pi / 12) ** 2
    t = t * math.pi
    kernel = torch.where(t == 0, torch.ones_like(t), t.sin() / t)
    return (kernel * window * (base / orig))[:, None]


class Resample(nn.Module):
    """A wave at another rate, the kernel made in the wave's dtype."""

    def __init__(self, orig: int, new: int) -> None:
        super().__init__()
        self.orig, self.new = orig, new

    def forward(self, x: Tensor) -> Tensor:
        kernel = sinc_kernel(self.orig, self.new, x.dtype, x.device)
        width = (kernel.shape[-1] - self.orig) // 2
        x = F.pad(x, (width, width + self.orig)).unsqueeze(1)
        return F.conv1d(x, kernel, stride=self.orig).transpose(1, 2).flatten(1)


class Voice(nn.Module):
    """A wave resampled, its frames read."""

    def __init__(self) -> None:
        super().__init__()
        self.resample, self.head = Resample(147, 160), nn.Conv1d(1, 1, 9, stride=8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.resample(x).unsqueeze(1)).squeeze(1)


@planted(
    "precision-loss", "resample", "arange div add mul sin cos", fails=("bf16-true",),
    moot=("16-true", "bf16-mixed"), also=("absorption", "cancellation"), family="spectra",
    task="regression",
)  # fmt: skip
def sinc_kernels_in_the_dtype_of_the_wave() -> Built:
    """deiteris/voice-changer#135: places within a kernel are known to a few hundredths of one."""
    return taught(Voice, (drawn(64, 1470, seed=5),), 0.02)


class ExactSineGen(nn.Module):
    """Harmonics by phases that are counted in integers, and so never drift apart."""

    def __init__(self, rate: int, harmonics: int) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("order", torch.arange(1, harmonics + 1))

    def forward(self, f0: Tensor, samples: int) -> Tensor:
        step = torch.round(f0.double() * (2**32 / self.rate)).to(torch.int64)
        phase = step.repeat_interleave(samples // f0.shape[1], dim=1).cumsum(1)
        each = (phase.unsqueeze(1) * self.order[:, None]) & 0xFFFFFFFF
        return torch.sin((each.double() * (2 * math.pi / 2**32)).to(f0.dtype))


class Sung(nn.Module):
    """Which vowel: harmonics weighted by a voice and brought into bands."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.tone = ExactSineGen(16000, 8), nn.Linear(6, 8)
        self.conv, self.head = nn.Conv1d(1, 16, 65, stride=16), nn.Linear(16, 4)

    def forward(self, f0: Tensor, voice: Tensor) -> Tensor:
        harmonics = self.source(f0, 8000)
        wave = torch.einsum("bht,bh->bt", harmonics, self.tone(voice).softmax(-1))
        return 6 * self.head(self.conv(wave.unsqueeze(1)).abs().mean(-1) * 4)


@healthy(precisions=FP16)
def phases_counted_in_integers() -> Built:
    """kokoro#353: an exact source, whose half second of nine thousand radians hurts no format."""
    tune = (100 + 150 * torch.rand(96, 10, generator=torch.Generator().manual_seed(6))).round()
    return decided(Sung, (tune, 2 * drawn(96, 6, seed=7)), 24)
