"""Held-out failures of range: what left float16 upwards, downwards, or under an epsilon."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import FP16, Built, built, fitted, planted


class FirstNorm(nn.Module):
    """A layer norm over the channels of [N, C, H, W], spelt out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        return self.weight * ((x - mean) / torch.sqrt(variance + 1e-6)) + self.bias


class NextBlock(nn.Module):
    """Depthwise convolution, norm over channels, pointwise perceptron."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = FirstNorm(channels)
        self.point = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.point(F.gelu(self.norm(self.depthwise(x))))


class NextStages(nn.Module):
    """A stem, two stages of blocks, a head."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 2, stride=2)
        self.stages = nn.ModuleList(nn.Sequential(NextBlock(channels)) for _ in range(2))
        self.head = nn.Linear(channels * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(F.adaptive_avg_pool2d(x / 300, 2).flatten(1))


@planted("overflow", "stages.0.0.norm", "pow", fails=("16-true",), family="cnn")
def norm_over_channels() -> Built:
    """ConvNeXt: a hand-written norm over channels squares activations of 300 and more."""
    train, test = data.digits()

    def make() -> nn.Module:
        model = NextStages()
        with torch.no_grad():
            model.stem.weight.mul_(1500)
        return model

    return built(fitted(make, train, epochs=50), test)


class TextMap(nn.Module):
    """A detector's probability map: two convolutions with batch norm, then one value a pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.out = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.out(F.relu(self.bn2(self.conv2(x))))


@planted(
    "overflow", "binarize.bn1", "_to_copy native_batch_norm batch_norm cudnn_batch_norm "
    "_native_batch_norm_legit_no_training _batch_norm_no_update",
    fails=("16-true",), family="per pixel",
)  # fmt: skip
def running_variance_of_millions() -> Built:
    """PaddleOCR's text detector: a running variance above 65504 is infinite, the output zero."""
    (x, _), (u, _) = data.digits()
    random = torch.Generator().manual_seed(5)
    noisy = [t + 0.3 * torch.randn(t.shape, generator=random) for t in (x, u)]
    ink = [(t[:, 0] > 0.4).long() for t in (x, u)]

    def make() -> nn.Module:
        model = nn.Sequential()
        model.add_module("binarize", TextMap())
        return model

    model = fitted(make, (noisy[0], ink[0]))
    with torch.no_grad():  # exact but for the epsilon: batch norm cannot tell the scale
        model.binarize.conv1.weight.mul_(2048)
        model.binarize.conv1.bias.mul_(2048)
        model.binarize.bn1.running_mean.mul_(2048)
        model.binarize.bn1.running_var.mul_(2048**2)
    return built(model, (noisy[1], ink[1]))


class Modulated(nn.Module):
    """A convolution whose weight is scaled by a style and brought back to unit length."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels, 3, 3) / (3 * channels**0.5))
        self.style = nn.Linear(64, channels)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        n, c, h, w = x.shape
        style = self.style(image).view(n, 1, c, 1, 1)
        weight = self.weight * style
        norm = torch.rsqrt(weight.pow(2).sum((2, 3, 4), keepdim=True) + 1e-8)
        weight = (weight * norm).view(n * c, c, 3, 3)
        return F.conv2d(x.reshape(1, n * c, h, w), weight, padding=1, groups=n).view(n, c, h, w)


class StyleNet(nn.Module):
    """Constant input, two modulated convolutions, a head: the style is all it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.randn(1, 8, 4, 4))
        self.convs = nn.ModuleList(Modulated(8) for _ in range(2))
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        image = x.flatten(1)
        y = self.constant.expand(len(x), -1, -1, -1)
        for conv in self.convs:
            y = F.leaky_relu(conv(y, image), 0.2)
        return self.head(y.flatten(1))


@planted("overflow", "convs.0", "pow sum", fails=("16-true",), family="gan")
def style_demodulation() -> Built:
    """GFPGAN's clean StyleGAN2: demodulation squares weight times style; styles of thousands."""
    train, test = data.digits()
    model = fitted(StyleNet, train)
    with torch.no_grad():  # demodulation cannot tell the style's length
        for parameter in model.convs[0].style.parameters():
            parameter.mul_(4096)
    return built(model, test)


class BoxSides(nn.Module):
    """Side lengths of a rotated box from its four corners."""

    def forward(self, corners: Tensor) -> Tensor:
        x1, y1, x2, y2, x3, y3, _, _ = corners.unbind(-1)
        width = ((x2 - x1) ** 2 + (y2 - y1) ** 2).sqrt()
        height = ((x3 - x2) ** 2 + (y3 - y2) ** 2).sqrt()
        return torch.stack([width, height], -1)


class BoxNet(nn.Module):
    """Is the digit in this box a narrow one? From the ratio of the sides."""

    def __init__(self) -> None:
        super().__init__()
        self.sides = BoxSides()
        self.head = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 2))

    def forward(self, corners: Tensor) -> Tensor:
        side = self.sides(corners)
        return self.head((side[:, :1] / (side[:, 1:] + 1)) - 0.7)


def rotated_boxes(x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Corners, in pixels of a page, of a digit's ink turned by an angle; whether it is wide."""
    random = torch.Generator().manual_seed(seed)
    columns, rows = (x[:, 0].amax(1) > 0.3).sum(1), (x[:, 0].amax(2) > 0.3).sum(1)
    half = torch.stack([columns, rows], 1) * 50.0
    signs = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    corner = signs * half[:, None]
    angle = torch.rand(len(x), generator=random)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    corner = corner @ turn.transpose(1, 2) + 300
    return corner.flatten(1), (columns > 0.6 * rows).long()


@planted(
    "overflow", "sides", "pow add", fails=("16-true",), moot=("bf16-true", "bf16-mixed"),
    family="detection",
)  # fmt: skip
def rotated_box_sides() -> Built:
    """torchvision's rotated boxes: the square of a side of more than 256 pixels."""
    (x, _), (u, _) = data.digits()
    return built(fitted(BoxNet, rotated_boxes(x, 0), epochs=60), rotated_boxes(u, 1))


class FavorAttention(nn.Module):
    """Positive random features: exp(w·x − |x|²/2) for queries and keys, then two products."""

    def __init__(self, dim: int, features: int = 48) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.register_buffer("frequencies", torch.randn(features, dim) * 0.3)

    def features(self, x: Tensor) -> Tensor:
        return torch.exp(x @ self.frequencies.T - x.square().sum(-1, keepdim=True) / 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k = self.features(q), self.features(k)
        norm = (q * k.sum(1, keepdim=True)).sum(-1, keepdim=True)
        return self.out((q @ (k.transpose(1, 2) @ v)) / norm)


class FavorNet(nn.Module):
    """Rows of a digit, one attention layer, mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(8, 24), FavorAttention(24)
        self.place = nn.Parameter(torch.randn(8, 24) * 0.1)
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1, 2)) + self.place
        return self.head((x + self.attention(self.norm(x))).flatten(1))


@planted(
    "underflow", "attention", "exp bmm matmul mul sum _to_copy", fails=FP16, family="transformer"
)
def favor_features() -> Built:
    """xformers' Favor: exp(−|x|²/2) of keys of length 7 is nothing in float16."""
    train, test = data.digits()

    def make() -> nn.Module:
        model = FavorNet()
        with torch.no_grad():
            model.attention.qkv.bias[24:48] = 1.3
        return model

    return built(fitted(make, train), test)


class Decoder(nn.Module):
    """Upsample, convolve, normalise in groups, twice, beside an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(4, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x + F.silu(self.norm(self.conv(x)))


class AutoencoderKL(nn.Module):
    """A convolutional autoencoder; in evaluation the code is the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.SiLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.SiLU()
        )
        self.quant = nn.Conv2d(16, 12, 1)
        self.decoder = nn.ModuleDict(
            {"enter": nn.Conv2d(6, 16, 1), "up": nn.ModuleList(Decoder(16) for _ in range(2))}
        )
        self.out = nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        mean, _ = self.quant(self.encoder(x)).chunk(2, 1)
        y = self.decoder["enter"](mean)
        for block in self.decoder["up"]:
            y = block(y)
        return self.out(y)


@planted(
    "overflow", "decoder.up.1.conv", "convolution conv2d", fails=FP16, family="vae",
    task="regression",
)  # fmt: skip
def autoencoder_black_image() -> Built:
    """Stable Diffusion XL's autoencoder: one convolution outgrows float16 before its group norm."""
    (x, _), (u, _) = data.digits()
    model = fitted(AutoencoderKL, (x, x), loss=F.mse_loss, epochs=40)
    with torch.no_grad():
        for parameter in model.decoder["up"][1].conv.parameters():
            parameter.mul_(1e5)
    return built(model, (u, u))
