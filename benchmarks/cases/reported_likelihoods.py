"""Held-out likelihoods: hidden states, counts, angles, simplexes, orders, gaps.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, VonMises
from torch.nn import functional as F

from benchmarks.cases.base import FP16, Built, healthy, planted
from benchmarks.cases.reported_quantities import perceptron, taught
from benchmarks.cases.reported_tongues import decided, drawn

BF16 = ("bf16-true", "bf16-mixed")


class Emission(nn.Module):
    """Chances of a symbol in each state."""

    def __init__(self, states: int, symbols: int) -> None:
        super().__init__()
        self.unnormalized = nn.Parameter(drawn(states, symbols, seed=5))

    def forward(self, symbol: Tensor) -> Tensor:
        return self.unnormalized.softmax(1)[:, symbol].transpose(0, 1)


class HMM(nn.Module):
    """The forward algorithm in chances, step by step, into a preallocated table."""

    def __init__(self, states: int = 6, symbols: int = 12, mended: bool = False) -> None:
        super().__init__()
        self.emission = Emission(states, symbols)
        self.transition = nn.Parameter(2 * drawn(states, states, seed=6))
        self.prior = nn.Parameter(torch.zeros(states))
        self.mended = mended

    def forward(self, x: Tensor) -> Tensor:
        n, steps = x.shape
        move = self.transition.softmax(1)
        alpha = x.new_zeros(n, steps, len(self.prior), dtype=move.dtype)
        alpha[:, 0] = self.prior.softmax(0) * self.emission(x[:, 0])
        total = torch.zeros(n, 1, device=x.device)
        for t in range(1, steps):
            alpha[:, t] = (alpha[:, t - 1] @ move) * self.emission(x[:, t])
            if self.mended:
                scale = alpha[:, t].sum(1, keepdim=True)
                alpha[:, t] = alpha[:, t] / scale
                total = total + scale.log()
        return total + torch.log(alpha[:, -1].sum(1, keepdim=True))


class Sources(nn.Module):
    """Which of three hidden Markov models spoke?"""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.models = nn.ModuleList(HMM(mended=mended) for _ in range(3))
        with torch.no_grad():
            for i, model in enumerate(self.models):
                model.transition.copy_(2 * drawn(6, 6, seed=20 + i))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([model(x) for model in self.models], dim=1)


def symbols() -> Tensor:
    """Sequences of twelve symbols."""
    return torch.randint(0, 12, (384, 16), generator=torch.Generator().manual_seed(3))


@planted(
    "underflow", "models.0", "mul mm copy matmul _to_copy", fails=FP16, moot=BF16, family="range",
)  # fmt: skip
def chances_of_sixteen_steps() -> Built:
    """HMMs in PyTorch: products of sixteen chances fall below float16, and their log to -inf."""
    return decided(lambda: Sources(False), (symbols(),))


@healthy(precisions=FP16)
def chances_brought_to_one_at_every_step() -> Built:
    """HMMs as Rabiner scales them."""
    return decided(lambda: Sources(True), (symbols(),))


@dataclass
class NegativeBinomial:
    """A distribution of counts, in the shape that forecasters have it."""

    total_count: Tensor
    logits: Tensor

    def log_prob(self, value: Tensor) -> Tensor:
        unnormalized = self.total_count * F.logsigmoid(-self.logits) + value * F.logsigmoid(
            self.logits
        )
        normalization = (
            -torch.lgamma(self.total_count + value)
            + torch.lgamma(1.0 + value)
            + torch.lgamma(self.total_count)
        )
        return unnormalized - normalization


class DistributionHead(nn.Module):
    """Parameters of a distribution for each of the kinds of a product."""

    def __init__(self, dim: int, kinds: int) -> None:
        super().__init__()
        self.args_proj = nn.ModuleList(nn.Linear(dim, kinds) for _ in range(2))

    def forward(self, x: Tensor) -> NegativeBinomial:
        total, logits = (proj(x) for proj in self.args_proj)
        return NegativeBinomial(5 + 30 * F.softplus(total), 2.5 + 0.3 * logits)


class Sold(nn.Module):
    """Of which kind are counts of hundreds?"""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = perceptron(8, 16), DistributionHead(16, 5)

    def forward(self, x: Tensor, sold: Tensor) -> Tensor:
        return self.head(self.encoder(x)).log_prob(sold.to(x.dtype))


def counts() -> Tensor:
    """Counts from 200 to 700."""
    return torch.randint(200, 700, (384, 1), generator=torch.Generator().manual_seed(4))


@planted(
    "cancellation", "", "lgamma add sub neg", fails=("bf16-true",),
    moot=("16-true", "bf16-mixed"), also=("precision-loss", "absorption"), family="likelihood",
)  # fmt: skip
def counts_by_gamma_functions() -> Built:
    """gluonts and others: logarithms of factorials of 500 are thousands, and cancel."""
    return decided(Sold, (drawn(384, 8), counts()))


class Headings(nn.Module):
    """Which of five winds blew, by von Mises distributions that know theirs well?"""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.linspace(-0.06, 0.06, 5))
        self.log_kappa = nn.Parameter(torch.tensor([6.4, 6.2, 6.5, 6.3, 6.4]))
        self.body = perceptron(1, 1)

    def forward(self, angle: Tensor) -> Tensor:
        winds = VonMises(self.loc, self.log_kappa.exp(), validate_args=False)
        return winds.log_prob(angle)


@planted(
    "cancellation", "", "sub mul add cos", fails=("bf16-true",), moot=("16-true", *BF16[1:]),
    also=("precision-loss", "absorption"), family="likelihood",
)  # fmt: skip
def winds_of_large_concentration() -> Built:
    """pyro and torch: kappa times a cosine, less a logarithm that is as large."""
    return decided(Headings, (0.05 * drawn(384, 1, seed=7),))


class Policy(nn.Module):
    """A policy that hands out its distribution's chances, as frameworks of agents do."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = perceptron(8, 5)

    def get_dist(self, obs: Tensor) -> Categorical:
        return Categorical(probs=F.softmax(4 * self.actor(obs), dim=-1))

    def forward(self, obs: Tensor) -> Tensor:
        return self.get_dist(obs).logits


@planted(
    "precision-loss", "", "_softmax sub sum", fails=("bf16-true",), moot=("16-true",),
    also=("cancellation",), family="likelihood",
)  # fmt: skip
def chances_that_are_no_simplex() -> Built:
    """stable-baselines3, cleanrl: a sum of chances is one to 1e-6 in no 16-bit format."""
    return decided(Policy, (drawn(384, 8),))


class NeuralSort(nn.Module):
    """A soft permutation of scores."""

    def __init__(self, tau: float = 1.0) -> None:
        super().__init__()
        self.tau = tau

    def forward(self, scores: Tensor) -> Tensor:
        scores = scores.unsqueeze(-1)
        n = scores.size(1)
        one = torch.ones((n, 1), dtype=scores.dtype, device=scores.device)
        distances = torch.abs(scores - scores.permute(0, 2, 1))
        b = torch.matmul(distances, torch.matmul(one, one.transpose(0, 1)))
        scaling = (n + 1 - 2 * (torch.arange(n, device=scores.device) + 1)).type(scores.dtype)
        c = torch.matmul(scores, scaling.unsqueeze(0))
        return torch.softmax((c - b).permute(0, 2, 1) / self.tau, -1)


class Ordered(nn.Module):
    """The middle of what is soft-sorted."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.sort = nn.Linear(4, 1), NeuralSort()
        with torch.no_grad():
            self.score.weight.fill_(8.0)

    def forward(self, x: Tensor) -> Tensor:
        order = self.sort(self.score(x).squeeze(-1))
        return (order @ x)[:, 48:52].flatten(1)


@planted(
    "cancellation", "sort", "sub bmm mm matmul div", fails=BF16, moot=FP16,
    also=("precision-loss",), family="orders", task="regression",
)  # fmt: skip
def permutations_by_sums_of_distances() -> Built:
    """neuralsort: scores times a hundred, less sums of a hundred distances."""
    return taught(Ordered, (drawn(384, 100, 4),))


class EventTimes(nn.Module):
    """A point process: intensities that decay with the time since every event."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.mark, self.mended = nn.Embedding(5, 16), mended
        self.decay = nn.Parameter(torch.linspace(0.2, 2.0, 16))

    def forward(self, gaps: Tensor, kinds: Tensor) -> Tensor:
        if self.mended:
            since = gaps.flip(1).cumsum(1).flip(1) - gaps
        else:
            times = 500.0 + torch.cumsum(gaps, dim=1)
            since = times[:, -1:] - times
        weight = torch.exp(-self.decay * since.unsqueeze(-1))
        return (weight * self.mark(kinds)).sum(1)


class Hawkes(nn.Module):
    """What comes next?"""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.events, self.head = EventTimes(mended), perceptron(16, 5)

    def forward(self, gaps: Tensor, kinds: Tensor) -> Tensor:
        return self.head(self.events(gaps, kinds))


def events() -> tuple[Tensor, Tensor]:
    """Gaps of a tenth or so, and kinds."""
    random = torch.Generator().manual_seed(5)
    gaps = 0.2 * torch.rand(384, 40, generator=random)
    return gaps, torch.randint(0, 5, (384, 40), generator=random)


@planted(
    "absorption", "events", "add cumsum sub", fails=("bf16-true",), moot=("16-true",),
    also=("cancellation", "precision-loss"), family="time",
)  # fmt: skip
def times_since_events() -> Built:
    """EasyTPP and others: 500.1 is 500 in bfloat16, and so are all times of a stream."""
    return decided(lambda: Hawkes(False), events())


@healthy(precisions=("16-true", "16-mixed", "bf16-mixed"))
def times_since_events_by_their_gaps() -> Built:
    """The same times, summed from the end."""
    return decided(lambda: Hawkes(True), events())
