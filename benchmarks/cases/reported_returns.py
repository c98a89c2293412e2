"""Held-out agents and series: bins, projections, discounts, scalars, ratings, levels.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import FP16, TRUE, Built, healthy, planted
from benchmarks.cases.reported_quantities import perceptron, taught
from benchmarks.cases.reported_tongues import drawn

BF16 = ("bf16-true", "bf16-mixed")


def symexp(x: Tensor) -> Tensor:
    """The inverse of a symmetric logarithm."""
    return torch.sign(x) * (torch.exp(torch.abs(x)) - 1.0)


class TwoHotDist:
    """A distribution over 63 bins that are dense near zero."""

    def __init__(self, logits: Tensor, bins: Tensor) -> None:
        self.logits, self.bins = logits, bins
        self.probs = torch.softmax(logits, -1)

    def mean(self) -> Tensor:
        return torch.sum(self.probs * self.bins, dim=-1, keepdim=True)


class Head(nn.Module):
    """A head that returns a distribution."""

    def __init__(self, into: int, far: float) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(into, 32), nn.SiLU(), nn.Linear(32, 63))
        self.register_buffer("bins", symexp(torch.linspace(-far, far, 63)))
        with torch.no_grad():  # values of a few tens: far bins have no chance to speak of
            self.mlp[2].bias.copy_(-0.6 * torch.linspace(-20, 20, 63).abs() ** 1.6)

    def forward(self, x: Tensor) -> TwoHotDist:
        return TwoHotDist(self.mlp(x), self.bins)


class Critic(nn.Module):
    """The value of a state."""

    def __init__(self, far: float) -> None:
        super().__init__()
        self.encoder, self.value = perceptron(8, 16), Head(16, far)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(self.encoder(x)).mean()


@planted("overflow", "", "mul", fails=("16-true",), moot=BF16, family="stored",
         task="regression")  # fmt: skip
def bins_of_a_symmetric_exponent() -> Built:
    """dreamerv3-torch: bins up to exp(20) are infinite in float16, and their chances zero."""
    return taught(lambda: Critic(20.0), (drawn(384, 8),))


@healthy(precisions=FP16, task="regression")
def bins_within_the_format() -> Built:
    """The same with bins up to exp(10)."""
    return taught(lambda: Critic(10.0), (drawn(384, 8),))


class C51(nn.Module):
    """Rainbow's categorical projection of a target distribution."""

    def __init__(self, atoms: int = 21, mended: bool = False) -> None:
        super().__init__()
        self.atoms, self.v_min, self.v_max, self.mended = atoms, -5.0, 5.0, mended
        self.delta_z = (self.v_max - self.v_min) / (atoms - 1)
        self.register_buffer("support", torch.linspace(self.v_min, self.v_max, atoms))

    def forward(self, probs: Tensor, returns: Tensor) -> Tensor:
        tz = returns.unsqueeze(1) + 0.9 * self.support.unsqueeze(0)
        tz = tz.clamp(min=self.v_min, max=self.v_max)
        b = (tz - self.v_min) / self.delta_z
        l, u = b.floor().to(torch.int64), b.ceil().to(torch.int64)  # noqa: E741
        l[(u > 0) * (l == u)] -= 1
        u[(l < (self.atoms - 1)) * (l == u)] += 1
        m = returns.new_zeros(len(probs), self.atoms)
        offset = torch.linspace(0, ((len(probs) - 1) * self.atoms), len(probs))
        offset = offset.unsqueeze(1).expand_as(probs).to(l)
        below, above = probs * (u.float() - b), probs * (b - l.float())
        if self.mended:
            below, above = below.to(m.dtype), above.to(m.dtype)
        m.view(-1).index_add_(0, (l + offset).view(-1), below.view(-1))
        m.view(-1).index_add_(0, (u + offset).view(-1), above.view(-1))
        return m


class Rainbow(nn.Module):
    """What the next value is, by atoms."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.net, self.project = perceptron(8, 21), C51(mended=mended)

    def forward(self, x: Tensor, returns: Tensor) -> Tensor:
        m = self.project(F.softmax(2 * self.net(x), dim=1), returns)
        return torch.einsum("na,a->n", m, self.project.support.to(m.dtype)).unsqueeze(1)


@planted(
    "unsupported-op", "project", "index_add", fails=TRUE, moot=("bf16-mixed",), family="types",
    task="regression",
)  # fmt: skip
def projections_of_another_type() -> Built:
    """Kaixhin/Rainbow: an index made float lifts what is added to 16-bit zeros."""
    return taught(lambda: Rainbow(False), (drawn(384, 8), drawn(384, seed=1)))


@healthy(precisions=("16-true", "16-mixed"), task="regression")
def projections_of_the_zeros_type() -> Built:
    """The same, cast to what it is added to."""
    return taught(lambda: Rainbow(True), (drawn(384, 8), drawn(384, seed=1)))


class Advantages(nn.Module):
    """Generalised advantages, backwards in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gamma", torch.tensor(0.997))
        self.register_buffer("lam", torch.tensor(0.998))

    def forward(self, rewards: Tensor, values: Tensor) -> Tensor:
        advantages = torch.zeros_like(rewards)
        last = torch.zeros_like(rewards[:, 0])
        for t in reversed(range(rewards.shape[1])):
            after = values[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros_like(last)
            delta = rewards[:, t] + self.gamma * after - values[:, t]
            advantages[:, t] = last = delta + self.gamma * self.lam * last
        return advantages


class Returned(nn.Module):
    """The first advantages of long rollouts."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.gae = perceptron(4, 1), Advantages()

    def forward(self, states: Tensor, rewards: Tensor) -> Tensor:
        return self.gae(rewards, self.value(states).squeeze(-1))[:, :4]


@planted(
    "precision-loss", "gae", "mul", fails=("bf16-true",), moot=("16-true", "bf16-mixed"),
    family="stored", task="regression",
)  # fmt: skip
def discounts_in_a_buffer() -> Built:
    """Frameworks of agents: 0.997 is 0.996 in bfloat16, and its three hundredth power a third."""
    states, rewards = drawn(128, 200, 4), 0.02 * drawn(128, 200, seed=3).sigmoid() + 0.01
    return taught(Returned, (states, rewards * (1 + 0.3 * drawn(128, 1, seed=2))))


class Inverse(nn.Module):
    """MuZero's way from a distribution over a support to a scalar, by h's inverse."""

    def __init__(self, half: int = 30, epsilon: float = 0.001) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.register_buffer("support", torch.arange(-half, half + 1).float())

    def forward(self, logits: Tensor) -> Tensor:
        probs = torch.softmax(logits, dim=1)
        x = torch.sum(self.support.expand(probs.shape) * probs, dim=1, keepdim=True)
        return torch.sign(x) * (
            (
                (torch.sqrt(1 + 4 * self.epsilon * (torch.abs(x) + 1 + self.epsilon)) - 1)
                / (2 * self.epsilon)
            )
            ** 2
            - 1
        )


class Planned(nn.Module):
    """A value head and its scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.scalar = perceptron(8, 61), Inverse()
        with torch.no_grad():
            self.head[2].weight *= 3

    def forward(self, x: Tensor) -> Tensor:
        return self.scalar(self.head(x))


@planted(
    "cancellation", "scalar", "sub add sqrt", fails=TRUE, also=("absorption",
    "precision-loss"), family="values", task="regression",
)  # fmt: skip
def scalars_by_an_inverse_of_h() -> Built:
    """muzero-general: a root of 1.02 less one, divided by 0.002 and squared."""
    return taught(Planned, (drawn(384, 8),))


class Ratings(nn.Module):
    """Chances to win by ratings in the thousands."""

    def __init__(self) -> None:
        super().__init__()
        self.rating, self.form = nn.Embedding(40, 1), perceptron(6, 1)
        with torch.no_grad():
            self.rating.weight.copy_(2400 + 25 * drawn(40, 1, seed=12))

    def expected(self, a: Tensor, b: Tensor) -> Tensor:
        return 1 / (1 + 10 ** ((self.rating(b) - self.rating(a)) / 400))

    def forward(self, a: Tensor, b: Tensor, lately: Tensor) -> Tensor:
        return self.expected(a, b) + 0.2 * self.form(lately)


@planted(
    "cancellation", "", "sub", fails=("bf16-true",), moot=("16-true",),
    also=("precision-loss",), family="stored", task="regression",
)  # fmt: skip
def ratings_in_the_thousands() -> Built:
    """Rating systems: bfloat16 knows 2400 by sixteens, and players differ by 25."""
    random = torch.Generator().manual_seed(6)
    players = (torch.randint(0, 40, (384,), generator=random) for _ in "ab")
    return taught(Ratings, (*players, drawn(384, 6)))


class InstanceNorm(nn.Module):
    """A series brought to level zero and spread one, and back."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.mended = mended

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        x = x.to(torch.float32)
        loc, scale = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return (x - loc) / scale, (loc, scale)

    def inverse(self, x: Tensor, loc_scale: tuple[Tensor, Tensor]) -> Tensor:
        dtype, (loc, scale) = x.dtype, loc_scale
        out = x.to(torch.float32) * scale + loc
        return out if self.mended else out.to(dtype)


class Bolt(nn.Module):
    """A forecaster of patches; counts of a thousand that vary by a few."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.instance_norm, self.body = InstanceNorm(mended), perceptron(48, 6, 64)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def forward(self, context: Tensor) -> Tensor:
        normed, loc_scale = self.instance_norm(context)
        out = 0.8 * normed[:, -6:] + 2 * self.body(normed.to(self.dtype))
        return self.instance_norm.inverse(out.to(self.dtype), loc_scale)


def sold() -> Tensor:
    """Integer counts near 3000."""
    return (3000 + 12 * drawn(384, 48, seed=14)).round().long()


@planted(
    "precision-loss", "", "_to_copy", fails=("bf16-true",), moot=("16-true",), family="casts",
    task="regression",
)  # fmt: skip
def forecasts_cast_at_their_level() -> Built:
    """chronos-forecasting#532: unscaled in float32, and cast to bfloat16's steps of sixteen."""
    return taught(lambda: Bolt(False), (sold(),))


@healthy(task="regression")
def forecasts_left_at_their_level() -> Built:
    """chronos-forecasting#532, as it was mended."""
    return taught(lambda: Bolt(True), (sold(),))
