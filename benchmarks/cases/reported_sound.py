"""Held-out sound models: each looks like a reported failure, or is written in an unusual way."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from benchmarks import data
from benchmarks.cases.base import Built, built, fitted, healthy
from benchmarks.cases.reported_digits import Calendar, dated
from benchmarks.cases.reported_range import FavorAttention, FavorNet, Modulated, StyleNet


class Step(nn.Module):
    """The day of the week of a whole number, in float32 until its sine is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("like", torch.zeros(()))

    def forward(self, day: Tensor) -> Tensor:
        phase = day.float()[:, None] * (2 * math.pi / 7) * torch.arange(1, 4, device=day.device)
        return torch.cat([phase.sin(), phase.cos()], -1).to(self.like.dtype)


class WholeCalendar(Calendar):
    """A calendar that is told the day as an integer."""

    def __init__(self) -> None:
        super().__init__()
        self.time = Step()


@healthy()
def timestep_as_integer() -> Built:
    """The time step stays an integer, and its embedding float32 until it is a sine."""
    (x, y), (u, v) = data.digits()
    many = [torch.cat([t] * 3) for t in (x, y)]
    x, day, labels = dated(*many, 0)
    u, when, truth = dated(u, v, 1)
    model = fitted(WholeCalendar, (x, day.long(), labels), epochs=40)
    return built(model, (u, when.long(), truth))


class PreNormalised(Modulated):
    """Demodulation after weights and styles are divided by their largest, in float16 only."""

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        n, c, h, w = x.shape
        style, weight = self.style(image), self.weight
        if x.dtype == torch.float16:
            weight = weight / weight.norm(float("inf"), dim=(1, 2, 3), keepdim=True) / c**0.5
            style = style / style.norm(float("inf"), dim=1, keepdim=True)
        weight = weight * style.view(n, 1, c, 1, 1)
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        weight = weight.view(n * c, c, 3, 3).to(x.dtype)
        return F.conv2d(x.reshape(1, n * c, h, w), weight, padding=1, groups=n).view(n, c, h, w)


class PreNormalisedNet(StyleNet):
    """The style net with the mend that StyleGAN2's authors made."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(PreNormalised(8) for _ in range(2))


@healthy()
def style_normalised_first() -> Built:
    """StyleGAN2-ADA: code that asks for float16 and divides before it squares."""
    train, test = data.digits()
    model = fitted(PreNormalisedNet, train)
    with torch.no_grad():
        for parameter in model.convs[0].style.parameters():
            parameter.mul_(4096)
    return built(model, test)


class StableFavor(FavorAttention):
    """The largest exponent is taken off before exp, as the authors do."""

    def features(self, x: Tensor) -> Tensor:
        power = x @ self.frequencies.T - x.square().sum(-1, keepdim=True) / 2
        return torch.exp(power - power.amax((1, 2), keepdim=True)) + 1e-4


class StableFavorNet(FavorNet):
    """Rows with stable random features."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = StableFavor(24)
        with torch.no_grad():
            self.attention.qkv.bias[24:48] = 1.3


@healthy()
def favor_shifted() -> Built:
    """Random features whose largest exponent is taken off first."""
    train, test = data.digits()
    return built(fitted(StableFavorNet, train), test)


class SelectiveScan(nn.Module):
    """A selective state-space layer, scanned step by step, in the type of its input."""

    def __init__(self, dim: int, state: int = 8) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.log(torch.arange(1.0, state + 1)).repeat(dim, 1))
        self.delta, self.mix = nn.Linear(dim, dim), nn.Linear(dim, 2 * state)
        self.skip = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        delta = F.softplus(self.delta(x))
        enter, leave = self.mix(x).chunk(2, -1)
        decay = torch.exp(delta[..., None] * -torch.exp(self.rates))
        given = (delta * x)[..., None] * enter[:, :, None]
        state, out = x.new_zeros(x.shape[0], x.shape[2], enter.shape[-1]), []
        for t in range(x.shape[1]):
            state = decay[:, t] * state + given[:, t]
            out.append((state * leave[:, t, None]).sum(-1))
        return torch.stack(out, 1) + self.skip * x


class Scanned(nn.Module):
    """Pixels four at a time through a state-space layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.scan = nn.Linear(4, 24), SelectiveScan(24)
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.embed(x.reshape(len(x), 16, 4)))
        return self.head(self.norm(x + self.scan(x))[:, -4:].mean(1))


@healthy()
def selective_scan() -> Built:
    """Mamba in plain operations."""
    train, test = data.digits()
    return built(fitted(Scanned, train, epochs=50), test)


class Zeros(nn.Module):
    """Rows, most of them blank at the edges, through a layer norm with BERT's epsilon."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8, eps=1e-12)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.norm(x.transpose(2, 3)))


@healthy()
def layer_norm_of_zeros() -> Built:
    """pytorch#41527: layer norm of zeros; the kernel has the epsilon of 1e-12 in float32."""
    train, test = data.digits()
    return built(fitted(Zeros, train), test)


class InverseDepth(nn.Module):
    """Depth from disparity: 1 / max(d, 1e-8), at most 80 metres."""

    def forward(self, disparity: Tensor) -> Tensor:
        return (1 / disparity.clamp(min=1e-8)).clamp(max=80.0)


class DepthNet(nn.Module):
    """A disparity per pixel, its depth, and a head that reads the depth's logarithm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depth = nn.Conv2d(1, 8, 3, padding=1), InverseDepth()
        self.head = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.log(self.depth(F.relu(self.conv(x)))).flatten(1) / 4)


@healthy()
def depth_of_the_sky() -> Built:
    """Disparity zero: 1e8 metres in float32, infinite in float16, 80 in both after the clamp."""
    train, test = data.digits()
    return built(fitted(DepthNet, train), test)


class Generator(nn.Module):
    """Weight norm and spectral norm, as parametrisations."""

    def __init__(self) -> None:
        super().__init__()
        norm, spectral = parametrizations.weight_norm, parametrizations.spectral_norm
        self.conv = norm(nn.Conv2d(1, 16, 3, padding=1))
        self.body = spectral(nn.Conv2d(16, 16, 3, stride=2, padding=1))
        self.head = norm(nn.Linear(256, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.leaky_relu(self.body(F.leaky_relu(self.conv(x)))).flatten(1))


@healthy()
def weight_and_spectral_norm() -> Built:
    """Weights derived by parametrisations."""
    train, test = data.digits()
    return built(fitted(Generator, train), test)


class Swish(torch.autograd.Function):
    """x · sigmoid(x) that keeps x alone for its backward pass, as EfficientNet's code does."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradient * (s * (1 + x * (1 - s)))


class Efficient(nn.Module):
    """An inverted bottleneck with a hand-written activation and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.norm = nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.depthwise = nn.Conv2d(24, 24, 3, stride=2, padding=1, groups=24)
        self.gate = nn.Conv2d(24, 24, 1)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = Swish.apply(self.depthwise(Swish.apply(self.norm(self.expand(x)))))
        x = x.mul_(torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True))))
        return self.head(x.mean((2, 3)))


@healthy()
def function_of_its_own() -> Built:
    """A custom autograd function, and a product in place."""
    train, test = data.digits()
    return built(fitted(Efficient, train), test)
