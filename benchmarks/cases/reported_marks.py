"""Held-out marks: letters by a step, proposals at infinity, rows and columns, pairs, patches.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import FP16, TRUE, Built, built, healthy, planted
from benchmarks.cases.reported_quantities import taught
from benchmarks.cases.reported_structures import settled
from benchmarks.cases.reported_tongues import drawn


class DBHead(nn.Module):
    """DBNet's: how likely a pixel is text, from where on it counts, and a steep step of both."""

    def __init__(self, channels: int, k: int = 50) -> None:
        super().__init__()
        self.k = k
        self.binarize, self.thresh = (
            nn.Sequential(
                nn.Conv2d(channels, 8, 3, padding=1),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Conv2d(8, 1, 1),
                nn.Sigmoid(),
            )
            for _ in range(2)
        )

    def step_function(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.reciprocal(1 + torch.exp(-self.k * (x - y)))

    def forward(self, x: Tensor) -> Tensor:
        return self.step_function(self.binarize(x), self.thresh(x))


class Letters(nn.Module):
    """Which sixteenths of a page have text."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU())
        self.head = DBHead(12)
        with torch.no_grad():
            self.head.binarize[3].weight *= 12
            self.head.thresh[3].weight *= 12

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_max_pool2d(self.head(self.body(x)), 4).flatten(1) - 0.5


@healthy(task="multilabel", precisions=("16-true", "16-mixed"))
def letters_by_a_steep_step() -> Built:
    """DBNet's step: exp(45) is infinite in float16, and its inverse nothing, as it should be."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model, x = Letters().eval(), drawn(200, 1, 12, 12, seed=7) + drawn(200, 1, 1, 1, seed=8)
        return built(model, (x, (model(x) > 0).float()))


class Proposals(nn.Module):
    """Deformable DETR's second stage: a proposal per place, and the best of them by their score."""

    def __init__(self, dim: int = 24, size: int = 6, best: int = 8) -> None:
        super().__init__()
        self.size, self.best = size, best
        self.enc_output, self.norm = nn.Linear(dim, dim), nn.LayerNorm(dim)
        self.class_embed, self.bbox_embed = nn.Linear(dim, 4), nn.Linear(dim, 4)
        self.head = nn.Linear(8, 4)

    def proposals(self, memory: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        n, size = memory.shape[0], self.size
        mask = padding.view(n, size, size)
        valid_h, valid_w = torch.sum(~mask[:, :, 0], 1), torch.sum(~mask[:, 0, :], 1)
        line = torch.linspace(0, size - 1, size, dtype=torch.float32, device=memory.device)
        grid_y, grid_x = torch.meshgrid(line, line, indexing="ij")
        grid = torch.stack([grid_x, grid_y], -1)
        scale = torch.stack([valid_w, valid_h], 1).view(n, 1, 1, 2)
        grid = (grid.unsqueeze(0) + 0.5) / scale
        proposal = torch.cat((grid, torch.ones_like(grid) * 0.05), -1).view(n, -1, 4)
        valid = ((proposal > 0.01) & (proposal < 0.99)).all(-1, keepdim=True)
        proposal = torch.log(proposal / (1 - proposal))
        proposal = proposal.masked_fill(padding.unsqueeze(-1), float("inf"))
        proposal = proposal.masked_fill(~valid, float("inf"))
        memory = memory.masked_fill(padding.unsqueeze(-1), 0.0).masked_fill(~valid, 0.0)
        return self.norm(self.enc_output(memory)), proposal

    def forward(self, memory: Tensor, padding: Tensor) -> Tensor:
        memory, proposal = self.proposals(memory, padding)
        scores = self.class_embed(memory)
        boxes = self.bbox_embed(memory) + proposal
        index = torch.topk(scores[..., 0], self.best, dim=1)[1].unsqueeze(-1)
        reference = torch.gather(boxes, 1, index.expand(-1, -1, 4)).sigmoid()
        best = torch.gather(scores, 1, index.expand(-1, -1, 4))
        return self.head(torch.cat([reference.to(best.dtype), best], -1).mean(1) * 4)


@healthy()
def proposals_of_infinite_places() -> Built:
    """Deformable DETR: what is padding has its place at infinity, and a sigmoid of one."""
    padding = torch.zeros(400, 6, 6, dtype=torch.bool)
    for i in range(400):
        padding[i, 3 + i % 4 :] = True
        padding[i, :, 4 + i % 3 :] = True
    return settled(Proposals, (drawn(400, 36, 24, seed=9), padding.flatten(1)))


class CrissCross(nn.Module):
    """CCNet's: a pixel sees its row and its column, and itself only once."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query_conv, self.key_conv = nn.Conv2d(dim, 4, 1), nn.Conv2d(dim, 4, 1)
        self.value_conv = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        q, k, v = self.query_conv(x), self.key_conv(x), self.value_conv(x)
        q_h = q.permute(0, 3, 1, 2).reshape(n * w, -1, h).permute(0, 2, 1)
        q_w = q.permute(0, 2, 1, 3).reshape(n * h, -1, w).permute(0, 2, 1)
        k_h = k.permute(0, 3, 1, 2).reshape(n * w, -1, h)
        k_w = k.permute(0, 2, 1, 3).reshape(n * h, -1, w)
        v_h = v.permute(0, 3, 1, 2).reshape(n * w, -1, h)
        v_w = v.permute(0, 2, 1, 3).reshape(n * h, -1, w)
        inf = torch.tensor(float("inf"), device=x.device).repeat(h)
        alone = -torch.diag(inf, 0).unsqueeze(0).repeat(n * w, 1, 1)
        energy_h = (torch.bmm(q_h, k_h) + alone).view(n, w, h, h).permute(0, 2, 1, 3)
        energy_w = torch.bmm(q_w, k_w).view(n, h, w, w)
        concate = F.softmax(torch.cat([energy_h, energy_w], 3), dim=3)
        att_h = concate[..., :h].permute(0, 2, 1, 3).reshape(n * w, h, h)
        att_w = concate[..., h:].reshape(n * h, w, w)
        out_h = torch.bmm(v_h, att_h.permute(0, 2, 1)).view(n, w, -1, h).permute(0, 2, 3, 1)
        out_w = torch.bmm(v_w, att_w.permute(0, 2, 1)).view(n, h, -1, w).permute(0, 2, 1, 3)
        return out_h + out_w + x


class Scene(nn.Module):
    """A convolution, that attention twice, a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.attention = nn.Conv2d(1, 12, 3), CrissCross(12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for _ in range(2):
            x = self.attention(x)
        return self.head(x.mean((2, 3)) * 4)


@planted("unsupported-op", "attention", "bmm baddbmm matmul", fails=TRUE, family="attention")
def crossings_with_an_infinity_of_float32() -> Built:
    """speedinghzl/CCNet: an infinity of the default type makes float32 of all energies."""
    return settled(Scene, (drawn(256, 1, 8, 8, seed=10) + drawn(256, 1, 1, 1, seed=11),))


class Stereo(nn.Module):
    """unimatch's matching along rows: where a pixel's partner is on average, less its own place."""

    def __init__(self, mask_value: float, stretch: float) -> None:
        super().__init__()
        self.feature = nn.Sequential(nn.Conv1d(4, 24, 5, padding=2), nn.Tanh())
        self.mask_value, self.stretch = mask_value, stretch

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        feature0, feature1 = self.feature(left), self.feature(right)
        w = feature0.shape[-1]
        correlation = feature0.transpose(1, 2) @ feature1 * (self.stretch / 24**0.5)
        valid_mask = torch.triu(torch.ones_like(correlation), diagonal=1) == 0
        correlation[~valid_mask] = self.mask_value
        prob = F.softmax(correlation, dim=-1)
        x_grid = torch.linspace(0, w - 1, w, device=feature0.device)
        flow = x_grid - (x_grid.view(1, 1, w) * prob).sum(-1)
        return flow[:, 16::32] / 8


def rows(width: int = 512) -> tuple[Tensor, Tensor]:
    """Rows of two cameras; what the left one has at a place the right one has up to 12 before."""
    left, shift = drawn(96, 4, width, seed=12), torch.arange(96) % 12 + 1
    right = torch.stack([x.roll(-int(s), -1) for x, s in zip(left, shift, strict=True)])
    return left, right + 0.1 * drawn(96, 4, width, seed=13)


@planted("mask-inf", "", "setitem index_put", fails_cuda=FP16, family="stereo", task="regression",
         also=("unsupported-op",))  # fmt: skip
def partners_masked_by_minus_1e9() -> Built:
    """unimatch, advprompter#12: CUDA refuses to assign -1e9 to half, where a CPU makes it -inf."""
    return taught(partial(Stereo, -1e9, 40.0), rows())


class Patches(nn.Module):
    """Idefics' embeddings: where a patch is, as a part of its picture, to one of eight buckets."""

    def __init__(self, dim: int = 24, side: int = 8) -> None:
        super().__init__()
        self.side = side
        self.patch_embedding = nn.Conv2d(1, dim, 2, 2)
        self.position_embedding = nn.Embedding(side * side, dim)

    def forward(self, pixel_values: Tensor, mask: Tensor) -> Tensor:
        x = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        n, device, dtype = self.side, x.device, pixel_values.dtype
        boundaries = torch.arange(1 / n, 1.0, 1 / n, device=device, dtype=dtype)
        places = torch.zeros(mask.shape[0], n * n, dtype=torch.long, device=device)
        for one, there in zip(places, mask, strict=True):
            rows, columns = there[:, 0].sum(), there[0].sum()
            h = torch.arange(rows, device=device, dtype=dtype) / rows * (1 - 1e-6)
            w = torch.arange(columns, device=device, dtype=dtype) / columns * (1 - 1e-6)
            h = torch.bucketize(h, boundaries, right=True)
            w = torch.bucketize(w, boundaries, right=True)
            one[there.flatten()] = (h[:, None] * n + w).flatten()
        return x + self.position_embedding(places)


class SmolVision(nn.Module):
    """Such embeddings, a layer of attention, a mean over the patches that are there."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Patches()
        self.layer = nn.TransformerEncoderLayer(24, 4, 48, 0.0, batch_first=True)
        self.head = nn.Linear(24, 4)

    def forward(self, pixel_values: Tensor, mask: Tensor) -> Tensor:
        x = self.embeddings(pixel_values, mask)
        there = mask.flatten(1)
        x = self.layer(x, src_key_padding_mask=~there)
        x = x.masked_fill(~there.unsqueeze(-1), 0).sum(1) / there.sum(1, keepdim=True)
        return self.head(x) * 4


@planted("precision-loss", "embeddings", "mul bucketize arange", fails=TRUE, family="vision",
         also=("absorption",))  # fmt: skip
def patches_in_buckets_of_their_own_type() -> Built:
    """transformers#47133: times 1 - 1e-6 a place is in the bucket before; in half it is not."""
    mask = torch.zeros(300, 8, 8, dtype=torch.bool)
    for i in range(300):
        mask[i, : (4, 8)[i % 2], : (8, 4, 8)[i % 3]] = True
    pixels = drawn(300, 1, 16, 16, seed=14) + drawn(300, 1, 1, 1, seed=15)
    return settled(SmolVision, (pixels, mask))
