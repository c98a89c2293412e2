"""Held-out chains: tensors in a row, liquid neurons, series of sines, long filters, trees.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import Built, healthy, planted
from benchmarks.cases.reported_quantities import perceptron, taught
from benchmarks.cases.reported_structures import settled
from benchmarks.cases.reported_tongues import drawn


class MatrixProduct(nn.Module):
    """A chain of tensors: each pixel picks a matrix, products from both ends meet in the middle."""

    def __init__(self, sites: int = 64, bond: int = 6, classes: int = 4, grow: float = 1.0) -> None:
        super().__init__()
        eye = torch.eye(bond).expand(sites, 2, bond, bond)
        half = torch.cat((torch.full((sites // 2,), grow), torch.full((sites // 2,), 1 / grow)))
        cores = (eye + 0.05 * torch.randn(sites, 2, bond, bond)) * half.view(-1, 1, 1, 1)
        self.cores = nn.Parameter(cores)
        self.label = nn.Parameter(torch.randn(classes, bond, bond) * 0.3)

    @staticmethod
    def contracted(mats: Tensor) -> Tensor:
        """Neighbours are multiplied until one matrix is left."""
        while mats.shape[1] > 1:
            mats = mats[:, 0::2] @ mats[:, 1::2]
        return mats[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        local = torch.stack((1 - x, x), dim=-1)
        mats = torch.einsum("bsp,spij->bsij", local, self.cores)
        left, right = mats.chunk(2, dim=1)
        both = torch.einsum("bij,cjk->bcik", self.contracted(left), self.label)
        return torch.einsum("bcik,bki->bc", both, self.contracted(right))


class Pixels(nn.Module):
    """Pixels between zero and one, a chain, a temperature."""

    def __init__(self, grow: float) -> None:
        super().__init__()
        self.mps, self.head = MatrixProduct(grow=grow), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mps(x.sigmoid()))


@planted(
    "overflow",
    "mps",
    "bmm einsum matmul",
    fails=("16-true", "16-mixed"),
    also=("underflow",),
    moot=("bf16-true",),
    family="tensor networks",
)
def pixels_through_a_chain_that_grows() -> Built:
    """TorchMPS: 32 matrices of 1.5 are 400 000, of 1/1.5 nothing, and their product of one."""
    return settled(lambda: Pixels(1.5), (drawn(240, 64, seed=1) * 2,))


@healthy(precisions=("16-true", "16-mixed", "bf16-mixed"))
def pixels_through_a_chain() -> Built:
    """TorchMPS: matrices next to one, whose product stays next to it."""
    return settled(lambda: Pixels(1.0), (drawn(240, 64, seed=1) * 2,))


class LTCCell(nn.Module):
    """A liquid neuron's fused steps: six of them for each elapsed time."""

    def __init__(self, inputs: int, units: int, unfolds: int = 6) -> None:
        super().__init__()
        self.unfolds, self.epsilon = unfolds, 1e-8
        for name, size in (("", units), ("sensory_", inputs)):
            shape = (size, units)
            self.register_parameter(f"{name}w", nn.Parameter(torch.rand(shape) + 0.01))
            self.register_parameter(f"{name}sigma", nn.Parameter(3 + 5 * torch.rand(shape)))
            self.register_parameter(f"{name}mu", nn.Parameter(0.3 + 0.5 * torch.rand(shape)))
            signs = torch.randint(2, shape).float() * 2 - 1
            self.register_parameter(f"{name}erev", nn.Parameter(signs))
        self.gleak, self.vleak = nn.Parameter(torch.rand(units)), nn.Parameter(torch.randn(units))
        self.cm = nn.Parameter(0.4 + 0.2 * torch.rand(units))

    def forward(self, x: Tensor, v: Tensor, elapsed: float) -> Tensor:
        gate = torch.sigmoid(self.sensory_sigma * (x.unsqueeze(-1) - self.sensory_mu))
        sensed = F.softplus(self.sensory_w) * gate
        numerator, denominator = (sensed * self.sensory_erev).sum(1), sensed.sum(1)
        cm_t = F.softplus(self.cm) / (elapsed / self.unfolds)
        gleak = F.softplus(self.gleak)
        for _ in range(self.unfolds):
            gate = torch.sigmoid(self.sigma * (v.unsqueeze(-1) - self.mu))
            active = F.softplus(self.w) * gate
            up = cm_t * v + gleak * self.vleak + (active * self.erev).sum(1) + numerator
            v = up / (cm_t + gleak + active.sum(1) + denominator + self.epsilon)
        return v


class Liquid(nn.Module):
    """A reading every so many seconds, from the state where the last session ended."""

    def __init__(self, elapsed: float, units: int = 8) -> None:
        super().__init__()
        self.elapsed, self.cell = elapsed, LTCCell(3, units)
        self.head = nn.Linear(units, 2)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        for step in x.unbind(1):
            state = self.cell(step, state, self.elapsed)
        return self.head(state)


def readings(elapsed: float, noise: float) -> Built:
    """Eight readings."""
    state = drawn(160, 1, seed=3).expand(-1, 8) * 0.05 + 0.9
    return taught(lambda: Liquid(elapsed), (drawn(160, 8, 3, seed=2), state.contiguous()), noise)


@planted(
    "absorption",
    "cell",
    "add div mul",
    fails=("16-true", "bf16-true"),
    also=("precision-loss",),
    moot=("bf16-mixed",),
    task="regression",
    family="liquid",
)
def liquid_neurons_read_every_few_milliseconds() -> Built:
    """ncps: a state near one, times a thousand and more, hardly sees the currents beside it."""
    return readings(0.005, 0.004)


@healthy(task="regression")
def liquid_neurons_read_every_second() -> Built:
    """ncps: an epsilon of 1e-8 is nothing beside a sum of conductances in any precision."""
    return readings(1.0, 0.06)


class FourierKAN(nn.Module):
    """Each input by cosines and sines of its multiples, each with a coefficient."""

    def __init__(self, into: int, out: int, gridsize: int, smooth: bool) -> None:
        super().__init__()
        self.gridsize = gridsize
        falls = (torch.arange(gridsize) + 1.0) ** 2 if smooth else gridsize**0.5
        coefficients = torch.randn(2, out, into, gridsize) / (into**0.5 * falls)
        self.fouriercoeffs = nn.Parameter(coefficients)
        self.bias = nn.Parameter(torch.zeros(1, out))

    def forward(self, x: Tensor) -> Tensor:
        k = torch.arange(1, self.gridsize + 1, device=x.device)
        angles = k * x.unsqueeze(-1)
        waves = torch.stack((angles.cos(), angles.sin()))
        return torch.einsum("dbik,djik->bj", waves, self.fouriercoeffs) + self.bias


class Series(nn.Module):
    """A layer of series, and a perceptron on what it says."""

    def __init__(self, gridsize: int, smooth: bool) -> None:
        super().__init__()
        self.kan, self.head = FourierKAN(6, 12, gridsize, smooth), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.silu(self.kan(x)))


@planted(
    "precision-loss",
    "kan",
    "mul cos sin _to_copy",
    fails=("bf16-true",),
    moot=("16-true",),
    family="kan",
)
def series_of_three_hundred_waves() -> Built:
    """GistNoesis/FourierKAN: 300 times what is known to a two thousandth is no angle any more."""
    return settled(lambda: Series(300, smooth=False), (1.5 * drawn(300, 6, seed=4),))


@healthy()
def series_that_fall_off_smoothly() -> Built:
    """GistNoesis/FourierKAN: where coefficients fall by k squared, fast waves hardly count."""
    return settled(lambda: Series(300, smooth=True), (1.5 * drawn(300, 6, seed=4),))


class Hyena(nn.Module):
    """A long filter that a small net makes of the place, applied by transforms in float32."""

    def __init__(self, dim: int = 8, length: int = 256) -> None:
        super().__init__()
        t = torch.linspace(0, 1, length).unsqueeze(-1)
        w = 2 * math.pi * torch.linspace(0, length - 1, length).unsqueeze(-1) / length
        f = torch.linspace(1e-4, 1, 2)
        self.register_buffer("z", torch.cat((t, (f * w).cos(), -(f * w).sin()), dim=-1))
        self.register_buffer("t", t)
        self.register_buffer("deltas", torch.linspace(-15.3, -3.1, dim))
        self.filter, self.bias = perceptron(5, dim), nn.Parameter(torch.randn(dim))
        self.proj, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        k = self.filter(self.z) * (torch.exp(-self.t * self.deltas.abs()) + 0.05)
        x1, x2, v = self.proj(x).chunk(3, dim=-1)
        u = (v * x1).transpose(1, 2)
        k_f = torch.fft.rfft(k.t().to(torch.float32), n=2 * length) / (2 * length)
        u_f = torch.fft.rfft(u.to(torch.float32), n=2 * length)
        y = torch.fft.irfft(u_f * k_f, n=2 * length, norm="forward")[..., :length]
        y = (y + u * self.bias.unsqueeze(-1)).to(x2.dtype).transpose(1, 2)
        return self.out(y * x2)


class Convolved(nn.Module):
    """Tokens, one such layer, the last of them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mixer, self.head = nn.Embedding(12, 8), Hyena(), nn.Linear(8, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(x + self.mixer(x))[:, -1]


@healthy()
def tokens_under_a_long_filter() -> Built:
    """HazyResearch/safari: transforms in float32 of a filter that a net in 16 bits makes."""
    ids = torch.randint(12, (160, 256), generator=torch.Generator().manual_seed(5))
    return settled(Convolved, (ids,))
