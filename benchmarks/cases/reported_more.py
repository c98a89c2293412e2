"""Held-out failures, continued: inputs, weights and probabilities that leave float16's range."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import FP16, TRUE, Built, built, fitted, planted


class Densities(nn.Module):
    """Log-density of every class's diagonal Gaussian."""

    def __init__(self, mean: Tensor, spread: Tensor) -> None:
        super().__init__()
        self.mean, self.log_spread = nn.Parameter(mean), nn.Parameter(spread.log())

    def forward(self, x: Tensor) -> Tensor:
        z = (x[:, None] - self.mean) * torch.exp(-self.log_spread)
        return -(z * z).sum(-1) / 2 - self.log_spread.sum(-1)


@planted("overflow", "density", "mul sum", fails=("16-true",), family="density")
def gaussian_log_density() -> Built:
    """Gaussian classifiers: 64 squares of hundreds of standard deviations, summed."""
    (x, y), test = data.digits()
    x = x.flatten(1)
    mean = torch.stack([x[y == c].mean(0) for c in range(10)])
    spread = torch.stack([x[y == c].std(0) for c in range(10)]).clamp(min=0.15) / 250
    model = nn.Sequential(nn.Flatten())
    model.add_module("density", Densities(mean, spread))
    return built(model, test)


class LogSoftmax(nn.Module):
    """The logarithm of a softmax, in two steps."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(torch.softmax(x, -1))


@planted("underflow", "last", "log _softmax softmax", fails=("16-true",), family="mlp")
def log_of_softmax() -> Built:
    """apex: probabilities below 6e-8 are zero in float16, and their logarithm minus infinity."""
    train, test = data.digits()

    def make() -> nn.Module:
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU())
        model.add_module("head", nn.Linear(64, 10))
        model.add_module("last", LogSoftmax())
        return model

    return built(fitted(make, train, loss=F.nll_loss, epochs=40), test)


class MinMax(nn.Module):
    """Scores brought to 0 … 1 within each group."""

    def forward(self, x: Tensor) -> Tensor:
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        return (x - low) / (high - low + 1e-8)


class Scaled(nn.Module):
    """Rows of pixels brought to one range, and a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = MinMax()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.scale(x))


@planted("eps-underflow", "scale", "add div", fails=("16-true",), family="mlp")
def groups_of_equal_scores() -> Built:
    """PyLate: all scores of a group are equal, and the 1e-8 under them is zero."""
    (x, y), (u, v) = data.digits()
    turn = lambda t: t.transpose(2, 3).contiguous()  # noqa: E731  (outer columns are blank)
    return built(fitted(Scaled, (turn(x), y)), (turn(u), v))


class Counts(nn.Module):
    """log(1 + count) of numbers of any size."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.log1p(x)


class Ranker(nn.Module):
    """Dense features as recommenders take them, and a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.norm = Counts(), nn.BatchNorm1d(30)
        self.body = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.norm(self.dense(x)))


@planted(
    "overflow", "dense", "_to_copy log1p", fails=("16-true",),
    moot=("bf16-true",), family="tabular",
)  # fmt: skip
def counts_of_millions() -> Built:
    """Recommenders: a count beyond 65504 is infinite before log1p sees it."""
    (x, y), (u, v) = data.tabular()
    return built(fitted(Ranker, (x * 1000, y), epochs=30), (u * 1000, v))


class Folded(nn.Module):
    """Convolutions whose batch norms are folded into their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, 3, padding=1)
        self.conv2 = nn.Conv2d(12, 24, 3, stride=2, padding=1)
        self.head = nn.Linear(24 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv2(F.relu(self.conv1(x)))).flatten(1))


@planted("overflow", "conv2", "_to_copy convolution conv2d", fails=FP16, family="cnn")
def folded_weight_too_large() -> Built:
    """A batch norm folded over a channel of tiny variance leaves a weight of a million."""
    train, test = data.digits()
    model = fitted(Folded, train)
    with torch.no_grad():  # one channel a million times smaller, its next weight as much larger
        model.conv1.weight[3].mul_(1e-6)
        model.conv1.bias[3].mul_(1e-6)
        model.conv2.weight[:, 3].mul_(1e6)
    return built(model, test)


class Sinkhorn(nn.Module):
    """Optimal matching of two sets: rows and columns of exp(−cost) brought to sum one in turn."""

    def __init__(self, steps: int = 5) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, cost: Tensor) -> Tensor:
        plan = torch.exp(-cost)
        for _ in range(self.steps):
            plan = plan / plan.sum(2, keepdim=True)
            plan = plan / plan.sum(1, keepdim=True)
        return plan


class Matcher(nn.Module):
    """For each row of the second picture, the row of the first that it is."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.sinkhorn = nn.Linear(8, 16), Sinkhorn()
        self.scale = nn.Parameter(torch.tensor(12.0))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        a, b = self.embed(left), self.embed(right)
        cost = (a[:, :, None] - b[:, None]).square().sum(-1) * self.scale
        return self.sinkhorn(cost + 18.0)


def shuffled(x: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of fashion, the same rows under noise in another order, and the order."""
    random = torch.Generator().manual_seed(seed)
    rows = F.avg_pool2d(x, 3)[:, 0, 1:9, :8]
    order = torch.rand(len(x), 8, generator=random).argsort(1)
    other = rows.gather(1, order[..., None].expand(-1, -1, 8))
    other = other + 0.03 * torch.randn(other.shape, generator=random)
    return rows, other, order


def matching(plan: Tensor, order: Tensor) -> Tensor:
    """Negative log-likelihood of a matching."""
    return F.nll_loss((plan + 1e-9).log(), order)


@planted(
    "underflow", "sinkhorn", "exp", fails=("16-true",), fails_cpu=("16-mixed",),
    moot=("bf16-true", "bf16-mixed"), family="matching",
)  # fmt: skip
def sinkhorn_of_exponentials() -> Built:
    """SuperGlue's matching, not in logarithms: exp(−18) is zero in float16, then 0 / 0."""
    x, _ = data.fashion("train")
    u, _ = data.fashion("test")
    model = fitted(Matcher, shuffled(x[:1500], 0), loss=matching, epochs=25)
    return built(model, shuffled(u[:300], 1))


class HiddenMarkov(nn.Module):
    """Log-likelihood of a sequence under one hidden Markov model per class, step by step."""

    def __init__(self, states: int = 4, constant: float = 40.0) -> None:
        super().__init__()
        self.constant = constant
        self.start = nn.Parameter(torch.randn(10, states))
        self.step = nn.Parameter(torch.randn(10, states, states))
        self.mean = nn.Parameter(torch.randn(10, states, 4) * 0.5 + 0.3)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(len(x), 16, 4)
        step = self.step.log_softmax(-1)
        emit = -(rows[:, :, None, None] - self.mean).square().sum(-1) * 8 - self.constant
        score = self.start.log_softmax(-1) + emit[:, 0]
        for t in range(1, rows.shape[1]):
            score = torch.logsumexp(score[..., None] + step, 2) + emit[:, t]
        return torch.logsumexp(score, -1)


@planted(
    "absorption", "models", "add logsumexp sub", fails=("bf16-true",),
    also=("precision-loss", "cancellation"), moot=("16-true",), family="mixture",
)  # fmt: skip
def forward_algorithm() -> Built:
    """Speech recognition: the log-likelihood of a sequence is hundreds, what differs is a few."""
    train, test = data.digits()

    def make() -> nn.Module:
        model = nn.Sequential()
        model.add_module("models", HiddenMarkov())
        return model

    return built(fitted(make, train, epochs=40), test)


class SumOfMany(nn.Module):
    """A global descriptor: the sum over all places, then its unit vector, by hand."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.flatten(2).sum(-1)
        return total / (total * total).sum(-1, keepdim=True).sqrt()


class Descriptor(nn.Module):
    """Convolution, sum over places, unit vector."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(1, 24, 3, padding=1), SumOfMany()
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(F.relu(self.conv(x))) * 8)


@planted("overflow", "pool", "mul", fails=("16-true",), family="retrieval")
def unit_vector_of_sums() -> Built:
    """Retrieval: a sum over 784 places is a few hundred, and its square no float16."""
    x, y = data.fashion("train")
    u, v = data.fashion("test")
    model = fitted(Descriptor, (x[:3000], y[:3000]), epochs=12)
    with torch.no_grad():
        for parameter in model.conv.parameters():
            parameter.mul_(4)
    return built(model, (u[:600], v[:600]))


class CrossCorrelation(nn.Module):
    """Normalised cross-correlation with templates, from sums of products."""

    def __init__(self, templates: Tensor) -> None:
        super().__init__()
        self.templates = nn.Parameter(templates)

    def forward(self, x: Tensor) -> Tensor:
        n, x = x[0].numel(), x.flatten(1)
        t = self.templates
        both = (x[:, None] * t).mean(-1) - x.mean(-1, keepdim=True) * t.mean(-1)
        a = (x * x).mean(-1, keepdim=True) - x.mean(-1, keepdim=True) ** 2
        b = (t * t).mean(-1) - t.mean(-1) ** 2
        return both / (a * b + 1e-6).sqrt() * n**0.5


@planted("cancellation", "match", "sub", fails=TRUE, also=("precision-loss",), family="matching")
def cross_correlation() -> Built:
    """Stereo matching: E[xy] − E[x]E[y] of pictures with little contrast on a bright ground."""
    (x, y), (u, v) = data.digits()
    bright = lambda t: 0.05 * t + 2.0  # noqa: E731
    flat = bright(x).flatten(1)
    templates = torch.stack([flat[y == c].mean(0) for c in range(10)])

    def make() -> nn.Module:
        model = nn.Sequential()
        model.add_module("match", CrossCorrelation(templates))
        model.add_module("body", nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 10)))
        return model

    return built(fitted(make, (bright(x), y)), (bright(u), v))
