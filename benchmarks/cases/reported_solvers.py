"""Held-out solvers, as libraries ship them: processes, adaptive steps, chains, planes, splines.

Drawn at random; labels are the models' own float32 outputs and a little noise.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import ALL, FP16, TRUE, Built, healthy, planted
from benchmarks.cases.reported_quantities import perceptron, taught


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Posterior(nn.Module):
    """The mean of a Gaussian process; the factor of its kernel is kept from the first call on."""

    def __init__(self, noise: float, wide: bool) -> None:
        super().__init__()
        self.places, self.targets = nn.Parameter(drawn(40, 3)), nn.Parameter(drawn(40, 1, seed=1))
        self.noise, self.wide, self.memo = noise, wide, {}

    def kernel(self, x: Tensor) -> Tensor:
        here, there = x.square().sum(-1, keepdim=True), self.places.square().sum(-1)
        return torch.exp((2 * x @ self.places.T - here - there) / 8)

    def factor(self) -> Tensor:
        kernel = self.kernel(self.places)
        kernel = kernel.float() if self.wide else kernel
        ridge = self.noise * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
        found, info = torch.linalg.cholesky_ex(kernel + ridge)
        if bool(info.any()):
            raise ValueError("the matrix is not positive definite")
        return found

    def forward(self, x: Tensor) -> Tensor:
        if "factor" not in self.memo:
            self.memo["factor"] = self.factor()
        factor = self.memo["factor"]
        weights = torch.cholesky_solve(self.targets.to(factor.dtype), factor)
        return self.kernel(x).to(factor.dtype) @ weights


class Process(nn.Module):
    """Features and a process over them."""

    def __init__(self, noise: float, wide: bool) -> None:
        super().__init__()
        self.body, self.posterior = perceptron(6, 3), Posterior(noise, wide)

    def forward(self, x: Tensor) -> Tensor:
        return self.posterior(3 * self.body(x))


def process(noise: float, wide: bool) -> Built:
    """A process that has kept nothing yet, and 400 inputs."""
    model, batches = taught(lambda: Process(noise, wide), (drawn(400, 6, seed=2),))
    model.posterior.memo.clear()
    return model, batches


@planted(
    "precision-loss", "posterior", "exp mm addmm mul sub div _to_copy linalg_cholesky_ex add",
    fails=ALL, also=("unsupported-op", "cancellation"), task="regression",
)  # fmt: skip
def posterior_of_a_process() -> Built:
    """gpytorch #969: a kernel of close places is not positive definite once it is rounded."""
    return process(2e-3, wide=False)


@healthy(task="regression", precisions=FP16)
def process_that_keeps_its_factor() -> Built:
    """gpytorch: the factor of a well-conditioned kernel, solved in float32, memoized."""
    return process(1.0, wide=True)


class Adaptive(nn.Module):
    """Runge and Kutta's steps of orders two and three, with a size that errors choose."""

    def __init__(self, double: bool) -> None:
        super().__init__()
        self.field, self.double = perceptron(2, 2), double

    @staticmethod
    def length(x: Tensor, y: Tensor) -> Tensor:
        return (x / (1e-5 + 2e-3 * y.abs())).square().mean().sqrt()

    def forward(self, y: Tensor) -> Tensor:
        kind = torch.float64 if self.double else y.dtype
        now = torch.tensor(0.0, dtype=kind, device=y.device)
        size = (self.length(y, y) / self.length(self.field(y), y) / 100).to(kind)
        while now < 1:
            size = torch.minimum(size, 1 - now)
            h = size.to(y.dtype)
            a = self.field(y)
            b = self.field(y + h / 2 * a)
            c = self.field(y - h * a + 2 * h * b)
            error = (h * (a - 2 * b + c) / 6).abs()
            ratio = self.length(error, y).to(kind)
            if not torch.isfinite(ratio) or now + size == now:
                raise ValueError(f"underflow in dt {float(size)}")
            if ratio <= 1:
                now, y = now + size, y + h * (a + 4 * b + c) / 6
            size = size * (0.9 * ratio.clamp(min=1e-3) ** (-1 / 3)).clamp(0.2, 5)
        return y


class Flowing(nn.Module):
    """States that flow for a second, and what they lead to."""

    def __init__(self, double: bool) -> None:
        super().__init__()
        self.solver, self.head = Adaptive(double), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.solver(x))


@planted(
    "overflow", "solver", "pow square", fails=("16-true",), moot=("bf16-true",), task="regression",
)  # fmt: skip
def steps_sized_by_errors() -> Built:
    """torchdiffeq: lengths in units of a tolerance leave float16, and no step can be chosen."""
    return taught(lambda: Flowing(double=False), (drawn(200, 2),))


@healthy(task="regression", precisions=("16-mixed", "bf16-mixed"))
def steps_in_double_time() -> Built:
    """torchdiffeq: time and step are float64, and so are the decisions on them."""
    return taught(lambda: Flowing(double=True), (drawn(200, 2) + 2,))


class Chain(nn.Module):
    """The logarithm of what all ways through the tags of a sequence weigh."""

    def __init__(self, tags: int) -> None:
        super().__init__()
        self.between = nn.Parameter(0.2 * torch.rand(tags, tags) - 0.1)

    def forward(self, emissions: Tensor) -> Tensor:
        score = emissions[:, 0]
        for step in emissions[:, 1:].unbind(1):
            ways = score.unsqueeze(2) + self.between + step.unsqueeze(1)
            score = torch.logsumexp(ways, 1)
        return torch.logsumexp(score, 1, keepdim=True)


class Tagged(nn.Module):
    """Emissions of a sequence, and its chain."""

    def __init__(self, wide: bool = False) -> None:
        super().__init__()
        self.body, self.chain, self.wide = perceptron(8, 7), Chain(7), wide

    def forward(self, x: Tensor) -> Tensor:
        emissions = self.body(x)
        return self.chain(emissions.float() if self.wide else emissions)


@planted(
    "absorption", "chain", "add logsumexp log exp sum sub", fails=TRUE,
    also=("precision-loss", "cancellation"), task="regression",
)  # fmt: skip
def chain_of_many_tags() -> Built:
    """pytorch-crf: transitions are added to a score of hundreds, where they are lost."""
    return taught(Tagged, (drawn(64, 120, 8),))


class Plane(nn.Module):
    """The projective map between matched points, by a direct linear transform."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        x, y, u, v = *a.unbind(-1), *b.unbind(-1)
        one, zero = torch.ones_like(x), torch.zeros_like(x)
        rows = [
            torch.stack([zero, zero, zero, -x, -y, -one, v * x, v * y, v], -1),
            torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y, -u], -1),
        ]
        design = torch.cat(rows, 1)
        normal = design.transpose(1, 2) @ design
        found = torch.linalg.eigh(normal.float()).eigenvectors[:, :, 0]
        return (found[:, :8] / found[:, 8:]).to(a.dtype)


class Matched(nn.Module):
    """Points that a network nudges, and the map between them."""

    def __init__(self) -> None:
        super().__init__()
        self.nudge, self.plane = nn.Linear(2, 2), Plane()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.plane(a + 0.01 * self.nudge(a), b)


def matches() -> tuple[Tensor, Tensor]:
    """Twelve points in 200 views, in units of the picture, and where a random map puts them."""
    a = 4 * torch.rand(200, 12, 2, generator=torch.Generator().manual_seed(0))
    tilt = torch.eye(3) + 0.05 * drawn(200, 3, 3)
    moved = F.pad(a, (0, 1), value=1.0) @ tilt.transpose(1, 2)
    return a, moved[..., :2] / moved[..., 2:]


@planted(
    "precision-loss", "plane", "bmm mul neg _to_copy stack cat", fails=ALL,
    also=("cancellation", "absorption"), task="regression",
)  # fmt: skip
def plane_by_normal_equations() -> Built:
    """kornia: normal equations have the square of a condition number, and 16 bits do not."""
    return taught(Matched, matches())
