"""Held-out spaces: a hyperboloid, coordinates that move, graphs whose nodes are held apart.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

import math
import warnings
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import Built, healthy, planted
from benchmarks.cases.reported_quantities import perceptron, taught
from benchmarks.cases.reported_structures import settled
from benchmarks.cases.reported_tongues import decided, drawn


def exp_map0(x: Tensor, curv: Tensor, eps: float = 1e-8) -> Tensor:
    """From the tangent at the vertex to the hyperboloid: components of space alone."""
    norm = curv**0.5 * torch.norm(x, dim=-1, keepdim=True)
    inside = torch.clamp(norm, min=eps, max=math.asinh(2**15))
    return torch.sinh(inside) * x / torch.clamp(norm, min=eps)


def pairwise_dist(x: Tensor, y: Tensor, curv: Tensor, eps: float = 1e-8) -> Tensor:
    """Geodesic distances of all pairs."""
    x_time = torch.sqrt(1 / curv + torch.sum(x**2, dim=-1, keepdim=True))
    y_time = torch.sqrt(1 / curv + torch.sum(y**2, dim=-1, keepdim=True))
    inner = x @ y.T - x_time @ y_time.T
    return torch.acosh(torch.clamp(-curv * inner, min=1 + eps)) / curv**0.5


class Entailed(nn.Module):
    """MERU's: pictures and words on a hyperboloid, and how near they are."""

    def __init__(self, wide: bool, dim: int = 12) -> None:
        super().__init__()
        self.wide = wide
        self.visual, self.textual_proj = perceptron(16, 24), nn.Linear(24, dim)
        self.visual_proj, self.words = nn.Linear(24, dim), nn.Parameter(torch.randn(9, 24))
        self.visual_alpha = nn.Parameter(torch.tensor(dim**-0.5).log())
        self.curv = nn.Parameter(torch.tensor(1.0).log())
        with torch.no_grad():
            cone = 5 * F.normalize(torch.randn(dim), dim=0) * dim**0.5
            for proj, spread in ((self.visual_proj, 4.0), (self.textual_proj, 1.0)):
                proj.weight *= spread
                proj.bias.copy_(cone)

    def region(self, device: str) -> AbstractContextManager[object]:
        """Autocast asked for float32, which switches it off with a warning."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.autocast(device, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        image = self.visual_proj(self.visual(x)) * self.visual_alpha.exp()
        words = self.textual_proj(self.words) * self.visual_alpha.exp()
        with self.region(x.device.type):
            if self.wide:
                image, words = image.float(), words.float()
            image = exp_map0(image, self.curv.exp())
            words = exp_map0(words, self.curv.exp())
            return -pairwise_dist(image, words, self.curv.exp())


@planted(
    "cancellation",
    "",
    "sub add mm matmul addmm",
    fails=("16-true", "16-mixed", "bf16-true", "bf16-mixed"),
    also=("absorption", "precision-loss"),
    family="hyperbolic",
)
def words_near_pictures_on_a_hyperboloid() -> Built:
    """facebookresearch/meru: autocast asked for float32 is off, and what was half stays half."""
    return decided(lambda: Entailed(wide=False), (drawn(300, 16, seed=1),))


@healthy()
def words_near_pictures_in_float32() -> Built:
    """facebookresearch/meru, with features made float32; 1 + 1e-8 is one in float32, too."""
    return decided(lambda: Entailed(wide=True), (drawn(300, 16, seed=1),))


class CoorsNorm(nn.Module):
    """Directions, times one scale."""

    def __init__(self, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps, self.scale = eps, nn.Parameter(torch.ones(1) * 0.5)

    def forward(self, coors: Tensor) -> Tensor:
        norm = coors.norm(dim=-1, keepdim=True)
        return coors / norm.clamp(min=self.eps) * self.scale


class EGNN(nn.Module):
    """Messages by distance and Fourier features of it; coordinates move along directions."""

    def __init__(self, dim: int = 12, encodings: int = 4) -> None:
        super().__init__()
        self.encodings = encodings
        self.edge_mlp = perceptron(2 * dim + 2 * encodings + 1, 16)
        self.coors_norm, self.coors_mlp = CoorsNorm(), perceptron(16, 1)
        self.node_mlp, self.norm = perceptron(dim + 16, dim), nn.LayerNorm(dim)

    def forward(self, feats: Tensor, coors: Tensor) -> tuple[Tensor, Tensor]:
        rel_coors = coors.unsqueeze(2) - coors.unsqueeze(1)
        rel_dist = (rel_coors**2).sum(dim=-1, keepdim=True)
        scales = 2 ** torch.arange(self.encodings, device=feats.device, dtype=feats.dtype)
        scaled = rel_dist / 64 / scales
        encoded = torch.cat((scaled.sin(), scaled.cos(), rel_dist / 100), dim=-1)
        n = feats.shape[1]
        i, j = feats.unsqueeze(2).expand(-1, -1, n, -1), feats.unsqueeze(1).expand(-1, n, -1, -1)
        m_ij = self.edge_mlp(torch.cat((i, j, encoded), dim=-1))
        weights = self.coors_mlp(m_ij).squeeze(-1)
        moved = torch.einsum("b i j, b i j c -> b i c", weights, self.coors_norm(rel_coors))
        m_i = m_ij.sum(dim=-2) / n
        feats = feats + self.node_mlp(torch.cat((self.norm(feats), m_i), dim=-1))
        return feats, coors + moved / n


class Molecules(nn.Module):
    """Kinds of atoms and where they are, two such layers, and a value for the molecule."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layers = nn.Linear(4, 12), nn.ModuleList(EGNN() for _ in range(2))
        self.head = perceptron(12, 2)

    def forward(self, kinds: Tensor, coors: Tensor) -> Tensor:
        feats = self.embed(kinds)
        for layer in self.layers:
            feats, coors = layer(feats, coors)
        return self.head(feats).sum(1)


@planted(
    "eps-underflow",
    "layers.0.coors_norm",
    "clamp clamp_min div",
    fails=("16-true",),
    task="regression",
    moot=("bf16-true", "bf16-mixed"),
    family="molecules",
)
def atoms_that_move_along_directions() -> Built:
    """egnn-pytorch: an atom has no direction to itself, and 1e-8 is zero in float16."""
    kinds = F.one_hot(torch.randint(4, (160, 9), generator=torch.Generator().manual_seed(2)), 4)
    return taught(Molecules, (kinds.float(), 3 * drawn(160, 9, 3, seed=3)), 0.02)


class PairNorm(nn.Module):
    """Nodes less their mean, by the root of their mean squared length."""

    def __init__(self, scale: float = 1.0, eps: float = 1e-5) -> None:
        super().__init__()
        self.scale, self.eps = scale, eps

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(dim=1, keepdim=True)
        squares = x.pow(2).sum(-1).mean(dim=1).view(-1, 1, 1)
        return self.scale * x / (self.eps + squares).sqrt()


class Convolved(nn.Module):
    """A graph convolution with self loops, normalised by roots of degrees."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.lin = nn.Linear(into, out)

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        deg_inv_sqrt = adj.sum(-1).pow(-0.5)
        deg_inv_sqrt = deg_inv_sqrt.masked_fill(deg_inv_sqrt == float("inf"), 0.0)
        adj = deg_inv_sqrt.unsqueeze(-1) * adj * deg_inv_sqrt.unsqueeze(-2)
        return adj @ self.lin(x)


class Paired(nn.Module):
    """Word counts of papers, two convolutions, a pair norm behind the first, the first paper."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = Convolved(20, 96), PairNorm(10.0), Convolved(96, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv1(x, adj)))
        return self.head(F.relu(self.conv2(x, adj))[:, 0])


def papers(counts: float) -> Built:
    """Papers that cite each other; some cite none, and are cited by none."""
    x = drawn(220, 10, 20, seed=4).abs() * counts
    linked = (drawn(220, 10, 10, seed=5) > 0.8).float()
    adj = ((linked + linked.transpose(1, 2)) > 0).float()
    adj[:, -1] = adj[:, :, -1] = 0
    return settled(Paired, (x, adj))


@planted(
    "overflow",
    "norm",
    "sum pow",
    fails=("16-true",),
    fails_cpu=("16-mixed",),
    family="graphs",
)
def papers_paired_by_counts() -> Built:
    """pytorch_geometric's PairNorm: squares of forty, 96 of them, are summed in half."""
    return papers(90.0)


@healthy()
def papers_paired_by_few_counts() -> Built:
    """pytorch_geometric's PairNorm: the same with smaller counts; a lonely paper has degree 0."""
    return papers(6.0)
