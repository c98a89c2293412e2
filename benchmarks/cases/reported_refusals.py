"""Held-out programs that ask 16 bits for what they have not: quantiles, bits, one common type."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import ALL, TRUE, Built, built, fitted, healthy, planted


class Threshold(nn.Module):
    """Imagen's: pixels beyond a quantile of their picture are brought back to it."""

    def forward(self, x: Tensor) -> Tensor:
        bound = self.quantile(x.flatten(1).abs()).clamp(min=1.0)[:, None, None, None]
        return x.clamp(-bound, bound) / bound

    def quantile(self, x: Tensor) -> Tensor:
        return torch.quantile(x, 0.95, dim=-1)


class WideThreshold(Threshold):
    """The quantile of float32, cast back."""

    def quantile(self, x: Tensor) -> Tensor:
        return torch.quantile(x.float(), 0.95, dim=-1).to(x.dtype)


class Unet(nn.Module):
    """What a noisy picture was, at one of four levels of noise, which scale and shift features."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.enter, self.down = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 32, 3, 2, 1)
        self.norm1, self.norm2 = nn.GroupNorm(4, width), nn.GroupNorm(4, 32)
        self.time = nn.Sequential(nn.Embedding(4, 32), nn.Linear(32, 64), nn.SiLU())
        self.middle, self.up = nn.Conv2d(32, 32, 3, padding=1), nn.ConvTranspose2d(32, width, 2, 2)
        self.leave = nn.Conv2d(2 * width, 1, 3, padding=1)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        first = F.silu(self.norm1(self.enter(x)))
        scale, shift = self.time(level)[:, :, None, None].chunk(2, 1)
        y = F.silu(self.norm2(self.down(first)) * (1 + scale) + shift)
        y = self.up(F.silu(self.middle(y)))
        return self.leave(torch.cat([y, first], 1))


class Sampler(nn.Module):
    """Four steps of denoising without noise of their own, each thresholded."""

    def __init__(self, threshold: type[Threshold]) -> None:
        super().__init__()
        self.unet, self.threshold = Unet(), threshold()
        self.register_buffer("kept", torch.tensor([1.0, 0.95, 0.85, 0.7]))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        if self.training:
            return self.unet(x, level)
        for step in (3, 2, 1):
            now = torch.full_like(level, step)
            clean = self.threshold(self.unet(x, now))
            kept, wanted = self.kept[step], self.kept[step - 1]
            noise = (x - kept.sqrt() * clean) / (1 - kept).sqrt()
            x = wanted.sqrt() * clean + (1 - wanted).sqrt() * noise
        return self.threshold(x)


def sampled(threshold: type[Threshold]) -> Built:
    """Noisy digits, and the digits they were."""
    random = torch.Generator().manual_seed(0)
    (x, _), (u, _) = data.digits()
    clean = x * 2 - 1
    level = torch.randint(1, 4, (len(x),), generator=random)
    kept = torch.tensor([1.0, 0.95, 0.85, 0.7])[level].view(-1, 1, 1, 1)
    noisy = kept.sqrt() * clean + (1 - kept).sqrt() * torch.randn(x.shape, generator=random)
    make = lambda: Sampler(threshold)  # noqa: E731
    model = fitted(make, (noisy, level, clean), loss=F.mse_loss, epochs=25)
    test = u[:300] * 2 - 1
    start = 0.7**0.5 * test + 0.3**0.5 * torch.randn(test.shape, generator=random)
    return built(model, (start, torch.full((300,), 3), test), size=100)


@planted(
    "unsupported-op", "threshold", "quantile", fails=ALL, family="diffusion", task="regression"
)
def quantiles_of_pixels() -> Built:
    """pytorch#138337: quantile takes float32 and float64, and is handed less by a net."""
    return sampled(Threshold)


@healthy(task="regression")
def quantiles_in_float32() -> Built:
    """diffusers' dynamic thresholding: float32 for the quantile, and back."""
    return sampled(WideThreshold)


class Shared(nn.Module):
    """A block of numbers on the grid of a small format: by the exponent of its largest, as bits."""

    def __init__(self, block: int = 16) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        blocks = x.view(*x.shape[:-1], -1, self.block)
        scale = self.power(blocks.abs().amax(-1, keepdim=True).clamp(min=2**-10)) / 8
        return ((blocks / scale).round().clamp(-15, 15) * scale).view_as(x)

    def power(self, most: Tensor) -> Tensor:
        """The power of two below, by shifting the fraction out of a float32."""
        return ((most.view(torch.int32) >> 23) << 23).view(torch.float32)


class WideShared(Shared):
    """The bits of a float32, whatever came in."""

    def power(self, most: Tensor) -> Tensor:
        return super().power(most.float()).to(most.dtype)


class Straight(nn.Module):
    """A linear layer whose inputs are put on a grid; its gradient passes straight through."""

    def __init__(self, inputs: int, outputs: int, grid: type[Shared]) -> None:
        super().__init__()
        self.linear, self.grid = nn.Linear(inputs, outputs), grid()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.linear(x + (self.grid(x.detach()) - x).detach())
        return self.linear(self.grid(x))


class Microscaled(nn.Module):
    """Three layers on shared exponents."""

    def __init__(self, grid: type[Shared]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Straight(64, 64, grid), Straight(64, 64, grid)])
        self.head = Straight(64, 10, grid)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.head(x)


@planted(
    "unsupported-op", "layers.0.grid", "view div", fails=TRUE, moot=("16-mixed", "bf16-mixed"),
    family="quantized",
)  # fmt: skip
def exponents_by_their_bits() -> Built:
    """ao#1670, ao#1908: a float32's bits are shifted; 16 bits are others, and half as many."""
    train, test = data.digits()
    return built(fitted(lambda: Microscaled(Shared), train), test)


@healthy()
def exponents_of_float32() -> Built:
    """ao#1908: cast to float32 before its bits are read."""
    train, test = data.digits()
    return built(fitted(lambda: Microscaled(WideShared), train), test)


class Aware(nn.Module):
    """Quantization-aware training: weights and activations through fake quantizers."""

    def __init__(self, fake: type[nn.Module], observer: type[nn.Module]) -> None:
        super().__init__()
        make = lambda: fake(observer=observer, quant_min=0, quant_max=255)  # noqa: E731
        self.enter, self.inside = make(), make()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(16), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(self.enter(x))))
        return self.head(F.max_pool2d(self.inside(x), 2).flatten(1))


def aware(fake: type[nn.Module], observer: type[nn.Module]) -> Built:
    """Digits; what the quantizers observed is kept once the training is over."""
    train, test = data.digits()
    model = fitted(lambda: Aware(fake, observer), train, epochs=8)
    for quantizer in (model.enter, model.inside):
        quantizer.disable_observer()
    return built(model, test)


@healthy()
def quantizers_under_autocast() -> Built:
    """pytorch#94371: fused fake quantizers of float32 scales meet what autocast made of a net."""
    return aware(
        quantization.FusedMovingAvgObsFakeQuantize, quantization.MovingAverageMinMaxObserver
    )


class Channels(nn.Module):
    """Sixteen steps for each channel, of a size of its own that is kept as a logarithm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("size", torch.linspace(-1.8, -1.2, channels))
        self.register_buffer("zero", torch.zeros(channels, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.size.float().exp()
        return torch.fake_quantize_per_channel_affine(x, scale, self.zero, 1, 0, 15)


class Coarse(nn.Module):
    """Two layers with sixteen levels between them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.levels, self.head = Channels(16), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.levels(F.relu(self.norm(self.conv(x))))
        return self.head(F.max_pool2d(x, 2).flatten(1))


@healthy()
def quantizers_of_channels() -> Built:
    """TensorRT#1580: scales of float32 by channel, beside activations of 16 bits."""
    train, test = data.digits()
    return built(fitted(Coarse, train, epochs=8), test)


class Ranking(nn.Module):
    """DLRM with bags of words whose weights a small net decides, and pairwise products."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(1200, dim, mode="sum", padding_idx=0)
        self.weigh = nn.Sequential(nn.Embedding(1200, 4), nn.Linear(4, 1))
        self.dense = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, dim), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(dim * 2 + 3, 32), nn.ReLU(), nn.Linear(32, 8))

    def forward(self, ids: Tensor, counts: Tensor) -> Tensor:
        weights = self.weigh(ids).squeeze(-1).sigmoid()
        first = self.bag(ids, per_sample_weights=self.typed(weights))
        second = self.dense(counts)
        both = torch.stack([first, second, first * 0 + 1], 1)
        pairs = torch.bmm(both, both.mT)[:, (1, 2, 2), (0, 0, 1)]
        return self.top(torch.cat([first, second, pairs], 1))

    def typed(self, weights: Tensor) -> Tensor:
        return weights


class TypedRanking(Ranking):
    """The weights in the type of the table."""

    def typed(self, weights: Tensor) -> Tensor:
        return weights.to(self.bag.weight.dtype)


def ranked(model: type[Ranking]) -> Built:
    """Words in bags; how many there are, and how rare."""

    def counted(ids: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        there = (ids != 0).float()
        counts = torch.stack(
            [there.mean(1), (ids > 600).float().mean(1), (ids == 1).float().mean(1)]
        )
        return ids, counts.T.contiguous(), y

    (ids, y), (test, v) = data.text_split()
    return built(fitted(model, counted(ids, y), epochs=12, rate=1e-2), counted(test, v))


@planted(
    "unsupported-op", "bag", "embedding_bag _embedding_bag _embedding_bag_forward_only",
    fails=("16-mixed", "bf16-mixed"), family="recommender",
)  # fmt: skip
def weights_of_a_bag() -> Built:
    """torchrec#1758: weights that autocast made half, beside a table that it did not."""
    return ranked(Ranking)


@healthy()
def weights_of_the_tables_type() -> Built:
    """torchrec#1232: the same, cast to the table's type."""
    return ranked(TypedRanking)
