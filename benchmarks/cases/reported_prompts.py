"""Held-out prompts and marks: memories of masks, pictures as prompts, keypoints by logarithms.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import Built, healthy, planted
from benchmarks.cases.reported_quantities import taught
from benchmarks.cases.reported_structures import settled
from benchmarks.cases.reported_tongues import drawn

NO_OBJ_SCORE = -1024.0


class Decoder(nn.Module):
    """Four masks, how good each is, and whether there is anything at all."""

    def __init__(self, dim: int = 12) -> None:
        super().__init__()
        self.masks, self.iou = nn.Conv2d(dim, 4, 1), nn.Linear(dim, 4)
        self.object = nn.Linear(dim, 1)
        with torch.no_grad():
            self.masks.weight *= 8
            self.object.weight *= 6

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled = x.mean((2, 3))
        return self.masks(x), self.iou(pooled), self.object(pooled)


def stability(logits: Tensor, delta: float = 0.05) -> Tensor:
    """How much of a mask stays, if its threshold moves a little."""
    area_i = torch.sum(logits.flatten(-2) > delta, dim=-1).float()
    area_u = torch.sum(logits.flatten(-2) > -delta, dim=-1).float()
    return torch.where(area_u > 0, area_i / area_u, 1.0)


class MemoryEncoder(nn.Module):
    """A mask made steep, beside the picture."""

    def __init__(self, dim: int = 12) -> None:
        super().__init__()
        self.down, self.pix = nn.Conv2d(1, dim, 3, padding=1), nn.Conv2d(dim, dim, 1)
        self.fuse = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        mask = torch.sigmoid(mask) * 20.0 + -10.0
        return self.fuse(F.gelu(self.pix(x) + self.down(mask.to(x.dtype))))


class Remembered(nn.Module):
    """SAM 2: the best mask of a frame, or none; what is remembered of it; what kind it is."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Conv2d(1, 12, 3, padding=1), Decoder()
        self.memory, self.no_obj_ptr = MemoryEncoder(), nn.Parameter(torch.randn(1, 12))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.encoder(x))
        masks, iou, score = self.decoder(x)
        there = score > 0
        masks = torch.where(there[:, None, None], masks, NO_OBJ_SCORE).float()
        multi, batch = masks[:, 1:], torch.arange(len(x), device=x.device)
        best = multi[batch, iou[:, 1:].argmax(dim=-1)].unsqueeze(1)
        stable = stability(masks[:, :1]) >= 0.9
        mask = torch.where(stable[..., None, None], masks[:, :1], best)
        pointer = self.memory(x, mask).mean((2, 3))
        there = there.to(pointer.dtype)
        return self.head(there * pointer + (1 - there) * self.no_obj_ptr)


@healthy()
def masks_that_are_remembered() -> Built:
    """facebookresearch/sam2: -1024 where there is nothing, areas of booleans, a steep sigmoid."""
    pictures = drawn(240, 1, 10, 10, seed=1) + 2 * drawn(240, 1, 1, 1, seed=2)
    return settled(Remembered, (pictures,))


class PerceiverAttention(nn.Module):
    """Latents that look at a picture's features and themselves; both scaled first, or not."""

    def __init__(self, first: bool, dim: int = 32) -> None:
        super().__init__()
        self.first, self.norm1, self.norm2 = first, nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q, self.to_kv = nn.Linear(dim, 64, bias=False), nn.Linear(dim, 128, bias=False)
        self.to_out = nn.Linear(64, dim, bias=False)
        with torch.no_grad():
            self.to_q.weight *= 140
            self.to_kv.weight[:64] *= 60

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        x, latents = self.norm1(x), self.norm2(latents)
        q, (k, v) = self.to_q(latents), self.to_kv(torch.cat((x, latents), dim=1)).chunk(2, -1)
        if self.first:
            scale = 1 / math.sqrt(math.sqrt(64))
            weight = (q * scale) @ (k * scale).transpose(-2, -1)
        else:
            weight = (q @ k.transpose(-2, -1)) * 64**-0.5
        weight = torch.softmax(weight.float(), dim=-1).type(weight.dtype)
        return self.to_out(weight @ v)


class Resampler(nn.Module):
    """IP-Adapter's: learned latents, two layers, and what the picture asks for."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, 4, 32) / 32**0.5)
        self.proj_in, self.norm_out = nn.Linear(16, 32), nn.LayerNorm(32)
        self.layers = nn.ModuleList(PerceiverAttention(first) for _ in range(2))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        latents, x = self.latents.repeat(len(x), 1, 1), self.proj_in(x)
        for layer in self.layers:
            latents = layer(x, latents) + latents
        return self.head(self.norm_out(latents).mean(1))


@healthy(precisions=("16-true", "16-mixed"))
def pictures_as_prompts() -> Built:
    """tencent-ailab/IP-Adapter: queries and keys are scaled first, "more stable with f16"."""
    return settled(lambda: Resampler(first=True), (drawn(300, 12, 16, seed=3),))


@planted(
    "overflow",
    "layers.1",
    "bmm matmul",
    fails=("16-true", "16-mixed"),
    moot=("bf16-true", "bf16-mixed"),
    family="attention",
)
def pictures_as_prompts_scaled_afterwards() -> Built:
    """IP-Adapter's resampler with the scale behind the product, as ports write it."""
    return settled(lambda: Resampler(first=False), (drawn(300, 12, 16, seed=3),))


class Keypoints(nn.Module):
    """Heat maps, and DARK's decoding: blurred, their logarithms, a step of Newton at the peak."""

    def __init__(self, points: int = 3, width: float = 1.5) -> None:
        super().__init__()
        self.points, self.maps = points, nn.Conv2d(points, points, 3, padding=1, groups=points)
        place = torch.arange(-4, 5) / width
        bell = torch.exp(-(place**2) / 2)
        kernel = bell.unsqueeze(1) * bell.unsqueeze(0)
        self.register_buffer("kernel", (kernel / kernel.sum()).expand(points, 1, 9, 9).clone())
        with torch.no_grad():
            self.maps.weight.copy_(self.maps.weight.abs())
            self.maps.bias.fill_(-0.02)

    def forward(self, x: Tensor) -> Tensor:
        hm = F.relu(self.maps(x))
        most = hm.amax((2, 3), keepdim=True)
        hm = F.conv2d(hm, self.kernel.to(hm.dtype), padding=4, groups=self.points)
        hm = hm * most / hm.amax((2, 3), keepdim=True)
        index = hm.flatten(2).argmax(-1)
        log = torch.log(hm.clamp(min=1e-10)).flatten(2)
        side = x.shape[-1]

        def at(dx: int, dy: int) -> Tensor:
            return log.gather(2, (index + dx + dy * side).unsqueeze(-1)).squeeze(-1)

        dx, dy = 0.5 * (at(1, 0) - at(-1, 0)), 0.5 * (at(0, 1) - at(0, -1))
        dxx = 0.25 * (at(2, 0) - 2 * at(0, 0) + at(-2, 0))
        dyy = 0.25 * (at(0, 2) - 2 * at(0, 0) + at(0, -2))
        dxy = 0.25 * (at(1, 1) - at(-1, 1) - at(1, -1) + at(-1, -1))
        det = dxx * dyy - dxy**2
        step = torch.stack((dxy * dy - dyy * dx, dxy * dx - dxx * dy), dim=-1) / det.unsqueeze(-1)
        place = torch.stack((index % side, index // side), dim=-1)
        return (place + step).flatten(1)


@healthy(task="regression")
def keypoints_by_logarithms_of_heat() -> Built:
    """mmpose's DARK: 1e-10 is zero in float16, and far from the peak its logarithm is infinite."""
    place = 5 + 14 * drawn(160, 3, 2, 1, 1, seed=4).sigmoid()
    grid = torch.arange(24).float()
    apart = (grid - place[:, :, 0]) ** 2 + (grid.view(-1, 1) - place[:, :, 1]) ** 2
    return taught(Keypoints, (torch.exp(-apart / 4).clamp(min=0.01) - 0.01,))
