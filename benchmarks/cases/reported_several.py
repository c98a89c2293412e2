"""Held-out faults in several places, in shared and repeated parts, and in no module; long programs.

To mend one of the places is not enough, and what fails first hides what comes after.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import FP16, Built, built, fitted, healthy, planted
from benchmarks.cases.reported_quantities import taught


class Length(nn.Module):
    """A vector over its length, whose square is taken by hand."""

    def forward(self, x: Tensor) -> Tensor:
        return x / ((x * x).sum(-1, keepdim=True) + 1.0).sqrt()


class Whitened(nn.Module):
    """Columns over their spread; blank ones over the root of 1e-9."""

    def forward(self, x: Tensor) -> Tensor:
        off = x - x.mean(-1, keepdim=True)
        return off / (off.square().mean(-1, keepdim=True) + 1e-9).sqrt()


class Surprise(nn.Module):
    """The log of a share, with 1e-12 for those that are nothing."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x) + 1e-30
        return torch.log(x / x.sum(-1, keepdim=True) + 1e-12) / 20


class InARow(nn.Module):
    """Three faults, each fed by the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.length, self.whitened, self.surprise = Length(), Whitened(), Surprise()
        self.body = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.length(x.flatten(1, 2) * 700)
        columns = self.whitened(rows.mT)
        return self.body(self.surprise(columns).flatten(1))


@planted("overflow", "length", "mul", fails=("16-true",), family="several", also=("eps-underflow",))
def three_faults_in_a_row() -> Built:
    """detectron2, timm: an overflow hides an epsilon, which hides another.

    The overflow leaves rows of zeros, which no epsilon brings back; that of zero makes NaN of them.
    """
    train, test = data.digits()
    return built(fitted(InARow, train), test)


class Root(nn.Module):
    """T5's norm with its square in the type of the stream."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / (x * x).mean(-1, keepdim=True).add(1e-6).sqrt()


class SharedNorm(nn.Module):
    """ALBERT's way: one norm and one perceptron for all layers; the stream grows in each."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, norm = nn.Linear(64, 32), Root(32)
        layer = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32))
        self.norms = nn.ModuleList([norm, norm, norm])
        self.layers = nn.ModuleList([layer, layer, layer])
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x.flatten(1)) * 20
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = (x + layer(norm(x)) * 8) * 6
        return self.head(self.norms[0](x))


@planted("overflow", "norms.0", "mul", fails=("16-true", "16-mixed"), family="several")
def norm_shared_by_layers() -> Built:
    """ALBERT, universal transformers: the part that fails has three names."""
    train, test = data.digits()
    return built(fitted(SharedNorm, train), test)


class Step(nn.Module):
    """One step of a power iteration, which is not brought back to unit length."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        matrix = torch.rand(24, 24, generator=random)
        self.register_buffer("matrix", matrix @ matrix.T / 24)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


class Iterated(nn.Module):
    """The same step six times over: the last of them are too large."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.step, self.out = nn.Linear(16, 24), Step(), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).abs() * 8
        for _ in range(6):
            x = self.step(x)
        return self.out(x / 1e6)


@planted("overflow", "step", "mm matmul", fails=FP16, family="several", task="regression")
def one_step_many_times() -> Built:
    """Implicit layers, message passing by hand: only the last of the calls overflow."""
    x = torch.randn(400, 16, generator=torch.Generator().manual_seed(1))
    return taught(Iterated, (x,))


def unit(x: Tensor) -> Tensor:
    """A helper in a file of helpers: x over its length."""
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1.0)


class Head(nn.Module):
    """A head that calls the helper, too."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(unit(F.relu(self.enter(x)) * 900) * 6)


class Helped(nn.Module):
    """A helper called by the model itself, and by its head."""

    def __init__(self) -> None:
        super().__init__()
        self.head = Head()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(unit(x.flatten(1) * 500) * 8)


@planted("overflow", "", "mul sum", fails=("16-true",), moot=("16-mixed",), family="several")
def helper_called_in_two_places() -> Built:
    """segment-anything, kornia: one function, called by the root and by a part of it."""
    train, test = data.digits()
    return built(fitted(Helped, train), test)


class Bare(nn.Module):
    """A model without a part: parameters and functions of torch alone."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(48, 64) / 8)
        self.w2 = nn.Parameter(torch.randn(10, 48) / 7)
        self.b2 = nn.Parameter(torch.zeros(10))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.linear(x.flatten(1), self.w1))
        energy = (x * 300) ** 2
        return F.linear(energy / (energy.sum(-1, keepdim=True) + 1e-6) * 6, self.w2, self.b2)


@planted("overflow", "", "pow", fails=("16-true",), fails_cpu=("16-mixed",), family="several")
def model_without_parts() -> Built:
    """A port of a functional network: everything is in the root's own forward."""
    train, test = data.digits()
    return built(fitted(Bare, train), test)


class Leak(nn.Module):
    """A recursive filter, y = y + a (x − y), over a thousand samples."""

    def __init__(self, rate: float = 3e-4) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        y = x[:, 0] * 0
        said = []
        for sample in x.unbind(1):
            y = y + self.rate * (sample - y)
            said.append(y)
        return torch.stack(said[::100], 1)


class FastLeak(Leak):
    """The same, which forgets within ten samples."""

    def __init__(self) -> None:
        super().__init__(0.1)


class Envelope(nn.Module):
    """The loudness of a signal, smoothed."""

    leak: type[Leak] = Leak

    def __init__(self) -> None:
        super().__init__()
        self.smooth = self.leak()

    def forward(self, x: Tensor) -> Tensor:
        return self.smooth(x.abs() * 2 + 1)


class FastEnvelope(Envelope):
    """The same, smoothed less."""

    leak = FastLeak


def signals() -> tuple[Tensor, ...]:
    """A hundred signals of a thousand samples, each louder or softer."""
    random = torch.Generator().manual_seed(0)
    return (torch.randn(100, 1000, generator=random) * torch.rand(100, 1, generator=random) * 3,)


@planted(
    "absorption", "smooth", "add", fails=("bf16-true",), family="long", also=("precision-loss",),
    task="regression",
)  # fmt: skip
def filter_that_forgets_slowly() -> Built:
    """torchaudio's lfilter, EMA layers: 3e-4 of a step is lost beside the level in bfloat16."""
    return taught(Envelope, signals())


@healthy(task="regression")
def filter_that_forgets_fast() -> Built:
    """Three thousand operations, each of which keeps a tenth."""
    return taught(FastEnvelope, signals())


class Residual(nn.Module):
    """A pre-norm residual layer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * F.gelu(self.linear(self.norm(x)))


class Deep(nn.Module):
    """Two hundred layers."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(64, 32)
        self.layers = nn.Sequential(*(Residual(32) for _ in range(200)))
        self.head = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.enter(x.flatten(1))))


@healthy(precisions=FP16)
def two_hundred_layers() -> Built:
    """DeepNet: rounding adds up as a root; bfloat16 is not claimed."""
    train, test = data.digits()
    return built(fitted(Deep, train, epochs=6, rate=1e-3), test)


class DeepStream(Deep):
    """The same whose stream doubles every eight layers, to its end."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x.flatten(1))
        for number, layer in enumerate(self.layers[:160]):
            x = layer(x) * (2.0 if number % 8 == 7 else 1.0)
        return self.head(x)


@planted("overflow", "", "mul", fails=FP16, family="long")
def stream_that_doubles() -> Built:
    """RWKV's layers are rescaled every six for this: no layer is at fault, the sum of them is."""
    train, test = data.digits()
    return built(fitted(DeepStream, train, epochs=6, rate=1e-3), test)
