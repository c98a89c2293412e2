"""Held-out pieces: farthest points, packed weights, texts end to end, two maps less each other.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import TRUE, Built, healthy, planted
from benchmarks.cases.reported_quantities import perceptron, taught
from benchmarks.cases.reported_structures import settled
from benchmarks.cases.reported_tongues import drawn


def farthest_point_sample(xyz: Tensor, npoint: int, typed: bool) -> Tensor:
    """PointNet++'s: point after point, each the one farthest from all before it."""
    b, n, _ = xyz.shape
    kind = {"dtype": xyz.dtype} if typed else {}
    centroids = torch.zeros(b, npoint, dtype=torch.long, device=xyz.device)
    distance = torch.ones(b, n, device=xyz.device, **kind) * (1e4 if typed else 1e10)
    farthest = torch.zeros(b, dtype=torch.long, device=xyz.device)
    rows = torch.arange(b, device=xyz.device)
    for i in range(npoint):
        centroids[:, i] = farthest
        centroid = xyz[rows, farthest, :].view(b, 1, 3)
        dist = torch.sum((xyz - centroid) ** 2, -1)
        mask = dist < distance
        distance[mask] = dist[mask]
        farthest = torch.max(distance, -1)[1]
    return centroids


class SetAbstraction(nn.Module):
    """Groups around such points, and the largest of what a perceptron says of each."""

    def __init__(self, typed: bool, npoint: int = 8, nsample: int = 6) -> None:
        super().__init__()
        self.typed, self.npoint, self.nsample = typed, npoint, nsample
        self.mlp = perceptron(3, 24)

    def forward(self, xyz: Tensor) -> Tensor:
        index = farthest_point_sample(xyz, self.npoint, self.typed)
        new = torch.gather(xyz, 1, index.unsqueeze(-1).expand(-1, -1, 3))
        apart = (new.unsqueeze(2) - xyz.unsqueeze(1)).square().sum(-1)
        near = apart.topk(self.nsample, dim=-1, largest=False).indices
        group = xyz.unsqueeze(1).expand(-1, self.npoint, -1, -1)
        group = torch.gather(group, 2, near.unsqueeze(-1).expand(-1, -1, -1, 3))
        return self.mlp(group - new.unsqueeze(2)).amax(2)


class Cloud(nn.Module):
    """Such groups of a cloud, and which of four it is."""

    def __init__(self, typed: bool) -> None:
        super().__init__()
        self.sa1, self.head = SetAbstraction(typed), nn.Linear(24, 4)

    def forward(self, xyz: Tensor) -> Tensor:
        return self.head(self.sa1(xyz).mean(1) * 6)


def clouds() -> tuple[Tensor]:
    """Thirty-two points each, in boxes of their own."""
    return (drawn(240, 32, 3, seed=1) * (0.5 * drawn(240, 1, 3, seed=2)).exp(),)


@planted("unsupported-op", "sa1", "index_put setitem", fails=TRUE, family="clouds")
def farthest_points_in_float32() -> Built:
    """Pointnet_Pointnet2_pytorch: distances of 1e10 in float32 take none of 16 bits."""
    return settled(partial(Cloud, False), clouds())


class PackedLinear(nn.Module):
    """GPTQ's: eight weights of four bits in an integer, zeros as well, a scale for each group."""

    def __init__(self, into: int, out: int, group: int = 16) -> None:
        super().__init__()
        weight = torch.randn(into, out) / into**0.5
        grouped = weight.view(-1, group, out)
        scales = (grouped.amax(1) - grouped.amin(1)) / 15
        zeros = (-grouped.amin(1) / scales).round().clamp(1, 15)
        codes = (grouped / scales.unsqueeze(1) + zeros.unsqueeze(1)).round().clamp(0, 15)
        self.register_buffer("wf", torch.arange(0, 32, 4, dtype=torch.int32).unsqueeze(0))
        self.register_buffer("qweight", self._packed(codes.view(into, out).T.int()).T.contiguous())
        self.register_buffer("qzeros", self._packed(zeros.int() - 1))
        self.register_buffer("scales", scales)
        self.register_buffer("g_idx", torch.arange(into, dtype=torch.int32) // group)
        self.register_buffer("bias", torch.zeros(out))

    @staticmethod
    def _packed(codes: Tensor) -> Tensor:
        shifts = torch.arange(0, 32, 4, dtype=torch.int64)
        many = (codes.view(codes.shape[0], -1, 8).long() << shifts).sum(-1)
        return many.where(many < 2**31, many - 2**32).int()

    def forward(self, x: Tensor) -> Tensor:
        zeros = torch.bitwise_right_shift(self.qzeros.unsqueeze(2).expand(-1, -1, 8), self.wf)
        zeros = (torch.bitwise_and(zeros, 15) + 1).reshape(self.scales.shape)
        weight = torch.bitwise_right_shift(
            self.qweight.unsqueeze(1).expand(-1, 8, -1), self.wf.unsqueeze(-1)
        )
        weight = torch.bitwise_and(weight, 15).reshape(-1, weight.shape[2])
        index = self.g_idx.long()
        weights = self.scales[index] * (weight - zeros[index])
        return torch.matmul(x, weights.to(x.dtype)) + self.bias


class Packed(nn.Module):
    """A perceptron of such layers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(PackedLinear(16, 48), nn.GELU(), PackedLinear(48, 48), nn.GELU())
        self.head = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x)) * 3


@healthy()
def weights_unpacked_from_integers() -> Built:
    """AutoGPTQ: integers are shifted, masked and multiplied by a scale of half."""
    return settled(Packed, (drawn(400, 16, seed=3),))


class Unpadded(nn.Module):
    """Words of all texts end to end, cut where each ends, as variable-length attention has it."""

    def __init__(self, dim: int = 24) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Embedding(200, dim), nn.Linear(dim, 3 * dim)
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 4)

    def forward(self, ids: Tensor) -> Tensor:
        there = ids > 0
        ends = there.sum(1).cumsum(0)[:-1]
        x = self.embed(ids[there])
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        said = []
        for own in zip(*(torch.tensor_split(t, ends.cpu()) for t in (q, k, v, x)), strict=True):
            one = F.scaled_dot_product_attention(*(t.unsqueeze(0) for t in own[:3]))
            said.append((own[3] + one[0]).mean(0))
        return self.head(torch.stack(said)) * 3


@healthy()
def texts_end_to_end() -> Built:
    """flash-attn's unpadding in plain torch: cu_seqlens tell where a text ends."""
    ids = (200 * drawn(120, 16, seed=4).sigmoid()).long().clamp(1, 199)
    ids = ids * (torch.arange(16) < 4 + torch.arange(120).unsqueeze(1) % 13)
    return settled(Unpadded, (ids,), 45)


class DifferentialAttention(nn.Module):
    """Differential transformer: one map of attention less a part of another, and a norm."""

    def __init__(self, dim: int = 24, heads: int = 2, like: float = 0.02) -> None:
        super().__init__()
        self.heads, self.hd = heads, dim // heads // 2
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.lambda_init = 0.98
        self.subln, self.out = nn.RMSNorm(2 * self.hd, eps=1e-5), nn.Linear(dim, dim, bias=False)
        with torch.no_grad():  # the two have hardly parted yet
            for layer in (self.q, self.k):
                halves = layer.weight.view(heads, 2, self.hd, dim)
                halves[:, 1] = halves[:, 0] + like * halves[:, 1]

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k = (f(x).view(n, t, 2 * self.heads, self.hd).transpose(1, 2) for f in (self.q, self.k))
        v = self.v(x).view(n, t, self.heads, 2 * self.hd).transpose(1, 2)
        weights = F.softmax(q @ k.transpose(-1, -2) * self.hd**-0.5, dim=-1).type_as(v)
        weights = weights.view(n, self.heads, 2, t, t)
        weights = weights[:, :, 0] - self.lambda_init * weights[:, :, 1]
        said = self.subln(weights @ v) * (1 - self.lambda_init)
        return self.out(said.transpose(1, 2).reshape(n, t, d))


class Differential(nn.Module):
    """Words, that attention, the mean."""

    def __init__(self, like: float) -> None:
        super().__init__()
        self.embed, self.attention = nn.Embedding(200, 24), DifferentialAttention(like=like)
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.attention(self.embed(ids))).mean(1)) * 4


@healthy()
def maps_that_have_hardly_parted() -> Built:
    """microsoft/unilm's Diff-Transformer: two maps alike but for hundredths, and a norm of it."""
    ids = (200 * drawn(300, 12, seed=5).sigmoid()).long().clamp(0, 199)
    return settled(partial(Differential, 0.02), (ids,))


class SoftBlend(nn.Module):
    """pytorch3d's softmax blending: colours of faces by how near they are and how far in front."""

    def __init__(self, sigma: float = 1e-4, gamma: float = 1e-4, near: float = 1.0) -> None:
        super().__init__()
        self.sigma, self.gamma, self.near, self.far = sigma, gamma, near, 100.0

    def forward(self, zbuf: Tensor, dists: Tensor, colors: Tensor, mask: Tensor) -> Tensor:
        eps = 1e-10
        prob_map = torch.sigmoid(-dists / self.sigma) * mask
        alpha = torch.prod(1.0 - prob_map, dim=-1)
        z_inv = (self.far - zbuf) / (self.far - self.near) * mask
        z_inv_max = torch.max(z_inv, dim=-1).values.unsqueeze(-1).clamp(min=eps)
        weights_num = prob_map * torch.exp((z_inv - z_inv_max) / self.gamma)
        delta = torch.exp((eps - z_inv_max) / self.gamma).clamp(min=eps)
        denom = weights_num.sum(dim=-1, keepdim=True) + delta
        rgb = (weights_num.unsqueeze(-1) * colors).sum(dim=-2) / denom
        return torch.cat([rgb, 1.0 - alpha.unsqueeze(-1)], -1)


class Rendered(nn.Module):
    """A row of pixels, and what is seen there."""

    def __init__(self) -> None:
        super().__init__()
        self.blend, self.head = SoftBlend(), nn.Linear(4, 4)

    def forward(self, zbuf: Tensor, dists: Tensor, colors: Tensor, mask: Tensor) -> Tensor:
        seen = self.blend(zbuf, dists, colors, mask)
        return self.head(seen.to(self.head.weight.dtype)).mean(1)


@planted("cancellation", "blend", "sub rsub div exp", fails=TRUE, family="rays", task="regression",
         also=("precision-loss", "absorption"))  # fmt: skip
def faces_a_little_behind_each_other() -> Built:
    """pytorch3d's softmax_rgb_blend: depths of 0.97 are asked for to a ten thousandth."""
    zbuf = 3 + 0.03 * drawn(300, 12, 4, seed=6).abs()
    dists = 2e-4 * drawn(300, 12, 4, seed=7)
    mask = (drawn(300, 12, 4, seed=8) > -1).float()
    return taught(Rendered, (zbuf, dists, drawn(300, 12, 4, 3, seed=9).sigmoid(), mask), 0.02)
