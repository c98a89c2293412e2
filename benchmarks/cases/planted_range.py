"""Planted failures of range: overflow, underflow, and an epsilon that rounds to zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import FP16, TRUE, Built, built, fitted, planted
from benchmarks.cases.parts import (
    Conv,
    Dense,
    HandAttention,
    Rows,
    Vision,
    Words,
)


def digits_times(factor: float, offset: float = 0.0) -> tuple[tuple, tuple]:
    """Digits in other units: sensors count, cameras have 8 or 12 bits, and few people rescale."""
    (x, y), (u, v) = data.digits()
    return (x * factor + offset, y), (u * factor + offset, v)


# --- overflow -----------------------------------------------------------------------------------


class RmsPow(nn.Module):
    """RMS norm as in the first published code of many language models: x.pow(2) in x's own type."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class RmsMul(RmsPow):
    """The same by x * x, which no autocast policy lifts to float32."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.weight


@planted("overflow", "blocks.0.norm1", "pow", fails=("16-true",), family="transformer")
def rmsnorm_pow() -> Built:
    """A residual stream of massive activations meets a hand-written RMS norm."""
    train, test = data.digits()
    return built(fitted(lambda: Vision(norm=RmsPow, scale=600.0), train), test)


class NormedDense(nn.Module):
    """Linear, norm, GELU, linear on flat pixels."""

    def __init__(self, norm: nn.Module, hidden: int = 64) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(64, hidden), norm
        self.head = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.norm(self.first(x.flatten(1)))))


@planted("overflow", "norm", "mul", fails=FP16, family="mlp")
def rmsnorm_mul_raw_pixels() -> Built:
    """Pixels of a 12-bit camera, unscaled, into a linear layer and an RMS norm by x * x."""
    train, test = digits_times(4095.0)
    return built(fitted(lambda: NormedDense(RmsMul(64)), train), test)


class ScaledAfter(HandAttention):
    """Scores divided after the product, not before: the product itself leaves the range."""

    gain = 120.0

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        product = (self.gain * q) @ (self.gain * k).transpose(-1, -2)
        return product / (self.gain**2 * q.shape[-1] ** 0.5)


@planted("overflow", "blocks.0.attention", "bmm matmul", fails=FP16, family="transformer")
def attention_scaled_after_product() -> Built:
    """Query times key before the scale (the order that CogView's and GLM's authors had to turn)."""
    train, test = data.digits()
    return built(fitted(lambda: Vision(attention=ScaledAfter), train), test)


class SumPool(nn.Module):
    """Global average pooling as a sum, then a division."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum((2, 3)) / (x.shape[2] * x.shape[3])


@planted("overflow", "pool", "sum", fails=("16-true",), fails_cpu=("16-mixed",), family="cnn")
def sum_pooling_16_bit() -> Built:
    """Global pooling by sum over a feature map in units of a 16-bit camera."""
    train, test = digits_times(36000.0)

    def make() -> nn.Module:
        model = Conv(norm=lambda c: nn.Identity(), pool=SumPool())
        model.conv2.stride = (1, 1)
        return model

    return built(fitted(make, train, rate=1e-3, epochs=20), test)


class ExpPool(nn.Module):
    """Attention pooling by exp(s) / sum(exp(s)) without taking the largest score off first."""

    def __init__(self, dim: int, shift: float) -> None:
        super().__init__()
        self.score, self.shift = nn.Linear(dim, 1), shift

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        weight = torch.exp(self.score(x) + self.shift) * mask.unsqueeze(-1).to(x.dtype)
        return (x * weight).sum(1) / weight.sum(1)


@planted("overflow", "pool", "exp", fails=("16-true",), fails_cpu=("16-mixed",), family="embedding")
def exp_without_max() -> Built:
    """Scores of 12 and more: the softmax cannot see the shift, exp in float16 can."""
    train, test = data.text_split()
    return built(fitted(lambda: Words(pool=ExpPool(32, 12.0)), train), test)


class Prototypes(nn.Module):
    """Class scores from squared distances to one prototype per class."""

    def __init__(self, centres: Tensor, temperature: float) -> None:
        super().__init__()
        self.centres, self.temperature = nn.Parameter(centres), temperature

    def forward(self, x: Tensor) -> Tensor:
        return -self.distance(x.flatten(1)) / self.temperature

    def distance(self, x: Tensor) -> Tensor:
        return (x[:, None] - self.centres).square().sum(-1)


class Nearest(nn.Module):
    """A part that prepares features and one that compares them with prototypes."""

    def __init__(self, distance: nn.Module, first: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.distance = first or nn.Identity(), distance

    def forward(self, x: Tensor) -> Tensor:
        return self.distance(self.first(x))


def class_means(x: Tensor, y: Tensor) -> Tensor:
    """One prototype per class: the mean of its inputs."""
    return torch.stack([x[y == c].flatten(1).mean(0) for c in range(int(y.max()) + 1)])


@planted("overflow", "distance", "sum", fails=("16-true",), family="prototype")
def squared_distance_8_bit() -> Built:
    """Squared distances of 8-bit pixels: 255² still fits, the sum of a few of them does not."""
    (x, y), test = digits_times(255.0)
    return built(Nearest(Prototypes(class_means(x, y), 1e5)), test)


class Interactions(nn.Module):
    """Products of every two features, as polynomial regression has them."""

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = torch.triu_indices(x.shape[1], x.shape[1], device=x.device)
        return torch.cat([x, x[:, rows] * x[:, columns]], 1)


@planted("overflow", "first", "mul", fails=("16-true",), family="tabular")
def interactions_raw_units() -> Built:
    """Breast-cancer cells in µm and µm²: the area fits in float16, area times area does not."""
    train, test = data.tabular()
    make = lambda: Dense(Interactions(), 30 + 465, classes=2)  # noqa: E731
    return built(fitted(make, train, epochs=20, rate=2e-3), test)


class Units(nn.Module):
    """A change of units."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


@planted("overflow", "first.0", "mul", fails=("16-true",), family="recurrent")
def units_1e5_gru() -> Built:
    """Volts become microvolts before a layer norm and a GRU."""
    train, test = data.digits()
    make = lambda: Rows(first=nn.Sequential(Units(1e6), nn.LayerNorm(8)))  # noqa: E731
    return built(fitted(make, train), test)


class BigFeedForward(nn.Module):
    """A feed-forward part whose output is normed before it joins the residual (sandwich norm)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.wi, self.wo, self.norm = nn.Linear(dim, 64), nn.Linear(64, dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.wo(F.gelu(self.wi(x))))


@planted("overflow", "blocks.1.mlp.wo", "addmm linear mm", fails=FP16, family="transformer")
def t5_wo_output() -> Built:
    """T5's known overflow: the second matrix of a feed-forward part outgrows float16."""
    train, test = data.digits()
    model = fitted(lambda: Vision(mlp=BigFeedForward), train)
    with torch.no_grad():  # the norm behind it cannot tell, except by its epsilon
        for parameter in model.blocks[1].mlp.wo.parameters():
            parameter.mul_(2e5)
    return built(model, test)


class HandSoftplus(nn.Module):
    """log(1 + exp(x)) as it stands in the textbook."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(1 + torch.exp(x))


class Pixels(nn.Module):
    """An encoder, a decoder with a skip connection, and two classes per pixel."""

    def __init__(self, act: nn.Module, gain: float = 1.0, width: int = 12) -> None:
        super().__init__()
        self.gain = gain
        self.down = nn.Conv2d(1, width, 3, padding=1)
        self.act = act
        self.inner = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.up = nn.Conv2d(2 * width, width, 3, padding=1)
        self.head = nn.Conv2d(2 * width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.act(self.down(x) * self.gain)
        y = F.relu(self.inner(F.avg_pool2d(skip, 2)))
        y = F.relu(self.up(F.interpolate(y, scale_factor=2.0, mode="nearest")))
        return self.head(torch.cat([skip / self.gain, y], 1))


def noisy_masks(noise: float = 0.25) -> tuple[tuple, tuple]:
    """Digits under noise, and per pixel whether ink lies there."""
    (x, _), (u, _) = data.digits()
    random = torch.Generator().manual_seed(3)
    blur = lambda t: t + noise * torch.randn(t.shape, generator=random)  # noqa: E731
    return (blur(x), (x[:, 0] > 0.5).long()), (blur(u), (u[:, 0] > 0.5).long())


@planted("overflow", "act", "exp", fails=("16-true",), fails_cpu=("16-mixed",), family="per pixel")
def softplus_by_hand() -> Built:
    """A textbook softplus on pre-activations above 11 in a segmentation net."""
    train, test = noisy_masks()
    return built(fitted(lambda: Pixels(HandSoftplus(), gain=20.0), train), test)


class Product(nn.Module):
    """A gated unit whose gate has no upper end: relu(gate) * value."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.both = nn.Conv2d(channels, 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.both(x).chunk(2, 1)
        return F.relu(gate) * value


@planted("overflow", "middle.gate", "mul", fails=FP16, family="cnn")
def reglu_product() -> Built:
    """A ReGLU on unscaled camera counts: each factor fits, the product does not."""
    train, test = digits_times(4095.0)
    middle = lambda: nn.Sequential()  # noqa: E731

    def make() -> nn.Module:
        part = middle()
        part.add_module("gate", Product(16))
        part.add_module("norm", nn.GroupNorm(4, 16))
        return Conv(norm=lambda c: nn.Identity() if c == 16 else nn.BatchNorm2d(c), middle=part)

    return built(fitted(make, train), test)


# --- underflow ----------------------------------------------------------------------------------


class Likelihood(nn.Module):
    """Naive Bayes: a product of one probability per pixel, then Bayes' rule."""

    def __init__(self, ink: Tensor) -> None:
        super().__init__()
        self.ink = nn.Parameter(ink)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)[:, None]
        joint = (x * self.ink + (1 - x) * (1 - self.ink)).prod(-1)
        return joint / joint.sum(-1, keepdim=True)


@planted("underflow", "likelihood", "prod", fails=("16-true",), family="mixture")
def naive_bayes_product() -> Built:
    """64 probabilities multiplied: 1e-20 is nothing in float16, and Bayes' rule divides by it."""
    (x, y), test = data.digits()
    model = nn.Sequential()
    model.add_module("likelihood", Likelihood(class_means(x, y).clamp(0.05, 0.95)))
    return built(model, test)


class Sharpen(nn.Module):
    """Spatial attention sharpened by p^(1/T), as MixMatch and Markov clustering do."""

    def __init__(self, channels: int, power: float) -> None:
        super().__init__()
        self.score, self.power = nn.Conv2d(channels, 1, 1), power

    def forward(self, x: Tensor) -> Tensor:
        p = self.score(x).flatten(2).softmax(-1).pow(self.power)
        p = p / p.sum(-1, keepdim=True)
        return (x.flatten(2) * p).sum(-1)


@planted("underflow", "pool", "pow", fails=("16-true",), fails_cpu=("16-mixed",), family="cnn")
def sharpened_attention() -> Built:
    """Probabilities to the eighth power before they are normalised again."""
    train, test = data.digits()
    model = fitted(lambda: Conv(pool=Sharpen(32, 1.0)), train)
    model.pool.power = 8.0
    with torch.no_grad():  # the same weights p: softmax(s / 8)^8, normalised, is softmax(s)
        for parameter in model.pool.score.parameters():
            parameter.div_(8)
    return built(model, test)


class KernelVote(nn.Module):
    """Nadaraya-Watson: labelled examples vote with weights exp(-γ d²)."""

    def __init__(self, examples: Tensor, labels: Tensor, gamma: float) -> None:
        super().__init__()
        self.register_buffer("examples", examples)
        self.register_buffer("votes", F.one_hot(labels, 10).float())
        self.gamma = gamma

    def forward(self, x: Tensor) -> Tensor:
        distance = (x[:, None] - self.examples).square().sum(-1)
        weight = torch.exp(-self.gamma * distance)
        return (weight / weight.sum(-1, keepdim=True)) @ self.votes


@planted("underflow", "kernel", "exp", fails=("16-true",), family="kernel")
def kernel_regression() -> Built:
    """A narrow kernel: every weight is 1e-9 or less, and their sum divides."""
    (x, y), test = data.digits()
    model = nn.Sequential()
    model.add_module("flat", nn.Flatten())
    model.add_module("kernel", KernelVote(x[:300].flatten(1), y[:300], 8.0))
    return built(model, test)


class Peak(nn.Module):
    """Divide by the largest magnitude of the input."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs().amax(-1, keepdim=True)


@planted("underflow", "units", "mul", fails=FP16, family="mlp")
def nanometres_in_metres() -> Built:
    """A learned projection in nanometres becomes metres, and is then normalised by its peak."""
    train, test = data.digits()

    def make() -> nn.Module:
        model = nn.Sequential(nn.Flatten())
        model.add_module("project", nn.Linear(64, 64))
        model.add_module("units", Units(1e-9))
        model.add_module("peak", Peak())
        model.add_module("hidden", nn.Sequential(nn.Linear(64, 64), nn.ReLU()))
        model.add_module("head", nn.Linear(64, 10))
        return model

    return built(fitted(make, train), test)


@planted("underflow", "first", "addmm linear mm", fails=FP16, family="mlp")
def folded_scaling_weights() -> Built:
    """The preprocessing folded into the first matrix: its weights are 1e-9, its inputs counts."""
    train, test = digits_times(30000.0)
    scale = 1e-4 / 30000

    class_ = FoldedInput
    model = fitted(class_, (train[0] / 30000, train[1]))
    with torch.no_grad():  # exact in float32: every later quantity scales along
        model.first.weight.mul_(scale)
        model.first.bias.mul_(1e-4)
        model.norm.running_mean.mul_(1e-4)
        model.norm.running_var.mul_(1e-8)
        model.norm.eps *= 1e-8
    return built(model, test)


class FoldedInput(nn.Module):
    """Linear, batch norm, ReLU, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(64, 64), nn.BatchNorm1d(64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.first(x.flatten(1)))))


class TinyNorm(nn.Module):
    """Divide by the root mean square, with no epsilon at all."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True))


@planted("underflow", "encoder", "mul", fails=("16-true",), family="embedding")
def tiny_embeddings_normed() -> Built:
    """Embeddings of size 1e-5, as a tiny initialisation leaves them, squared in a norm."""
    train, test = data.text_split()
    model = fitted(lambda: Words(encoder=TinyNorm()), train)
    with torch.no_grad():
        model.embed.weight.mul_(1e-5)
    return built(model, test)


class HandCosine(nn.Module):
    """Cosine with class prototypes, from products and square roots."""

    def __init__(self, dim: int, classes: int = 10, temperature: float = 0.1) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(classes, dim))
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        p = self.prototypes
        dot = (x[:, None] * p).sum(-1)
        norms = (x * x).sum(-1, keepdim=True).sqrt() * (p * p).sum(-1).sqrt()
        return dot / norms / self.temperature


@planted("underflow", "head", "mul", fails=FP16, family="cnn")
def cosine_of_tiny_vectors() -> Built:
    """Feature vectors of length 1e-5: their squares are gone before the root."""
    train, test = data.digits()

    def make() -> nn.Module:
        model = Conv()
        model.head = HandCosine(32)
        return model

    model = fitted(make, train)
    model.pool = nn.Sequential(model.pool, nn.Linear(32, 32, bias=False))
    with torch.no_grad():  # the cosine cannot tell the length; the linear makes mixed 16-bit too
        model.pool[1].weight.copy_(torch.eye(32) * 2e-5)
    return built(model, test)


class Transmittance(nn.Module):
    """What is left of a ray behind each sample: log of the running product of 1 - opacity."""

    def __init__(self) -> None:
        super().__init__()
        self.opacity = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        through = 1 - 0.9 * torch.sigmoid(self.opacity(x)) * (x > -1)
        return torch.log(through.flatten(1).cumprod(1))


@planted(
    "underflow", "first", "cumprod", fails=("16-true",),
    moot=("16-mixed", "bf16-true", "bf16-mixed"),
    family="rendering",
)  # fmt: skip
def transmittance_cumprod() -> Built:
    """64 factors below one along a ray: the product is zero in float16, its log infinite."""
    (x, y), (u, v) = data.digits()
    make = lambda: Dense(Transmittance(), 64)  # noqa: E731
    return built(fitted(make, (x[:, 0], y)), (u[:, 0], v))


# --- an epsilon that rounds to zero -------------------------------------------------------------


class PatchNorm(nn.Module):
    """Standardise each patch by hand, epsilon 1e-8 under the root."""

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-8)


@planted("eps-underflow", "pixels", "add sqrt div", fails=("16-true",), family="transformer")
def patch_norm_eps_1e8() -> Built:
    """Blank patches have no variance, and 1e-8 is zero in float16: 0 / 0."""
    train, test = data.digits()
    return built(fitted(lambda: Vision(pixels=PatchNorm()), train), test)


def columns() -> tuple[tuple, tuple]:
    """Digits read column by column: the outer columns are mostly blank."""
    (x, y), (u, v) = data.digits()
    return (x.transpose(2, 3), y), (u.transpose(2, 3), v)


class UnitRows(nn.Module):
    """Each row to length one by torch's own normalize, epsilon 1e-12."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)


@planted("eps-underflow", "first", "clamp_min clamp div", fails=("16-true",), family="recurrent")
def normalize_blank_rows() -> Built:
    """F.normalize of a blank column: its floor of 1e-12 is zero in float16."""
    train, test = columns()
    return built(fitted(lambda: Rows(first=UnitRows()), train), test)


class Entropy(nn.Module):
    """How certain each position is: the entropy of its class probabilities, eps 1e-12."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.classes = nn.Conv2d(channels, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        p = (4 * self.classes(x)).softmax(1)
        entropy = -(p * torch.log(p + 1e-12)).sum(1, keepdim=True)
        return (x * torch.exp(-entropy)).mean((2, 3))


@planted(
    "eps-underflow", "pool", "add log", fails=("16-true",), fails_cpu=("16-mixed",), family="cnn"
)
def entropy_log_eps() -> Built:
    """A probability that rounds to zero plus an epsilon that does too: 0 · log 0."""
    train, test = data.digits()
    return built(fitted(lambda: Conv(pool=Entropy(32)), train), test)


class SentencePool(nn.Module):
    """The masked mean of the sentence-embedding libraries: sum over clamp(count, 1e-9)."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        weight = mask.unsqueeze(-1).to(x.dtype)
        return (x * weight).sum(1) / torch.clamp(weight.sum(1), min=1e-9)


def text_with_blanks(every: int = 12) -> tuple[tuple, tuple]:
    """Docstrings of which some are empty: all padding."""
    (x, y), (u, v) = data.text_split()
    x, u = x.clone(), u.clone()
    x[::every], u[::every] = 0, 0
    return (x, y), (u, v)


@planted("eps-underflow", "pool", "clamp clamp_min div", fails=("16-true",), family="embedding")
def masked_mean_empty_text() -> Built:
    """An empty text: nothing over 1e-9 is nothing, nothing over nothing is NaN."""
    train, test = text_with_blanks()
    return built(fitted(lambda: Words(pool=SentencePool()), train), test)


class LinearAttention(nn.Module):
    """Attention with relu features, renormalised by sum + 1e-9."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k = F.relu(q - 1), F.relu(k - 1)
        weight = q @ k.transpose(1, 2)
        return self.out((weight / (weight.sum(-1, keepdim=True) + 1e-9)) @ v)


@planted(
    "eps-underflow", "blocks.0.attention", "add div", fails=("16-true",),
    fails_cpu=("16-mixed",), moot=(), family="transformer",
)  # fmt: skip
def linear_attention_renormalised() -> Built:
    """A query that no key answers: the row's sum is zero, and so is 1e-9."""
    train, test = data.digits()
    return built(fitted(lambda: Vision(attention=LinearAttention), train), test)


class FrozenNorm(nn.Module):
    """Batch norm with frozen statistics, spelt out: (x - mean) / sqrt(var + 1e-8)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("variance", torch.ones(1, channels, 1, 1))
        self.weight = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x - self.mean) / torch.sqrt(self.variance + 1e-8)


@planted("eps-underflow", "norm1", "add sqrt div", fails=("16-true",), family="cnn")
def frozen_norm_dead_channel() -> Built:
    """A dead channel has running variance 0: 0 / sqrt(1e-8) is 0, 0 / 0 is not."""
    train, test = data.digits()

    def make() -> nn.Module:
        model = Conv(norm=lambda c: FrozenNorm(c) if c == 16 else nn.BatchNorm2d(c))
        with torch.no_grad():
            model.conv1.weight[3], model.conv1.bias[3] = 0, 0
            model.norm1.variance[:, 3] = 0
        model.conv1.requires_grad_(False)
        return model

    return built(fitted(make, train), test)


class ZScore(nn.Module):
    """(x - mean) / (std + 1e-8) along the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-8)


@planted("eps-underflow", "first", "add div", fails=("16-true",), family="recurrent")
def zscore_constant_rows() -> Built:
    """A z-score of columns some of which are constant, before a recurrent net."""
    train, test = columns()
    return built(fitted(lambda: Rows(nn.RNN, first=ZScore()), train), test)


class Logit(nn.Module):
    """Probabilities made safe by clamp(p, 1e-8, 1 - 1e-8), then logits again."""

    def forward(self, x: Tensor) -> Tensor:
        p = torch.sigmoid(4 * x).clamp(1e-6, 1 - 1e-6)
        return torch.log(p / (1 - p))


@planted(
    "eps-underflow", "last", "clamp rsub div log sigmoid", fails=(*TRUE, "16-mixed", "bf16-mixed"),
    also=("cancellation", "underflow"), family="mlp",
)  # fmt: skip
def clamped_probability() -> Built:
    """1 - 1e-6 is one in both formats, so 1 - p is zero and the logit infinite."""
    train, test = data.digits()
    make = lambda: Dense(nn.Flatten(), 64, last=Logit())  # noqa: E731
    return built(fitted(make, train), test)
