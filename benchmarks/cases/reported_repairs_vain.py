"""Held-out repairs in vain: commits that meant 16 bits well, and what they left, or brought.

Each is written anew after what the commit changed, before and after it; nothing is copied.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import ALL, Built, built, fitted, healthy, planted


class Scaled(nn.Module):
    """A layer norm over channels whose epsilon is a hundred times as large in 16 bits."""

    def __init__(self, dim: int, by_dtype: bool) -> None:
        super().__init__()
        self.gain, self.by_dtype = nn.Parameter(torch.ones(1, dim, 1, 1)), by_dtype

    def forward(self, x: Tensor) -> Tensor:
        eps = 1e-3 if self.by_dtype and x.dtype != torch.float32 else 1e-5
        mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
        return (x - mean) * (var + eps).rsqrt() * self.gain


class Faint(nn.Module):
    """Features with a small spread, normed, and an offset that counts on what a norm gives."""

    def __init__(self, by_dtype: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 16, 3, padding=1), Scaled(16, by_dtype)
        self.head = nn.Sequential(nn.Linear(16 * 64, 32), nn.ReLU(), nn.Linear(32, 10))
        self.gate = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x) * 0.02)
        return self.head(F.relu(x - self.gate).flatten(1))


def faint(by_dtype: bool) -> Built:
    """Digits."""
    train, test = data.digits()
    return built(fitted(lambda: Faint(by_dtype), train), test)


@healthy()
def norm_with_one_epsilon() -> Built:
    """denoising-diffusion-pytorch eba4449, before it: an epsilon of 1e-5, which float16 has."""
    return faint(by_dtype=False)


@planted(
    "precision-loss", "norm", "add rsqrt var", fails=ALL, family="types",
    also=("eps-underflow", "absorption"),
)  # fmt: skip
def norm_with_an_epsilon_for_16_bits() -> Built:
    """denoising-diffusion-pytorch eba4449: 1e-3 where it is not float32, and a small spread."""
    return faint(by_dtype=True)


class Kept(nn.Module):
    """Attention whose mask is the logarithm of a number next to zero, by the type of the scores."""

    def __init__(self, by_dtype: bool) -> None:
        super().__init__()
        self.score, self.value, self.by_dtype = nn.Linear(4, 1), nn.Linear(4, 16), by_dtype

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        score = self.score(x)[..., 0]
        tiny = 1e-4 if self.by_dtype and score.dtype == torch.float16 else 1e-13
        score = score + (mask.to(torch.float32) + tiny).log().to(score.dtype)
        return torch.einsum("bt,btd->bd", score.softmax(-1).to(x.dtype), self.value(x))


class Copied(nn.Module):
    """Of twenty numbers some are masked; the largest of the others is to be told."""

    def __init__(self, by_dtype: bool) -> None:
        super().__init__()
        self.kept, self.head = Kept(by_dtype), nn.Linear(16, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.kept(x, mask).relu())


def copied(by_dtype: bool) -> Built:
    """What is masked has scores of twelve more than what is not."""
    random = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (900,), generator=random)
    x = 0.3 * torch.randn(900, 20, 4, generator=random)
    mask = torch.rand(900, 20, generator=random) < 0.5
    kind = torch.where(mask, y[:, None], torch.randint(0, 4, (900, 20), generator=random))
    x = x + F.one_hot(kind, 4) + 0.0
    model = fitted(lambda: Copied(by_dtype), (x[:600], mask[:600], y[:600]), epochs=20)
    x[..., 3] += 6.0 * ~mask  # then the scores of what is masked are large
    with torch.no_grad():
        model.kept.score.weight.copy_(torch.tensor([[0.0, 0, 0, 2]]))
    tail = torch.optim.Adam([*model.kept.value.parameters(), *model.head.parameters()], 1e-2)
    for _ in range(80):
        tail.zero_grad()
        F.cross_entropy(model(x[:600], mask[:600]), y[:600]).backward()
        tail.step()
    return built(model, (x[600:], mask[600:], y[600:]))


@healthy()
def mask_by_a_small_logarithm() -> Built:
    """allennlp#3901, before it: the logarithm of 1e-13 is -30 in every type."""
    return copied(by_dtype=False)


@planted(
    "mask-inf", "kept", "add log", fails=("16-true", "16-mixed"), family="types",
    also=("precision-loss", "absorption", "eps-underflow"),
)  # fmt: skip
def mask_by_the_tiny_number_of_a_type() -> Built:
    """allennlp#3901: tiny_value_of_dtype is 1e-4 of float16, whose logarithm masks by nine."""
    return copied(by_dtype=True)


class Normalised(nn.Module):
    """Frames less their mean over time, by the root of a mean of squares less a squared mean."""

    def __init__(self, squares: bool) -> None:
        super().__init__()
        self.squares = squares

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        if self.squares:
            var = (x * x).mean(1, keepdim=True) - mean * mean
        else:
            var = (x - mean).square().mean(1, keepdim=True)
        return (x - mean) / (var.sqrt() + 1e-5)


class Voiced(nn.Module):
    """Who speaks, by features whose mean is far from zero and whose spread is small."""

    def __init__(self, squares: bool) -> None:
        super().__init__()
        self.normalised, self.conv = Normalised(squares), nn.Conv1d(6, 24, 5)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.normalised(x).transpose(1, 2)).relu().mean(-1))


def voiced(squares: bool) -> Built:
    """Log energies near -12 whose rhythm tells the speaker."""
    random = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (900,), generator=random)
    phase = 6 * torch.rand(900, 1, 6, generator=random)
    time = torch.arange(40)[None, :, None] / (1 + y[:, None, None])
    x = -12 + 0.15 * torch.sin(time + phase) + 0.03 * torch.randn(900, 40, 6, generator=random)
    model = fitted(lambda: Voiced(False), (x[:600], y[:600]), epochs=30)
    model.normalised.squares = squares
    return built(model, (x[600:], y[600:]))


@planted(
    "cancellation", "normalised", "sub mul mean", fails=("16-true",), also=("precision-loss",),
    moot=("bf16-true",), family="variances",
)  # fmt: skip
def variance_below_zero() -> Built:
    """sherpa-onnx#2844: a mean of squares less a squared mean is negative, and its root NaN."""
    return voiced(squares=True)


@healthy(precisions=("16-true", "16-mixed", "bf16-mixed"))
def variance_of_deviations() -> Built:
    """The mend that float16 needs: squares of what is left without the mean."""
    return voiced(squares=False)
