"""Held-out nodes and batches: times between events, degrees of none, statistics, covariances.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import ALL, FP16, Built, healthy, planted
from benchmarks.cases.reported_quantities import perceptron
from benchmarks.cases.reported_structures import settled
from benchmarks.cases.reported_tongues import drawn


class TimeEncode(nn.Module):
    """TGN's: cosines of a time since the last event, from a second to a billion of them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.w = nn.Linear(1, dim)
        with torch.no_grad():
            self.w.weight.copy_((10 ** -torch.linspace(0, 9, dim))[:, None])
            self.w.bias.zero_()

    def forward(self, t: Tensor) -> Tensor:
        return torch.cos(self.w(t.unsqueeze(-1)))


class TemporalGraph(nn.Module):
    """A node by its last eight events: what happened, and how many seconds ago."""

    def __init__(self) -> None:
        super().__init__()
        self.time_encoder = TimeEncode(20)
        self.message, self.head = perceptron(24, 24), nn.Linear(24, 4)

    def forward(self, *, events: Tensor, ago: Tensor) -> dict[str, Tensor]:
        said = self.message(torch.cat([events, self.time_encoder(ago)], dim=-1))
        return {"logits": self.head(said.mean(1))}


@planted("overflow", "time_encoder.w", "_to_copy linear addmm mm", fails=ALL, family="graphs",
         also=("precision-loss",))  # fmt: skip
def events_by_the_seconds_since() -> Built:
    """twitter-research/tgn: a day has 86400 seconds, and the first cosine wants each of them."""
    ago = (8 + 2.5 * drawn(400, 8, seed=1)).exp().clamp(1, 2e6)
    data = {"events": drawn(400, 8, 4, seed=2), "ago": ago}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = TemporalGraph().eval()
        model.head.bias -= model(**data)["logits"].mean(0)
        said = model(**data)["logits"]
    sure = said.topk(2).values.diff().squeeze(1).argsort()[:300].sort().values
    data, label = {k: v[sure] for k, v in data.items()}, said.argmax(1)[sure]
    return model, [
        ({k: v[i : i + 100] for k, v in data.items()}, label[i : i + 100]) for i in (0, 100, 200)
    ]


class GCNConv(nn.Module):
    """pytorch_geometric's normalisation: one over the roots of two degrees, of none nothing."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.lin = nn.Linear(into, out)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        deg_inv_sqrt = adjacency.sum(-1).pow(-0.5)
        deg_inv_sqrt = deg_inv_sqrt.masked_fill(deg_inv_sqrt == float("inf"), 0.0)
        norm = deg_inv_sqrt.unsqueeze(-1) * adjacency * deg_inv_sqrt.unsqueeze(-2)
        return norm.to(x.dtype) @ self.lin(x)


class Molecules(nn.Module):
    """Two such layers over graphs with lonely nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = GCNConv(6, 24), GCNConv(24, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        x = F.relu(self.one(x, adjacency))
        return self.head(F.relu(self.two(x, adjacency)).mean(1) * 4)


@healthy()
def nodes_without_a_neighbour() -> Built:
    """pytorch_geometric's gcn_norm: the infinity of a lonely node is filled with zero."""
    random = torch.Generator().manual_seed(3)
    edges = (torch.rand(400, 10, 10, generator=random) < 0.15).float().triu(1)
    return settled(Molecules, (drawn(400, 10, 6, seed=4), edges + edges.transpose(1, 2)))


class Adapted(nn.Module):
    """A net that norms by the batch at hand in evaluation too, as test-time adaptation does."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset
        self.conv1, self.bn1 = nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 16, 3, stride=2), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)
        for norm in (self.bn1, self.bn2):
            norm.track_running_stats = False
            norm.running_mean = norm.running_var = None

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x + self.offset)))
        return self.head(F.relu(self.bn2(self.conv2(x))).mean((2, 3)) * 8)


@healthy()
def statistics_of_the_batch_at_hand() -> Built:
    """DequanWang/tent: batch norm without running statistics."""
    return settled(partial(Adapted, 0.0), (drawn(256, 1, 10, 10, seed=5),), 64)


class MPNCOV(nn.Module):
    """A covariance and its root by Newton and Schulz, five steps, as fast-MPN-COV has them."""

    def __init__(self, steps: int = 5) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        n, d, m = x.shape
        eye = torch.eye(m, dtype=x.dtype, device=x.device)
        middle = (eye - 1.0 / m) / m
        cov = x @ middle @ x.transpose(1, 2)
        trace = cov.diagonal(dim1=1, dim2=2).sum(-1).view(n, 1, 1)
        y, three = cov / trace, 3.0 * torch.eye(d, dtype=x.dtype, device=x.device)
        z = torch.eye(d, dtype=x.dtype, device=x.device).expand(n, d, d)
        for _ in range(self.steps):
            t = 0.5 * (three - z @ y)
            y, z = y @ t, t @ z
        root = y * trace.sqrt()
        i, j = torch.triu_indices(d, d, device=x.device)
        return root[:, i, j]


class Bilinear(nn.Module):
    """Features of a texture, pooled by the root of their covariance."""

    def __init__(self, gain: float, dim: int = 16) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(1, dim, 3), MPNCOV()
        self.head, self.gain = nn.Linear(dim * (dim + 1) // 2, 5), gain

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.gain * F.relu(self.conv(x)).flatten(2)) / self.gain)


def textures() -> tuple[Tensor]:
    """Noise, smoothed one way or the other."""
    x = drawn(256, 1, 12, 12, seed=6)
    way = drawn(256, 1, 1, 1, seed=7).sigmoid()
    return (way * x.roll(1, 2) + (1 - way) * x.roll(1, 3) + x,)


@healthy()
def textures_by_the_root_of_a_covariance() -> Built:
    """jiangtaoxie/fast-MPN-COV: brought to a trace of one, its powers are no larger than one."""
    return settled(partial(Bilinear, 1.0), textures())


@planted("overflow", "pool", "matmul bmm sum mul div", fails=FP16, family="vision")
def textures_of_loud_features() -> Built:
    """jiangtaoxie/fast-MPN-COV: variances of features of 200 and their trace are infinite."""
    return settled(partial(Bilinear, 400.0), textures())
