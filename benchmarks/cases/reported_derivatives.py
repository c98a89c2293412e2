"""Held-out models that differentiate, or integrate, as they go; and functions seldom called."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import TRUE, Built, built, fitted, healthy, planted


class Field(nn.Module):
    """A velocity by place and time."""

    def __init__(self, dim: int, hidden: int = 32) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(dim + 1, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(torch.cat([x, t.expand(*x.shape[:-1], 1)], -1))))


class Flow(nn.Module):
    """A continuous flow: Heun steps, and the exact trace of the Jacobian beside them."""

    def __init__(self, dim: int = 2, steps: int = 6) -> None:
        super().__init__()
        self.field, self.steps = Field(dim), steps

    def slope(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        jacobian = vmap(jacrev(self.field), in_dims=(0, None))(x, t)
        return self.field(x, t), jacobian.diagonal(dim1=-2, dim2=-1).sum(-1)

    def forward(self, x: Tensor) -> Tensor:
        change = torch.zeros_like(x[:, 0])
        width = 1 / self.steps
        for step in range(self.steps):
            start = torch.full_like(x[:1, :1], step * width)[0]
            first, trace = self.slope(x, start)
            second, other = self.slope(x + width * first, start + width)
            x = x + width / 2 * (first + second)
            change = change + width / 2 * (trace + other)
        normal = -0.5 * (x * x).sum(-1) - math.log(2 * math.pi)
        return normal + change


class Densities(nn.Module):
    """A flow for each class: the class by Bayes' rule."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.flows = nn.ModuleList(Flow() for _ in range(classes))
        self.prior = nn.Parameter(torch.zeros(classes))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([flow(x) for flow in self.flows], -1) + self.prior.log_softmax(-1)


def spirals(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three arms."""
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (count,), generator=random)
    r = torch.rand(count, generator=random) * 1.6 + 0.4
    angle = 1.6 * r + y * 2 * math.pi / 3 + 0.15 * torch.randn(count, generator=random)
    return torch.stack([r * angle.cos(), r * angle.sin()], -1), y


@healthy()
def traces_of_a_flow() -> Built:
    """pytorch#192617, #105442: under vmap and autocast a layer's bias is added in another type."""
    model = fitted(Densities, spirals(900, 0), epochs=12, rate=2e-2)
    return built(model, spirals(400, 1), size=200)


class Dirichlet(nn.Module):
    """Mutual information of a Dirichlet's class and its probabilities: what a net does not know."""

    def forward(self, alpha: Tensor) -> Tensor:
        total = alpha.sum(-1, keepdim=True)
        mean = alpha / total
        gap = torch.log(mean) - torch.digamma(alpha + 1) + torch.digamma(total + 1)
        return -(mean * gap).sum(-1)


class WideDirichlet(Dirichlet):
    """In float32."""

    def forward(self, alpha: Tensor) -> Tensor:
        return super().forward(alpha.float())


class Prior(nn.Module):
    """A prior network that says whether a digit is none it knows."""

    def __init__(self, dirichlet: type[Dirichlet]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        self.evidence, self.dirichlet = nn.Linear(64, 5), dirichlet()
        self.scale, self.shift = nn.Parameter(torch.tensor(4.0)), nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        evidence = F.softplus(self.evidence(F.relu(self.body(x))) * 4)
        known = self.dirichlet(evidence * 30 + 1)
        score = self.scale * (known.clamp(min=1e-6).log() + 5) + self.shift
        return score[:, None]


def known_or_not(dirichlet: type[Dirichlet]) -> Built:
    """Digits below five are known."""

    def labelled(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x, (y >= 5).float()[:, None]

    train, test = (labelled(*split) for split in data.digits())
    model = fitted(
        lambda: Prior(dirichlet), train, loss=F.binary_cross_entropy_with_logits, epochs=25
    )
    return built(model, test)


@planted(
    "cancellation", "dirichlet", "digamma sub add", fails=TRUE,
    also=("precision-loss", "absorption"), family="uncertainty", task="multilabel",
)  # fmt: skip
def what_is_not_known() -> Built:
    """Paddle#52604: digamma in bfloat16 differs by tenths, and what is sought is hundredths."""
    return known_or_not(Dirichlet)


@healthy(task="multilabel")
def what_is_not_known_in_float32() -> Built:
    """Paddle#52604, repaired: the measure in float32."""
    return known_or_not(WideDirichlet)


class Counts(nn.Module):
    """Likelihoods of counts under a negative binomial for each type of cell."""

    eps = 1e-8

    def forward(self, x: Tensor, mean: Tensor, theta: Tensor) -> Tensor:
        both = torch.log(theta + mean + self.eps)
        said = theta * (torch.log(theta + self.eps) - both)
        said = said + x * (torch.log(mean + self.eps) - both)
        said = said + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
        return said.sum(-1)


class RelativeCounts(Counts):
    """Without the terms that all types share, over the number of genes, in float32."""

    def forward(self, x: Tensor, mean: Tensor, theta: Tensor) -> Tensor:
        x, mean, theta = x.float(), mean.float(), theta.float()
        both = torch.log(theta + mean + self.eps)
        return ((x * torch.log(mean + self.eps)) - (x + theta) * both).sum(-1)


class Cells(nn.Module):
    """Counts of a cell to its type: log library, encoder, decoder by type, likelihood."""

    def __init__(self, counts: type[Counts], genes: int = 60, types: int = 4) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(genes, 32), nn.ReLU(), nn.Linear(32, 4))
        self.types = nn.Embedding(types, 8)
        self.decode = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, genes))
        self.theta, self.counts = nn.Parameter(torch.zeros(genes)), counts()

    def forward(self, x: Tensor) -> Tensor:
        library = torch.log(x.sum(-1, keepdim=True))
        z = self.encode(torch.log1p(x))[:, None].expand(-1, self.types.num_embeddings, -1)
        kind = self.types.weight.to(z.dtype).expand(len(x), -1, -1)
        share = self.decode(torch.cat([z, kind], -1)).softmax(-1)
        mean = torch.exp(library)[:, None] * share
        return self.counts(x[:, None], mean, torch.exp(self.theta))


def cells(counts: type[Counts], depth: float) -> Built:
    """Sixty genes, four types, another depth for every cell."""

    def drawn(count: int, seed: int) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(seed)
        profile = torch.randn(4, 60, generator=torch.Generator().manual_seed(2)).exp()
        y = torch.randint(0, 4, (count,), generator=random)
        level = depth * torch.exp(0.3 * torch.randn(count, 1, generator=random))
        rate = level * profile[y] * torch.exp(0.8 * torch.randn(count, 60, generator=random))
        return torch.poisson(rate, generator=random), y

    make = lambda: Cells(counts)  # noqa: E731
    return built(fitted(make, drawn(1000, 0), epochs=25), drawn(400, 1), size=100)


@planted(
    "overflow", "", "sum", fails=("16-true",), moot=("bf16-true",),
    also=("cancellation", "precision-loss"), family="counts",
)  # fmt: skip
def libraries_of_cells() -> Built:
    """scvi-tools#516: NaN from the counts of a deep cell, whose sum is a library size."""
    return cells(Counts, 700.0)


@planted(
    "cancellation", "counts", "lgamma sub add sum mul", fails=TRUE,
    also=("precision-loss", "overflow"), family="counts",
)  # fmt: skip
def likelihoods_of_counts() -> Built:
    """scvi-tools#663: terms of thousands that all types share, added up in the counts' type."""
    return cells(Counts, 60.0)


@healthy()
def likelihoods_without_the_shared() -> Built:
    """scvi-tools#663: only what differs between types, in float32."""
    return cells(RelativeCounts, 60.0)
