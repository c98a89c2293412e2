"""Held-out pairs around a commit that repaired 16 bits: sensors, gates, rotations, streams.

Each is written anew after what the commit changed, before and after it; nothing is copied.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import FP16, Built, built, fitted, healthy, planted
from benchmarks.cases.reported_quantities import perceptron, taught


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Weighed(nn.Module):
    """Readings of three sensors, each weighed by what it says its own variance is."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.sure, self.floor = nn.Linear(3, 3), floor
        with torch.no_grad():
            self.sure.weight.copy_(4 * torch.eye(3))
            self.sure.bias.fill_(-5.0)

    def forward(self, x: Tensor, doubt: Tensor) -> Tensor:
        spread = F.softplus(self.sure(doubt)).clamp(min=self.floor)
        weight = 1 / spread**2
        return (weight * x).sum(1, keepdim=True) / weight.sum(1, keepdim=True)


class Fused(nn.Module):
    """A fusion, and a curve through it."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.weighed, self.body = Weighed(floor), perceptron(1, 1)

    def forward(self, x: Tensor, doubt: Tensor) -> Tensor:
        return self.body(self.weighed(x, doubt))


@planted(
    "overflow", "weighed", "reciprocal pow mul div", fails=("16-true",), also=("underflow",),
    family="likelihoods", task="regression",
)  # fmt: skip
def weights_of_sure_sensors() -> Built:
    """neural-lam#537, as it was mended: a floor of 1e-6 keeps float32 from a division by zero."""
    return taught(lambda: Fused(1e-6), (drawn(500, 3), drawn(500, 3, seed=1)))


@healthy(task="regression")
def weights_with_a_floor_for_float16() -> Built:
    """The same with a floor whose inverse square float16 holds."""
    return taught(lambda: Fused(0.02), (drawn(500, 3), drawn(500, 3, seed=1)))


class Gate(nn.Module):
    """A gate that makes itself float32 when it is called, whatever the model was cast to."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.wg = nn.Linear(dim, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.wg.weight.dtype != torch.float32:
            self.wg = self.wg.float()
        with torch.autocast(x.device.type, enabled=False):
            return self.wg(x.float()).softmax(-1)


class Gated(nn.Module):
    """Four experts, the likeliest of which is used; places in it are counted in whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.gate = nn.Linear(64, 32), Gate(32)
        self.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x.flatten(1)).relu()
        chance, chosen = self.gate(x).max(-1)
        mask = F.one_hot(chosen, 4)
        place = (torch.cumsum(mask, 0) * mask).sum(1) - 1
        kept = (place < 128).to(x.dtype)[:, None] * chance.to(x.dtype)[:, None]
        out = torch.stack([expert(x) for expert in self.experts], 1)
        return self.head(x + kept * out[torch.arange(len(x), device=x.device), chosen].relu())


@healthy()
def gate_that_makes_itself_float32() -> Built:
    """DeepSpeed's TopKGate: `self.wg = self.wg.float()` inside of forward."""
    train, test = data.digits()
    return built(fitted(Gated, train), test)


class Turned(nn.Module):
    """A quaternion from a rotation's matrix: four formulas, of which one is chosen, three NaN."""

    def forward(self, m: Tensor) -> Tensor:
        a, b, c = m[:, 0, 0], m[:, 1, 1], m[:, 2, 2]
        trace = a + b + c

        def by(total: Tensor, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, ...]:
            root = torch.sqrt(total + 1.0 + 1e-8) * 2
            return 0.25 * root, x / root, y / root, z / root

        u, v, w = m[:, 2, 1], m[:, 0, 2], m[:, 1, 0]
        d, e, f = m[:, 1, 2], m[:, 2, 0], m[:, 0, 1]
        main = by(trace, u - d, v - e, w - f)
        first = by(a - b - c, u - d, f + w, v + e)
        second = by(b - a - c, v - e, f + w, d + u)
        third = by(c - a - b, w - f, v + e, d + u)
        first = (first[1], first[0], first[2], first[3])
        second = (second[1], second[2], second[0], second[3])
        third = (third[1], third[2], third[3], third[0])
        found = torch.where((b > c)[:, None], torch.stack(second, 1), torch.stack(third, 1))
        largest = ((a > b) & (a > c))[:, None]
        found = torch.where(largest, torch.stack(first, 1), found)
        return torch.where((trace > 0)[:, None], torch.stack(main, 1), found)


class Axis(nn.Module):
    """Which way is something turned?"""

    def __init__(self) -> None:
        super().__init__()
        self.turned, self.body = Turned(), perceptron(4, 4)

    def forward(self, m: Tensor) -> Tensor:
        return self.body(self.turned(m).abs())


@healthy()
def quaternion_by_branches() -> Built:
    """kornia#1665: the trace of half a turn is -1, and a root of next to nothing is not taken."""
    q = F.normalize(drawn(1500, 4), dim=1)
    w, x, y, z = q.unbind(1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    m, label = torch.stack(rows, 1).view(-1, 3, 3), q.abs().argmax(1)
    return built(fitted(Axis, (m[:900], label[:900]), epochs=30), (m[900:], label[900:]))


class Halved(nn.Module):
    """A stream that grows, halved every second layer; later layers write half as much each time."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.enter, self.head, self.mended = nn.Linear(64, 32), nn.Linear(32, 10), mended
        self.norm = nn.LayerNorm(32)
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(8))
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        x = 3000 * self.enter(x.flatten(1))
        for i, (norm, layer) in enumerate(zip(self.norms, self.layers, strict=True)):
            scale = 2.0 ** -(i // 2) if self.mended else 1.0
            x = x + layer(norm(x)) * (9000 * scale)
            if self.mended and i % 2:
                x = x / 2
        return self.head(self.norm(x))


def halved(mended: bool) -> Built:
    """Digits; both learn as the one that is mended."""
    train, test = data.digits()
    model = fitted(lambda: Halved(True), train, epochs=30)
    model.mended = mended
    return built(model, test)


@planted("overflow", "", "add mul", fails=FP16, family="streams")
def stream_of_eight_layers() -> Built:
    """RWKV in float16, before its weights were rescaled: what the layers add up to."""
    return halved(mended=False)


@healthy()
def stream_halved_every_second_layer() -> Built:
    """RWKV's mend: the stream is halved every few layers, and what later ones write with it."""
    return halved(mended=True)
