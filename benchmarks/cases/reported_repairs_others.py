"""Held-out pairs around a commit that repaired 16 bits: tables, bytes, spectra, whitening, gates.

Each is written anew after what the commit changed, before and after it; nothing is copied. Some
repairs are no repair of float16: both of such a pair must fail.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import ALL, Built, built, fitted, healthy, planted
from benchmarks.cases.reported_quantities import perceptron


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Bytes(nn.Module):
    """Depth from a high and a low byte, both held by the channels of a picture."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.mended = mended

    def forward(self, x: Tensor) -> Tensor:
        if self.mended:
            whole = x.to(torch.int32)
            return (whole[:, 1] * 256 + whole[:, 2]).to(x.dtype)
        return x[:, 1] * 2**8 + x[:, 2]


class Nearest(nn.Module):
    """In which quarter of a picture is the nearest thing?"""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.depth, self.head = Bytes(mended), perceptron(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        depth = F.avg_pool2d(self.depth(x)[:, None] / 65536, 4).flatten(1)
        return self.head(4 * (depth - depth.mean(1, keepdim=True)))


def nearest(mended: bool) -> Built:
    """Pictures of 8 x 8 whose far plane is at 65535."""
    random = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (900,), generator=random)
    depth = torch.randint(30000, 60000, (900, 8, 8), generator=random)
    depth[torch.rand(900, 8, 8, generator=random) < 0.02] = 65535
    rows, columns = torch.meshgrid(torch.arange(8) // 4, torch.arange(8) // 4, indexing="ij")
    depth = torch.where(rows * 2 + columns == y[:, None, None], depth // 2, depth)
    x = torch.stack([depth * 0, depth // 256, depth % 256], 1).float()
    return built(fitted(lambda: Nearest(mended), (x[:600], y[:600]), epochs=30), (x[600:], y[600:]))


@planted("overflow", "depth", "add mul", fails=("16-true",), family="integers")
def depth_of_two_bytes() -> Built:
    """diffusers#12546: 255 · 256 + 255 is 65535, which float16 does not hold."""
    return nearest(mended=False)


@planted("overflow", "depth", "_to_copy", fails=("16-true",), family="integers")
def depth_of_two_bytes_cast_back() -> Built:
    """diffusers#12546, as it was mended: right as an integer, and cast to the picture's type."""
    return nearest(mended=True)


class Noised(nn.Module):
    """A sample and noise, mixed by the tables of a scheduler."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        self.alphas, self.mended = torch.cumprod(1 - betas, 0), mended

    def forward(self, x: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        alphas = self.alphas.to(x.device)
        if self.mended:
            dtype, x, noise = x.dtype, x.float(), noise.float()
        alphas = alphas.to(x.dtype)[step][:, None]
        mixed = alphas**0.5 * x + (1 - alphas) ** 0.5 * noise
        return mixed.to(dtype) if self.mended else mixed


class Denoised(nn.Module):
    """How much noise is in a sample of which noise of either sign was made?"""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.noised, self.body = Noised(mended), perceptron(16, 3)

    def forward(self, x: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        return self.body(10 * (self.noised(x, noise, step) - x))


def denoised(mended: bool) -> Built:
    """The first steps of a schedule; the label is the place of the largest noise."""
    random = torch.Generator().manual_seed(0)
    x, noise = drawn(1200, 16), 0.3 * drawn(1200, 16, seed=1)
    y = torch.randint(0, 3, (1200,), generator=random)
    noise[torch.arange(1200), 5 * y] += 3
    step = torch.randint(0, 6, (1200,), generator=random)
    train = (x[:800], noise[:800], step[:800], y[:800])
    return built(
        fitted(lambda: Denoised(mended), train, epochs=30),
        (x[800:], noise[800:], step[800:], y[800:]),
    )


@planted(
    "cancellation", "noised", "rsub sub _to_copy pow index", fails=("bf16-true",),
    moot=("16-true",), also=("absorption", "precision-loss"), family="tables",
)  # fmt: skip
def noise_of_a_first_step() -> Built:
    """diffusers#9004: 0.99915 is one in bfloat16, and no noise at all is added."""
    return denoised(mended=False)


@healthy()
def noise_of_a_first_step_in_float32() -> Built:
    """diffusers#9004, as it was mended: the mixture alone is cast."""
    return denoised(mended=True)


class Correlated(nn.Module):
    """Autocorrelation of queries and keys by their transforms, as Autoformer has it."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.query, self.key, self.mended = nn.Linear(1, 8), nn.Linear(1, 8), mended

    def forward(self, x: Tensor) -> Tensor:
        q, k = (layer(x[..., None]).transpose(1, 2) for layer in (self.query, self.key))
        dtype = q.dtype
        if self.mended:
            q, k = q.float(), k.float()
        spectrum = torch.fft.rfft(q, dim=-1) * torch.conj(torch.fft.rfft(k, dim=-1))
        return torch.fft.irfft(spectrum, n=x.shape[1], dim=-1).mean(1).to(dtype)


class Periods(nn.Module):
    """The period of a series."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.correlated, self.head = Correlated(mended), nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.correlated(x) / 8)


def periods(mended: bool) -> Built:
    """Noisy waves of 48 steps."""
    y = torch.randint(0, 3, (900,), generator=torch.Generator().manual_seed(0))
    x = torch.sin(torch.arange(48) / (1.0 + y[:, None]) + 6 * drawn(900, 1)) + 0.5 * drawn(900, 48)
    return built(fitted(lambda: Periods(mended), (x[:600], y[:600]), epochs=20), (x[600:], y[600:]))


@planted("unsupported-op", "correlated", "_fft_r2c fft_rfft", fails=ALL, family="types")
def correlation_of_48_steps() -> Built:
    """Time-Series-Library: cuFFT takes powers of two in half, and no bfloat16."""
    return periods(mended=False)


@healthy()
def correlation_of_48_steps_in_float32() -> Built:
    """The same with queries and keys in float32."""
    return periods(mended=True)


class Whitened(nn.Module):
    """Features decorrelated by the eigenvectors of their covariance over a kept sample."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.register_buffer("sample", torch.zeros(400, 6))
        self.mended = mended

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False) if self.mended else nullcontext():
            sample = self.sample.float() if self.mended else self.sample
            spread = (sample.mT @ sample) / len(sample)
        values, vectors = torch.linalg.eigh(spread.float())
        with torch.autocast(x.device.type, enabled=False):
            return (x.float() @ vectors / values.clamp(min=1e-5).sqrt()).to(x.dtype)


class Sorted(nn.Module):
    """Classes that differ along the direction of least variance."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.whitened, self.body = Whitened(mended), perceptron(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.whitened(x).abs())


def whitened(mended: bool) -> Built:
    """Six readings, one of them a fiftieth of the first."""
    y = torch.randint(0, 3, (1000,), generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(drawn(6, 6, seed=3)).Q
    x = drawn(1000, 6) * torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.02])
    x[:, 5] = 0.012 * y * drawn(1000, seed=5).sign() + 0.002 * drawn(1000, seed=4)

    def make() -> nn.Module:
        model = Sorted(mended=True)
        model.whitened.sample.copy_((x @ turn)[:400])
        return model

    model = fitted(make, ((x @ turn)[:600], y[:600]), epochs=40)
    model.whitened.mended = mended
    return built(model, ((x @ turn)[600:], y[600:]))


@planted(
    "precision-loss", "whitened", "mm matmul div", fails=("bf16-true", "bf16-mixed"),
    also=("cancellation", "absorption"), family="products",
)  # fmt: skip
def eigenvectors_of_a_rounded_covariance() -> Built:
    """bergson#239: a.mT @ a in 16 bits, and eigenvectors of it in float32."""
    return whitened(mended=False)


@healthy()
def eigenvectors_of_a_covariance_in_float32() -> Built:
    """bergson#239, as it was mended: the product is taken of float32 copies."""
    return whitened(mended=True)
