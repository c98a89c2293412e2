"""Held-out traps: faults in more than one place or in none, and infinities that do no harm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from benchmarks import data
from benchmarks.cases.base import FP16, TRUE, Built, built, fitted, healthy, planted
from benchmarks.cases.reported_forms import Plain


class Energy(nn.Module):
    """Log of the mean square."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.log((x * x).mean(-1, keepdim=True) + 1.0)


class Spread(nn.Module):
    """Columns divided by their spread, 1e-8 under the root for blank ones."""

    def forward(self, x: Tensor) -> Tensor:
        off = x - x.mean(-1, keepdim=True)
        return off / ((off * off).mean(-1, keepdim=True) + 1e-8).sqrt()


class TwoFaults(nn.Module):
    """Rows in units of a camera: their energies, and columns brought to one spread."""

    def __init__(self) -> None:
        super().__init__()
        self.energy, self.spread = Energy(), Spread()
        self.body = nn.Sequential(nn.Linear(72, 48), nn.ReLU(), nn.Linear(48, 10))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1, 2)
        both = torch.cat([self.energy(rows * 1000) / 10, self.spread(rows.mT)], -1)
        return self.body(both.flatten(1))


@planted(
    "overflow", "energy", "mul", fails=("16-true",), also=("eps-underflow",), family="two"
)  # fmt: skip
def two_faults() -> Built:
    """kornia#4224 and mmdetection#9670 in one model: to mend one of them is not enough."""
    train, test = data.digits()
    return built(fitted(TwoFaults, train), test)


class Block(nn.Module):
    """A residual block on a large stream, with a norm that squares it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        scale = (x * x).mean(-1, keepdim=True) + 1e-5
        return x + self.down(F.gelu(self.up(x / scale.sqrt()))) * 100


class Stack(nn.Module):
    """Three blocks of the same fault."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(64, 32)
        self.blocks = nn.ModuleList(Block(32) for _ in range(3))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x.flatten(1)) * 600
        for block in self.blocks:
            x = block(x)
        return self.head(x / 600)


@planted("overflow", "blocks.0", "mul", fails=FP16, family="two")
def every_block_overflows() -> Built:
    """transformers#19229, LongT5: the stream is hundreds, and every block squares it."""
    train, test = data.digits()
    return built(fitted(Stack, train), test)


class AtTheRoot(nn.Module):
    """A model that squares a length in its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1) * 400
        x = x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1.0)
        return self.body(x * 8)


@planted("overflow", "", "mul sum", fails=("16-true",), family="root")
def length_in_the_root() -> Built:
    """kornia#3975: a length whose square leaves the range, in no module of its own."""
    train, test = data.digits()
    return built(fitted(AtTheRoot, train), test)


class Interpolate(nn.Module):
    """PointNet++: features of the three nearest points, weighted by inverse distance."""

    def forward(self, place: Tensor, known: Tensor, features: Tensor) -> Tensor:
        square = (place[:, :, None] - known[:, None]).square().sum(-1)
        near, index = square.topk(3, -1, largest=False)
        weight = 1.0 / (near + 1e-8)
        weight = weight / weight.sum(-1, keepdim=True)
        row = torch.arange(len(place), device=place.device)[:, None, None]
        return (features[row, index] * weight[..., None].to(features.dtype)).sum(2)


class Upsampled(nn.Module):
    """Ink on a coarse grid, carried to a fine one; some points of the two are the same."""

    def __init__(self) -> None:
        super().__init__()
        self.interpolate = Interpolate()
        self.lift, self.head = nn.Linear(1, 8), nn.Linear(8 * 25, 10)
        axis = torch.arange(5) * 0.75
        self.register_buffer("fine", torch.cartesian_prod(axis, axis), persistent=False)
        axis = torch.arange(4) * 1.0
        self.register_buffer("coarse", torch.cartesian_prod(axis, axis), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        features = self.lift(F.avg_pool2d(x, 2).flatten(1)[..., None])
        n = len(x)
        fine, coarse = self.fine.expand(n, -1, -1), self.coarse.expand(n, -1, -1)
        return self.head(self.interpolate(fine, coarse, features).flatten(1))


@planted("eps-underflow", "interpolate", "add div reciprocal", fails=("16-true",), family="cloud")
def inverse_distance_of_zero() -> Built:
    """Pointnet_Pointnet2_pytorch: 1 / (0 + 1e-8) is infinite in float16, and inf / inf NaN."""
    train, test = data.digits()
    return built(fitted(Upsampled, train), test)


class Mish(nn.Module):
    """x · tanh(log(1 + exp(x))), and a sigmoid by its formula."""

    def forward(self, x: Tensor) -> Tensor:
        gate = 1 / (1 + torch.exp(-x))
        return gate * (x * torch.tanh(torch.log(1 + torch.exp(x))))


class ByFormula(nn.Module):
    """A perceptron whose activations reach forty either way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mish, self.second = nn.Linear(64, 48), Mish(), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.mish(self.first(x.flatten(1) * 16)) / 8)


@healthy()
def infinities_that_do_no_harm() -> Built:
    """AlexeyAB/darknet's mish: exp(12) is infinite in float16, and tanh of its logarithm one."""
    train, test = data.digits()
    return built(fitted(ByFormula, train, rate=1e-3), test)


class Places(nn.Module):
    """Which quarter of a town a place is in, from degrees."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 4))
        self.register_buffer("centre", torch.tensor([52.37, 4.9]))

    def forward(self, x: Tensor) -> Tensor:
        return self.body((x - self.centre) * 20)


@planted(
    "cancellation", "", "_to_copy sub", fails=TRUE, also=("precision-loss",), family="input"
)  # fmt: skip
def degrees_of_latitude() -> Built:
    """Geographic inputs: in float16 a latitude is known to three kilometres."""
    random = torch.Generator().manual_seed(0)
    off = torch.rand(1500, 2, generator=random) * 0.1 - 0.05
    x = off + torch.tensor([52.37, 4.9])
    y = (off[:, 0] > 0).long() * 2 + (off[:, 1] > 0).long()
    return built(fitted(Places, (x[:1000], y[:1000])), (x[1000:], y[1000:]))


class HostScale(Plain):
    """Activations brought to one scale by a number that the program reads."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.first(x.flatten(1)))
        return self.second(x / max(float(x.abs().amax()), 1e-3))


@healthy()
def scale_read_by_the_program() -> Built:
    """Dynamic quantisation's scale as a Python number, of the whole batch."""
    train, test = data.digits()
    return built(fitted(HostScale, train), test)


class OwnAutocast(Plain):
    """A layer that asks for bfloat16 whatever the rest is in."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            h = F.gelu(self.first(x.flatten(1)))
        return self.second(h.to(self.second.weight.dtype))


@healthy()
def autocast_of_its_own() -> Built:
    """openfold3#353: a region of autocast inside a model."""
    train, test = data.digits()
    return built(fitted(OwnAutocast, train), test)


class HardHalf(Plain):
    """A similarity that is taken in float16, in float32 models too."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x.flatten(1)))
        half = h.half()
        like = (half[:, :, None] * half[:, None, :]).amax(-1)
        return self.second(h + like.to(h.dtype))


@healthy()
def half_in_every_precision() -> Built:
    """Code that says .half() itself: the reference rounds there too."""
    train, test = data.digits()
    return built(fitted(HardHalf, train), test)


class Recomputed(Plain):
    """A layer under activation checkpointing, in evaluation too."""

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(lambda t: F.gelu(self.first(t)), x.flatten(1), use_reentrant=False)
        return self.second(h)


@healthy()
def checkpointed_in_evaluation() -> Built:
    """A switch for training that was left on, inside a DataParallel wrapper."""
    train, test = data.digits()
    return built(nn.DataParallel(fitted(Recomputed, train)), test)
