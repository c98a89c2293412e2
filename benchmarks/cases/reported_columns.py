"""Held-out tables: crosses of counts, additive steps, trees by bisections, masks of features.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import Built, healthy, planted
from benchmarks.cases.reported_quantities import taught
from benchmarks.cases.reported_structures import settled
from benchmarks.cases.reported_tongues import drawn


class CrossNet(nn.Module):
    """DCN's second version: each layer times the inputs, plus what came before."""

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(dim, dim) for _ in range(layers))

    def forward(self, x0: Tensor) -> Tensor:
        x = x0
        for linear in self.linears:
            x = x0 * linear(x) + x
        return x


class Crossed(nn.Module):
    """Counts and two small categories, crosses and a deep part, what is clicked."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.embedding, self.cross = nn.Embedding(8, 4), CrossNet(20, layers)
        self.deep = nn.Sequential(nn.Linear(20, 24), nn.ReLU())
        self.norm, self.head = nn.LayerNorm(20), nn.Linear(44, 4)

    def forward(self, counts: Tensor, ids: Tensor) -> Tensor:
        embedded = self.embedding(ids).flatten(1)
        x = torch.cat((counts.to(embedded.dtype), embedded), dim=1)
        return self.head(torch.cat((self.norm(self.cross(x)), self.deep(x / 100)), dim=1))


def clicks(most: float) -> Built:
    """How often a user did each of twelve things."""
    counts = (most * drawn(280, 12, seed=1).abs()).round()
    ids = torch.randint(8, (280, 2), generator=torch.Generator().manual_seed(2))
    return settled(Crossed, (counts, ids))


@planted("overflow", "cross", "mul add _to_copy", fails=("16-true", "16-mixed"), family="crosses")
def crosses_of_raw_counts() -> Built:
    """torchrec's and DeepCTR's DCN-v2: counts of eighty, four times multiplied."""
    return clicks(80.0)


@healthy()
def crosses_of_small_counts() -> Built:
    """torchrec's DCN-v2: crosses of numbers of about one, and a norm behind them."""
    return clicks(1.5)


class ExU(nn.Module):
    """An exponential unit: an input less a place, by weights that are exponentials."""

    def __init__(self, units: int, mean: float) -> None:
        super().__init__()
        self.weights = nn.Parameter(mean + 0.5 * torch.randn(1, units))
        self.bias = nn.Parameter(torch.rand(1))

    def forward(self, x: Tensor) -> Tensor:
        steep = (x.unsqueeze(-1) - self.bias) @ torch.exp(self.weights)
        return torch.clip(steep, 0, 1)


class Additive(nn.Module):
    """A neural additive model: a steep curve of each feature, and their sum."""

    def __init__(self, features: int = 6, units: int = 24) -> None:
        super().__init__()
        self.feature_nns = nn.ModuleList(ExU(units, 5.5) for _ in range(features))
        self.outs = nn.ModuleList(nn.Linear(units, 2) for _ in range(features))

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(self.feature_nns, self.outs, x.unbind(-1), strict=True)
        return torch.stack([out(curve(one)) for curve, out, one in parts]).sum(0)


@healthy(task="regression")
def curves_that_rise_within_a_hundredth() -> Built:
    """AmrMKayid/nam: exp(5.5) times what is off by 0.002, but only where a curve rises."""
    bent = torch.rand(280, 6, generator=torch.Generator().manual_seed(3))
    return taught(Additive, (bent,), 0.1)


def entmax15(x: Tensor) -> Tensor:
    """Exactly: a sort, running means, a threshold and a square."""
    x = (x - x.amax(-1, keepdim=True)) / 2
    ordered = x.sort(dim=-1, descending=True).values
    rho = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype)
    mean, mean_sq = ordered.cumsum(-1) / rho, (ordered**2).cumsum(-1) / rho
    delta = (1 - rho * (mean_sq - mean**2)) / rho
    tau = mean - delta.clamp(min=0).sqrt()
    support = (tau <= ordered).sum(-1, keepdim=True)
    return (x - tau.gather(-1, support - 1)).clamp(min=0) ** 2


def entmoid15(x: Tensor) -> Tensor:
    """The same of two, in closed form."""
    is_pos, x = x >= 0, x.abs()
    tau = (x + (8 - x**2).clamp(min=0).sqrt()) / 2
    tau = torch.where(tau <= x, 2.0, tau)
    y = 0.25 * (tau - x).clamp(min=0) ** 2
    return torch.where(is_pos, 1 - y, y)


class ODST(nn.Module):
    """NODE's oblivious trees: a few features each, soft bisections, a response for each leaf."""

    def __init__(self, into: int, trees: int = 8, depth: int = 3, out: int = 4) -> None:
        super().__init__()
        self.response = nn.Parameter(torch.randn(trees, out, 2**depth))
        self.choice = nn.Parameter(2 * torch.rand(into, trees, depth))
        self.thresholds = nn.Parameter(torch.randn(trees, depth) / 2)
        self.log_temperatures = nn.Parameter(torch.randn(trees, depth) / 4 - 0.3)
        offsets = 2 ** torch.arange(depth)
        codes = (torch.arange(2**depth).view(1, -1) // offsets.view(-1, 1) % 2).float()
        self.register_buffer("codes", torch.stack((codes, 1 - codes), dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        selectors = entmax15(self.choice.transpose(0, 2)).transpose(0, 2)
        values = torch.einsum("bi,ind->bnd", x, selectors)
        logits = (values - self.thresholds) * torch.exp(-self.log_temperatures)
        logits = torch.stack((-logits, logits), dim=-1)
        matches = torch.einsum("bnds,dcs->bndc", entmoid15(logits), self.codes)
        return torch.einsum("bnd,ncd->bnc", matches.prod(dim=-2), self.response)


class Forest(nn.Module):
    """A layer of trees, and a head on all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.trees, self.head = ODST(10), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trees(x).flatten(1))


@healthy()
def trees_of_soft_bisections() -> Built:
    """Qwicen/node: roots of differences of squares, counted supports, leaves by products."""
    return settled(Forest, (drawn(300, 10, seed=4),))


def sparsemax(x: Tensor) -> Tensor:
    """The nearest point of the simplex."""
    x = x - x.amax(-1, keepdim=True)
    ordered = x.sort(dim=-1, descending=True).values
    k = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype)
    sums = ordered.cumsum(-1) - 1
    support = (k * ordered > sums).sum(-1, keepdim=True)
    tau = sums.gather(-1, support - 1) / support.to(x.dtype)
    return (x - tau).clamp(min=0)


class GLU(nn.Module):
    """A linear layer, its ghost batch norm, half of it a gate."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.fc, self.bn = nn.Linear(into, 2 * out, bias=False), nn.BatchNorm1d(2 * out)

    def forward(self, x: Tensor) -> Tensor:
        chunks = self.fc(x).chunk(4, dim=0)
        return F.glu(torch.cat([self.bn(c) for c in chunks], dim=0), dim=-1)


class TabNet(nn.Module):
    """Three steps, each with a mask of features that it has not used too much; sums of them."""

    def __init__(self, features: int = 12, dim: int = 8, gamma: float = 1.3) -> None:
        super().__init__()
        self.gamma, self.bn = gamma, nn.BatchNorm1d(features)
        self.shared = GLU(features, 2 * dim)
        self.own = nn.ModuleList(GLU(2 * dim, 2 * dim) for _ in range(4))
        self.attention = nn.ModuleList(nn.Linear(dim, features) for _ in range(3))
        self.head = nn.Linear(dim, 4)

    def features(self, x: Tensor, step: int) -> tuple[Tensor, Tensor]:
        x = self.shared(x)
        return ((x + self.own[step](x)) * 0.5**0.5).chunk(2, dim=-1)  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(x)
        prior, total = torch.ones_like(x), 0.0
        _, att = self.features(x, 0)
        for step, attention in enumerate(self.attention):
            mask = sparsemax(prior * attention(att) * 4)
            prior = prior * (self.gamma - mask)
            out, att = self.features(mask * x, step + 1)
            total = total + F.relu(out)
        return self.head(total)


@healthy()
def features_by_sparse_masks() -> Built:
    """dreamquark-ai/tabnet: sparsemax by running sums, masks whose priors are multiplied."""
    return settled(TabNet, (drawn(300, 12, seed=5),))
