"""Held-out draws and counts: actions, particles, ranks, histograms, candidates, depths, votes.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

from benchmarks.cases.base import ALL, TRUE, Built, healthy, planted
from benchmarks.cases.reported_quantities import perceptron, taught
from benchmarks.cases.reported_structures import settled
from benchmarks.cases.reported_tongues import decided, drawn


class Squashed(nn.Module):
    """Soft actor-critic: actions through a tanh, and how likely each was."""

    def __init__(self, stable: bool, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.stable, self.epsilon = stable, epsilon
        self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU())
        self.mean_linear, self.log_std_linear = nn.Linear(32, 6), nn.Linear(32, 6)
        with torch.no_grad():
            self.mean_linear.weight *= 8

    def forward(self, state: Tensor, noise: Tensor) -> Tensor:
        x = self.body(state)
        mean, log_std = self.mean_linear(x), torch.clamp(self.log_std_linear(x), -20, 2)
        normal = Normal(mean, log_std.exp())
        x_t = mean + normal.stddev * noise
        log_prob = normal.log_prob(x_t)
        if self.stable:
            log_prob = log_prob - 2 * (math.log(2) - x_t - F.softplus(-2 * x_t))
        else:
            log_prob = log_prob - torch.log(1 - torch.tanh(x_t).pow(2) + self.epsilon)
        return log_prob.sum(1, keepdim=True)


@planted("cancellation", "", "rsub sub pow tanh", fails=TRUE, family="agents", task="regression",
         also=("absorption", "precision-loss"))  # fmt: skip
def chances_of_squashed_actions() -> Built:
    """pytorch-soft-actor-critic: 1 - tanh² of three is a hundredth, and nothing in bfloat16."""
    return taught(partial(Squashed, False), (drawn(400, 8, seed=1), drawn(400, 6, seed=2)), 0.02)


@healthy(task="regression")
def chances_of_squashed_actions_by_softplus() -> Built:
    """SpinningUp's: the same logarithm as log 2 - x - softplus(-2x)."""
    return taught(partial(Squashed, True), (drawn(400, 8, seed=1), drawn(400, 6, seed=2)), 0.02)


class ParticleFilter(nn.Module):
    """Particles that are weighed by what is seen, and drawn anew by a running sum of weights."""

    def __init__(self, particles: int = 256) -> None:
        super().__init__()
        self.k = particles
        self.move, self.weigh = perceptron(4, 4, 12), perceptron(8, 1, 16)
        self.register_buffer("start", drawn(particles, 4, seed=3))

    def forward(self, seen: Tensor) -> Tensor:
        n, steps, _ = seen.shape
        x = self.start.expand(n, -1, -1)
        for t in range(steps):
            x = x + 0.5 * self.move(x)
            now = seen[:, t].unsqueeze(1).expand(-1, self.k, -1)
            cdf = self.weigh(torch.cat([x, now], -1)).squeeze(-1).softmax(-1).cumsum(-1)
            u = (torch.arange(self.k, dtype=cdf.dtype, device=cdf.device) + 0.5) / self.k
            index = torch.searchsorted(cdf, u.expand(n, -1).contiguous())
            x = torch.gather(x, 1, index.unsqueeze(-1).expand(-1, -1, 4))
        return x.mean(1)


class Tracker(nn.Module):
    """Where a filter ends."""

    def __init__(self) -> None:
        super().__init__()
        self.filter, self.head = ParticleFilter(), nn.Linear(4, 3)

    def forward(self, seen: Tensor) -> Tensor:
        return self.head(self.filter(seen))


@planted("precision-loss", "filter", "searchsorted gather cumsum add arange div",
         fails=TRUE, moot=("16-mixed", "bf16-mixed"), family="filters",
         task="regression", also=("absorption",))  # fmt: skip
def particles_drawn_by_a_running_sum() -> Built:
    """Systematic resampling: weights add up to 0.996, and the last particle is out of range."""
    return taught(Tracker, (drawn(128, 4, 4, seed=4),), 0.02)


class RankGauss(nn.Module):
    """Columns by the ranks of their values, as normal numbers."""

    def __init__(self, columns: Tensor, steps: int, edge: float) -> None:
        super().__init__()
        self.steps, self.edge = steps, edge
        at = torch.linspace(0, 1, steps + 1)
        self.register_buffer("quantiles", torch.quantile(columns, at, dim=0).T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        rank = torch.searchsorted(self.quantiles, x.T.contiguous()).T.to(x.dtype)
        share = (rank / self.steps).clamp(self.edge, 1 - self.edge)
        return torch.erfinv(2 * share - 1) * math.sqrt(2)


class Columns(nn.Module):
    """Normal numbers, and a perceptron."""

    def __init__(self, columns: Tensor, edge: float) -> None:
        super().__init__()
        self.ranks, self.net = RankGauss(columns, 100, edge), perceptron(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.ranks(x))


@planted("absorption", "ranks", "clamp mul sub erfinv", fails=TRUE, family="tables",
         also=("precision-loss", "overflow", "eps-underflow"))  # fmt: skip
def ranks_at_the_edge() -> Built:
    """RankGauss: 1 - 1e-6 is one in 16 bits, of which erfinv is infinite."""
    return settled(partial(Columns, drawn(2000, 6, seed=5), 1e-6), (drawn(400, 6, seed=6) * 1.3,))


@healthy(precisions=("16-true", "16-mixed", "bf16-mixed"))
def ranks_within_the_format() -> Built:
    """The same with an edge of a thousandth, which float16 has."""
    return settled(partial(Columns, drawn(2000, 6, seed=5), 1e-3), (drawn(400, 6, seed=6) * 1.3,))


class Histogram(nn.Module):
    """Events of twelve kinds, counted by how much each matters."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.head = nn.Linear(5, 1), nn.Linear(12, 3)

    def forward(self, kinds: Tensor, events: Tensor) -> Tensor:
        n = kinds.shape[0]
        weights = self.gate(events).sigmoid().flatten()
        place = kinds + 12 * torch.arange(n, device=kinds.device).unsqueeze(1)
        counts = torch.bincount(place.flatten(), weights=weights, minlength=12 * n)
        return self.head(counts.view(n, 12))


@planted("unsupported-op", "head", "linear addmm mm matmul", fails=ALL, family="tables")
def histograms_of_half() -> Built:
    """torch.bincount: counts weighed by float32 are float32, and by any other type float64."""
    kinds = (12 * drawn(300, 20, seed=7).sigmoid()).long().clamp(0, 11)
    return settled(Histogram, (kinds, drawn(300, 20, 5, seed=8)))


class TwoTowers(nn.Module):
    """Candidates by their product with a user, less how often each is drawn as a negative."""

    def __init__(self, wide: bool, items: int = 120) -> None:
        super().__init__()
        self.wide, self.user, self.item = wide, perceptron(8, 16), nn.Embedding(items, 16)
        rank = torch.arange(items).double() * 4000 + 1
        chance = rank**-1.3
        self.register_buffer("sampling_prob", (chance / (20 * chance.sum())).float())
        with torch.no_grad():
            self.item.weight *= 6

    def forward(self, x: Tensor) -> Tensor:
        scores = self.user(x) @ self.item.weight.T
        prob = self.sampling_prob
        if self.wide:
            return scores - prob.clamp(1e-6, 1.0).log().to(scores.dtype)
        return scores - torch.log(prob + 1e-10)


@planted("underflow", "", "_to_copy add log", fails=("16-true",), family="recommenders",
         also=("eps-underflow",))  # fmt: skip
def candidates_hardly_ever_drawn() -> Built:
    """Two towers with logQ: a chance of 2e-8 is none in float16, nor is 1e-10 beside it."""
    return decided(partial(TwoTowers, False), (drawn(300, 8, seed=9) * 2,))
