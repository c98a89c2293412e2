"""Held-out units: multivectors, Hounsfield's, pascals and membranes.

Each is written in the shape its project has; outputs of a random model are the labels, or it is
trained on the spot.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import FP16, TRUE, Built, built, fitted, healthy, planted
from benchmarks.cases.parts import Conv
from benchmarks.cases.reported_quantities import perceptron, taught
from benchmarks.cases.reported_tongues import decided, drawn


def product_table() -> Tensor:
    """The geometric product of the plane's eight multivectors e0 e1 e2, with e0 squared zero."""
    table = torch.zeros(8, 8, 8)
    for a in range(8):
        for b in range(8):
            if a & b & 1:
                continue
            swaps = sum(bin(a >> (i + 1)).count("1") for i in range(3) if b >> i & 1)
            table[a ^ b, a, b] = -1.0 if swaps % 2 else 1.0
    return table


class GeometricBilinear(nn.Module):
    """Products of multivectors, normed by the size of what is invariant in them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.left, self.right = (nn.Parameter(0.4 * drawn(channels, channels, seed=s))
                                 for s in (1, 2))  # fmt: skip
        self.register_buffer("basis", product_table())

    def forward(self, x: Tensor) -> Tensor:
        left = torch.einsum("oc,bck->bok", self.left, x)
        right = torch.einsum("oc,bck->bok", self.right, x)
        outer = left.unsqueeze(-1) * right.unsqueeze(-2)
        y = torch.einsum("ijk,bojk->boi", self.basis, outer)
        size = y.square().mean((-2, -1), keepdim=True) + 0.01
        return y / size.sqrt()


class GATr(nn.Module):
    """Points of a scene as multivectors, their products, what is read of them."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.unit, self.bilinear, self.read = unit, GeometricBilinear(6), perceptron(48, 5)

    def forward(self, points: Tensor) -> Tensor:
        points = points / self.unit
        one = torch.ones_like(points[..., :1])
        zero = torch.zeros_like(points[..., :1])
        x = torch.cat([zero, points, one, points.flip(-1), zero, one], -1)
        return 3 * self.read(self.bilinear(x).flatten(1))


def scene() -> tuple[Tensor]:
    """Six points some hundreds of metres away."""
    return (300 * drawn(400, 6, 2, seed=3),)


@planted("overflow", "bilinear", "mul square pow mean bmm", fails=FP16,
         moot=("bf16-true",), family="range")  # fmt: skip
def products_of_multivectors() -> Built:
    """geometric-algebra-transformer#15: products of places, and the square of these."""
    return decided(partial(GATr, 1.0), scene())


@healthy(precisions=(*FP16, "bf16-mixed"))
def products_of_multivectors_of_units() -> Built:
    """The same in units of 300 metres."""
    return decided(partial(GATr, 300.0), scene())


class ScaleIntensity(nn.Module):
    """Hounsfield units to [0, 1] of a window; of the scanner's whole range first, or at once."""

    def __init__(self, first: bool, low: float = 0.0, high: float = 80.0) -> None:
        super().__init__()
        self.first, self.low, self.high = first, low, high

    def forward(self, x: Tensor) -> Tensor:
        if not self.first:
            least, most = -1024.0, 3071.0
            x = (x - least) / (most - least)
            low, high = ((v - least) / (most - least) for v in (self.low, self.high))
            return ((x - low) / (high - low)).clamp(0, 1)
        return (x.clamp(self.low, self.high) - self.low) / (self.high - self.low)


class Slice(nn.Module):
    """What a slice of a head shows."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.net = Conv(first=ScaleIntensity(first))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(image)}


def scored(outputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Cross entropy of a dictionary's logits."""
    return F.cross_entropy(outputs["logits"], labels)


def slices(first: bool) -> Built:
    """Digits of grey matter, 24 units above white, noise of a scanner, a few pixels of bone."""
    noise, parts = torch.Generator().manual_seed(4), []
    for x, y in data.digits():
        x = 25 + 24 * x + 1.5 * torch.randn(x.shape, generator=noise)
        parts.append((x.masked_fill(torch.rand(x.shape, generator=noise) < 0.02, 900.0), y))
    return built(fitted(partial(Slice, first), parts[0], epochs=20, loss=scored), parts[1])


@planted("cancellation", "net.first", "sub div", fails=("bf16-true",), moot=("16-true",),
         also=("precision-loss", "absorption"), family="units")  # fmt: skip
def window_of_a_range_of_four_thousand() -> Built:
    """MedSAM#101, research-contributions#305: a window of what has been scaled to [0, 1]."""
    return slices(False)


@healthy()
def window_of_hounsfield_units() -> Built:
    """The same window of the units themselves, which are exact near zero."""
    return slices(True)


class Standardize(nn.Module):
    """Fields by their mean and spread."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.tensor([101325.0, 288.0, 0.0, 0.006]))
        self.register_buffer("scale", torch.tensor([900.0, 12.0, 8.0, 0.003]))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.center) / self.scale


class Station(nn.Module):
    """Tomorrow's rain of pressure, temperature, wind and humidity."""

    def __init__(self) -> None:
        super().__init__()
        self.standardize, self.net = Standardize(), perceptron(4, 2)
        with torch.no_grad():
            self.net[0].weight[:, 0] *= 3

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.standardize(x))


@planted("overflow", "standardize", "sub", fails=TRUE, also=("cancellation", "precision-loss"),
         family="units", task="regression")  # fmt: skip
def pressure_in_pascals() -> Built:
    """reformatters#83: 101325 is infinite in float16, and known to 512 in bfloat16."""
    model = Station()
    fields = model.standardize.center + drawn(500, 4, seed=5) * model.standardize.scale
    return taught(Station, (fields,))


class Heaviside(torch.autograd.Function):
    """A step, with the slope of a sigmoid for those who train it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x >= 0).to(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        s = torch.sigmoid(4 * ctx.saved_tensors[0])
        return gradient * 4 * s * (1 - s)


class IFNode(nn.Module):
    """Membranes that add up what comes in, fire at one, and start anew."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Tensor | float = 0.0

    def reset(self) -> None:
        self.v = 0.0

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.v, float):
            self.v = torch.full_like(x, self.v)
        self.v = self.v + x
        spike = Heaviside.apply(self.v - 1.0)
        self.v = (1.0 - spike) * self.v
        return spike


class Spiking(nn.Module):
    """A current for each neuron, and how often it fires."""

    def __init__(self, steps: int = 100) -> None:
        super().__init__()
        self.current, self.node, self.read = nn.Linear(8, 24), IFNode(), perceptron(24, 4)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        self.node.reset()
        current = 0.03 * torch.sigmoid(2 * self.current(x))
        fired = sum(self.node(current) for _ in range(self.steps))
        return 10 * self.read(3 * (fired - 1.5))


@planted("absorption", "node", "add", fails=("bf16-true", "bf16-mixed"), moot=("16-true",),
         also=("precision-loss",), family="sums")  # fmt: skip
def membranes_that_never_fire() -> Built:
    """spikingjelly#580, #247: 0.0015 is nothing beside 0.9, a hundred times as well."""
    return decided(Spiking, (drawn(160, 8, seed=6),))
