"""Held-out quantities: energies, depths, places, fields and smoothers; outputs that are values.

Most are drawn at random and hand their own float32 outputs out as labels, with noise beside them:
what a value loses in 16 bits does not depend on how its network was trained.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import ALL, FP16, TRUE, Built, built, healthy, planted


def taught(make: Callable[[], nn.Module], inputs: tuple[Tensor, ...], noise: float = 0.05) -> Built:
    """A random model; its own outputs and a little noise are the labels."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = make().eval()
        said = model(*inputs)
        labels = said + noise * said.std() * torch.randn_like(said)
    return built(model, (*inputs, labels))


def perceptron(into: int, out: int, hidden: int = 48) -> nn.Sequential:
    """Two layers."""
    return nn.Sequential(nn.Linear(into, hidden), nn.SiLU(), nn.Linear(hidden, out))


class Readout(nn.Module):
    """An energy per atom, on top of what the atom has alone, summed over the molecule."""

    def __init__(self, alone: float) -> None:
        super().__init__()
        self.body = perceptron(8, 1)
        self.register_buffer("alone", torch.full((1,), alone))

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x) + self.alone).sum(1)


class Absolute(nn.Module):
    """Features of twelve atoms, and their energy."""

    def __init__(self, alone: float = -1027.6) -> None:
        super().__init__()
        self.enter, self.readout = perceptron(8, 8), Readout(alone)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.enter(x))


def atoms() -> tuple[Tensor, ...]:
    """Twelve oxygen atoms in 400 states."""
    return (torch.randn(400, 12, 8, generator=torch.Generator().manual_seed(0)),)


@planted(
    "absorption", "readout", "add sum", fails=TRUE, also=("precision-loss",), family="regression",
    task="regression", moot=("bf16-mixed",),
)  # fmt: skip
def energies_of_atoms_alone() -> Built:
    """MACE, SchNetPack: -1027.6 eV an atom, and the states of a molecule differ by one."""
    return taught(Absolute, atoms())


@healthy(task="regression", precisions=(*FP16, "bf16-mixed"))
def energies_above_those_of_atoms() -> Built:
    """The same readout of energies relative to the atoms', which are added back in float64."""
    return taught(partial(Absolute, 0.0), atoms())


class Metres(nn.Module):
    """Depth in metres from its logarithm; Kitti's maps count millimetres, or 256 to a metre."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x.tanh() * 2 + 3.4) * self.unit


class Depth(nn.Module):
    """A depth for each pixel."""

    def __init__(self, unit: float = 1000.0) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 1, 3, padding=1)
        )
        self.depth = Metres(unit)

    def forward(self, x: Tensor) -> Tensor:
        return self.depth(self.body(x) * 4)


@planted(
    "overflow", "depth", "mul", fails=("16-true",), fails_cpu=("16-mixed",), family="regression",
    task="regression",
)  # fmt: skip
def depth_in_millimetres() -> Built:
    """ZoeDepth, monodepth2: 80 metres are 80 000 millimetres; autocast's exp is float32."""
    return taught(Depth, (data.digits()[1][0][:256],))


@healthy(task="regression")
def depth_in_metres() -> Built:
    """The same map in metres."""
    return taught(partial(Depth, 1.0), (data.digits()[1][0][:256],))


class Expectation(nn.Module):
    """Where a heat map is: weights exp(heat), not brought down by their largest."""

    shift = False

    def forward(self, heat: Tensor) -> Tensor:
        n, k, h, w = heat.shape
        flat = heat.flatten(2)
        if self.shift:
            flat = flat - flat.amax(-1, keepdim=True)
        weight = torch.exp(flat)
        weight = (weight / weight.sum(-1, keepdim=True)).view(n, k, h, w)
        y = (weight.sum(3) * torch.arange(h).to(heat)).sum(-1)
        x = (weight.sum(2) * torch.arange(w).to(heat)).sum(-1)
        return torch.stack([x, y], -1).flatten(1)


class ShiftedExpectation(Expectation):
    """The same with the largest taken off."""

    shift = True


class Keypoints(nn.Module):
    """Four keypoints of a picture, as the mean of their heat maps."""

    where: type[Expectation] = Expectation

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 3, padding=1)
        )
        self.expect = self.where()

    def forward(self, x: Tensor) -> Tensor:
        return self.expect(F.interpolate(self.body(x), scale_factor=2.0) * 90)


class ShiftedKeypoints(Keypoints):
    """The same with stable weights."""

    where = ShiftedExpectation


@planted(
    "overflow", "expect", "exp sum div", fails=("16-true",), fails_cpu=("16-mixed",),
    family="regression", task="regression",
)  # fmt: skip
def keypoints_by_plain_exponents() -> Built:
    """Integral regression of poses: exp of a heat of twelve leaves float16's range."""
    return taught(Keypoints, (data.digits()[1][0],))


@healthy(task="regression")
def keypoints_by_shifted_exponents() -> Built:
    """kornia's spatial_expectation2d behind its softmax."""
    return taught(ShiftedKeypoints, (data.digits()[1][0],))


class Flux(nn.Module):
    """The slope of a temperature in kelvin, by central differences on a grid of 64."""

    def forward(self, u: Tensor) -> Tensor:
        kelvin = u + 300.0
        return (kelvin[:, 2:] - kelvin[:, :-2]) * 32


class FluxOfDeviation(nn.Module):
    """The same slope, of the deviation from 300 kelvin."""

    def forward(self, u: Tensor) -> Tensor:
        return (u[:, 2:] - u[:, :-2]) * 32


class Field(nn.Module):
    """A smooth field of 64 places from sixteen coefficients, and its slope."""

    flux: type[nn.Module] = Flux

    def __init__(self) -> None:
        super().__init__()
        self.body = perceptron(16, 8)
        waves = torch.arange(1, 9)[:, None] * torch.linspace(0, 3.14, 64)
        self.register_buffer("waves", waves.sin() / torch.arange(1, 9)[:, None] ** 2)
        self.slope = self.flux()

    def forward(self, x: Tensor) -> Tensor:
        return self.slope(self.body(x) @ self.waves)


class FieldOfDeviation(Field):
    """The same without the 300 kelvin."""

    flux = FluxOfDeviation


def coefficients() -> tuple[Tensor, ...]:
    """Coefficients of 400 fields."""
    return (torch.randn(400, 16, generator=torch.Generator().manual_seed(1)),)


@planted(
    "cancellation", "slope", "sub add", fails=ALL, also=("absorption", "precision-loss"),
    family="regression", task="regression",
)  # fmt: skip
def slope_of_kelvins() -> Built:
    """neuraloperator's PINO losses: neighbours of 300 K differ by less than 16 bits know."""
    return taught(Field, coefficients())


@healthy(task="regression", precisions=FP16)
def slope_of_deviations() -> Built:
    """The same with the mean left out; bfloat16's slope of neighbours is not claimed."""
    return taught(FieldOfDeviation, coefficients())


class Smoother(nn.Module):
    """A kernel smoother, whose squared distances are |a|² + |b|² − 2ab."""

    centred = False

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(2)
        self.register_buffer("known", torch.randn(80, 6, generator=random) + 12)
        self.register_buffer("value", torch.randn(80, 1, generator=random))

    def forward(self, x: Tensor) -> Tensor:
        known = self.known
        if self.centred:
            x, known = x - 12, known - 12
        square = x.pow(2).sum(-1, keepdim=True) + known.pow(2).sum(-1) - 2 * (x @ known.T)
        return (-square / 2).softmax(-1) @ self.value


class CentredSmoother(Smoother):
    """gpytorch's: an adjustment is taken off both first."""

    centred = True


class Smoothed(nn.Module):
    """Features near twelve, and the smoother."""

    smooth: type[Smoother] = Smoother

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.out = self.smooth(), nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.kernel(x))


class SmoothedCentred(Smoothed):
    """The same, centred."""

    smooth = CentredSmoother


def places() -> tuple[Tensor, ...]:
    """Four hundred points about twelve."""
    return (torch.randn(400, 6, generator=torch.Generator().manual_seed(3)) + 12,)


@planted(
    "cancellation", "kernel", "sub add mul mm", fails=ALL, also=("precision-loss", "absorption"),
    family="regression", task="regression",
)  # fmt: skip
def squared_distances_by_products() -> Built:
    """gpytorch's sq_dist without its adjustment: 900 + 900 - 1795, each known to a half."""
    return taught(Smoothed, places())


@healthy(task="regression", precisions=FP16)
def squared_distances_centred() -> Built:
    """gpytorch's sq_dist as it is; the inputs themselves are too coarse in bfloat16 to claim it."""
    return taught(SmoothedCentred, places())
