"""Planted failures of precision: cancellation, absorption, and plain loss of precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import ALL, TRUE, Built, built, fitted, planted
from benchmarks.cases.parts import Conv, Dense, Rows, Vision, Words
from benchmarks.cases.planted_range import Nearest, Units, class_means, digits_times

# --- cancellation -------------------------------------------------------------------------------


class InputNorm(nn.Module):
    """Instance norm of the input by E[x²] − E[x]²."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        variance = (x * x).mean((2, 3), keepdim=True) - mean * mean
        return (x - mean) / torch.sqrt(variance.clamp(min=1e-3))


@planted("cancellation", "first", "sub", fails=TRUE, family="cnn")
def naive_variance_image() -> Built:
    """A picture with little contrast on a bright ground: its variance is a difference."""
    train, test = digits_times(4.0, 120.0)
    return built(fitted(lambda: Conv(first=InputNorm()), train), test)


class NaiveLayerNorm(nn.Module):
    """Layer norm by E[x²] − E[x]²."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        variance = (x * x).mean(-1, keepdim=True) - mean * mean
        return (x - mean) * torch.rsqrt(variance.clamp(min=1e-2)) * self.weight + self.bias


@planted("cancellation", "blocks.0.norm1", "sub", fails=TRUE, family="transformer")
def naive_variance_residual() -> Built:
    """A residual stream with a common offset of 60 and a layer norm that squares it."""
    train, test = data.digits()
    return built(fitted(lambda: Vision(norm=NaiveLayerNorm, offset=60.0), train), test)


class ExpandedDistance(nn.Module):
    """Squared distances to prototypes as |a|² − 2ab + |b|²."""

    def __init__(self, centres: Tensor) -> None:
        super().__init__()
        self.centres = nn.Parameter(centres)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.flatten(1), self.centres
        return -((a * a).sum(1, keepdim=True) - 2 * (a @ b.T) + (b * b).sum(1))


@planted("cancellation", "distance", "sub add mm", fails=ALL, family="prototype")
def expanded_distance() -> Built:
    """Prototypes far from the origin: squares of 6400 leave a distance of 6."""
    (x, y), test = digits_times(1.0, 10.0)
    return built(Nearest(ExpandedDistance(class_means(x, y))), test)


class Delta(nn.Module):
    """Differences between one row and the next."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 1:] - x[:, :-1]


@planted("cancellation", "first.0", "sub", fails=TRUE, also=("precision-loss",), family="recurrent")
def kelvin_differences() -> Built:
    """Temperatures in kelvin, of which only the differences matter."""
    train, test = digits_times(0.4, 300.0)
    make = lambda: Rows(first=nn.Sequential(Delta(), Units(5.0)))  # noqa: E731
    return built(fitted(make, train), test)


class Complement(nn.Module):
    """−log(1 − p): how surprised one would be if the class were absent."""

    def forward(self, x: Tensor) -> Tensor:
        p = torch.sigmoid(12 * torch.tanh(x / 12))
        return -torch.log(1 - p)


@planted(
    "cancellation", "last", "rsub sub log sigmoid", fails=ALL, also=("absorption", "underflow"),
    family="mlp",
)  # fmt: skip
def log_of_one_minus_p() -> Built:
    """1 − p with p near one: nothing is left of it, and its logarithm is infinite."""
    train, test = data.digits()
    make = lambda: Dense(nn.Flatten(), 64, last=Complement())  # noqa: E731
    return built(fitted(make, train, epochs=40), test)


class Moments(nn.Module):
    """Shape of the ink by centre and central moments, from raw moments in picture coordinates."""

    def __init__(self, corner: float) -> None:
        super().__init__()
        axis = torch.arange(8.0) + corner
        u, v = torch.meshgrid(axis, axis, indexing="ij")
        u, v = u.flatten(), v.flatten()
        self.register_buffer("raw", torch.stack([u, v, u * u, u * v, v * v]))
        self.corner = corner

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        mass = x.sum(-1)
        u, v, uu, uv, vv = ((x * self.raw).sum(-1) / mass).unbind(1)
        central = torch.stack([uu - u * u, uv - u * v, vv - v * v], 1)
        return torch.cat(
            [mass / 20, u[:, None] - self.corner, v[:, None] - self.corner, central], 1
        )


@planted("cancellation", "first", "sub", fails=TRUE, family="tabular")
def raw_image_moments() -> Built:
    """Central moments from raw ones in a window at (30, 30) of a picture."""
    train, test = data.digits()
    make = lambda: Dense(Moments(30.0), 6)  # noqa: E731
    return built(fitted(make, train, epochs=40), test)


class BoxFilter(nn.Module):
    """Sums over 3x3 boxes as four corners of an integral image."""

    def forward(self, x: Tensor) -> Tensor:
        table = F.pad(x, (1, 0, 1, 0)).cumsum(2).cumsum(3)
        rows = table[:, :, 3:] - table[:, :, :-3]
        return rows[..., 3:] - rows[..., :-3]


@planted("cancellation", "first.0", "sub", fails=TRUE, family="cnn")
def integral_image_boxes() -> Built:
    """Box filters from an integral image of a bright picture."""
    train, test = digits_times(1.0, 30.0)
    first = lambda: nn.Sequential(BoxFilter(), nn.BatchNorm2d(1))  # noqa: E731
    return built(fitted(lambda: Conv(first=first()), train), test)


# --- absorption ---------------------------------------------------------------------------------


class RunningSum(nn.Module):
    """Global pooling by adding one pixel's features after another to a running total."""

    stepwise = True

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(2)
        if not self.stepwise:
            return pixels.sum(-1)
        total = torch.zeros_like(pixels[..., 0])
        for t in range(pixels.shape[-1]):
            total = total + pixels[..., t]
        return total


def fashion_part(count: int = 3000, tests: int = 400) -> tuple[tuple, tuple]:
    """Some of Fashion-MNIST, in 0..1."""
    (x, y), (u, v) = data.fashion("train"), data.fashion("test")
    grey = lambda t: t * 0.3530 + 0.2860  # noqa: E731
    return (grey(x[:count]), y[:count]), (grey(u[:tests]), v[:tests])


class Streamed(nn.Module):
    """A convolution, a running sum over the picture, batch norm, and a head."""

    def __init__(self, pool: nn.Module, width: int = 24) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(1, width, 5, stride=1), pool
        self.norm, self.head = nn.BatchNorm1d(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.pool(F.relu(self.conv(x)))))


@planted(
    "absorption", "pool", "add", fails=("bf16-true", "bf16-mixed"), moot=("16-true", "16-mixed"),
    family="cnn",
)  # fmt: skip
def running_sum_stalls() -> Built:
    """A sum of 576 terms, one at a time, in bfloat16: past 256 a term below one changes nothing."""
    train, test = fashion_part()

    def make() -> nn.Module:
        model = Streamed(RunningSum())
        model.pool.stepwise = False  # the same sum, and training takes seconds
        return model

    model = fitted(make, train, epochs=6)
    model.pool.stepwise = True
    return built(model, test)


class Background(nn.Module):
    """A background model: an exponential average over the frames of a still scene."""

    def __init__(self, frames: int = 300, rate: float = 0.001) -> None:
        super().__init__()
        self.frames, self.rate, self.stepwise = frames, rate, True

    def forward(self, x: Tensor) -> Tensor:
        start = torch.ones_like(x)
        if not self.stepwise:
            kept = (1 - self.rate) ** self.frames
            return kept * start + (1 - kept) * x
        average = start
        for _ in range(self.frames):
            average = average + self.rate * (x - average)
        return average


@planted("absorption", "first.1", "add", fails=TRUE, family="mlp")
def exponential_average_stalls() -> Built:
    """A rate of 0.001: every single step is below half a unit in the last place."""
    train, test = data.digits()

    def make() -> nn.Module:
        model = Dense(nn.Sequential(nn.Flatten(), Background()), 64)
        model.first[1].stepwise = False
        return model

    model = fitted(make, train)
    model.first[1].stepwise = True
    return built(model, test)


class Frequencies(nn.Module):
    """log(1 + frequency), the usual damping of counts."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(1 + x)


@planted("absorption", "first", "add", fails=TRUE, family="text")
def log_one_plus_frequency() -> Built:
    """Word frequencies of 1e-4 added to one: log(1 + x) where log1p(x) was meant."""
    (x, y), (u, v) = data.text_split()
    count = lambda ids: F.one_hot(ids, 1200).sum(1)[:, 2:402] * 1e-4  # noqa: E731
    features = torch.log(1 + count(x))

    def make() -> nn.Module:
        model = nn.Sequential()
        model.add_module("first", Frequencies())
        model.add_module("body", FixedNorm(features.mean(0), features.std(0)))
        return model

    return built(fitted(make, (count(x), y)), (count(u), v))


class FixedNorm(nn.Module):
    """A perceptron behind fixed statistics."""

    def __init__(self, mean: Tensor, variance: Tensor, classes: int = 8) -> None:
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.register_buffer(
            "gain", torch.where(variance > 0, variance.rsqrt(), 0.0).clamp(max=6e4)
        )
        self.hidden, self.head = nn.Linear(len(mean), 64), nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden((x - self.mean) * self.gain)))


class FloatIds(nn.Module):
    """An embedding of ids that come as floats, as they do out of a data frame."""

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(count, dim)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids.long())


def hashed_words() -> tuple[tuple, tuple]:
    """Word ids hashed into 30,000 buckets, as floats; 0 stays padding."""
    (x, y), (u, v) = data.text_split()
    spread = lambda ids: (ids * 7919 % 29989).float()  # noqa: E731
    return (spread(x), y), (spread(u), v)


@planted(
    "absorption", "embed", "_to_copy", fails=TRUE, also=("precision-loss",), family="embedding"
)
def float_ids_collide() -> Built:
    """Ids as floats: above 2048 float16 skips some, above 256 bfloat16 does."""
    train, test = hashed_words()
    return built(fitted(lambda: Words(embed=FloatIds(30000, 32)), train), test)


class ArangePositions(nn.Module):
    """A table of positions, read at arange(T) in the type of the data."""

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(length, dim) * 0.03)

    def forward(self, x: Tensor) -> Tensor:
        place = torch.arange(len(self.table), dtype=x.dtype, device=x.device)
        return x @ self.table[place.long().clamp(max=len(self.table) - 1)]


@planted(
    "absorption", "positions", "arange", fails=("bf16-true",), also=("precision-loss",),
    family="linear attention",
)  # fmt: skip
def arange_past_256() -> Built:
    """784 pixels, each with its position's weights; bfloat16 cannot count past 256."""
    (x, y), (u, v) = fashion_part(6000, 600)

    def make() -> nn.Module:
        model = nn.Sequential(nn.Flatten())
        model.add_module("positions", ArangePositions(784, 48))
        model.add_module("hidden", nn.Sequential(nn.ReLU(), nn.Linear(48, 48), nn.ReLU()))
        model.add_module("head", nn.Linear(48, 10))
        return model

    model = fitted(make, (x, y), epochs=10)
    return built(model, (u, v))


class Histogram(nn.Module):
    """Grey levels of the picture's four quarters, counted one pixel at a time."""

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        levels = (x.flatten(2).squeeze(1) * 7).long().clamp(0, 7)
        places = (levels + 8 * torch.arange(n, device=x.device)[:, None]).flatten()
        counts = torch.zeros(8 * n, dtype=x.dtype, device=x.device)
        return counts.index_add_(0, places, torch.ones_like(x).flatten()).view(n, 8) / 100


@planted("absorption", "first", "index_add_ index_add", fails=("bf16-true",), family="tabular")
def histogram_stops_at_256() -> Built:
    """A histogram in bfloat16: a bin that holds 256 stays there."""
    (x, y), (u, v) = fashion_part(6000, 600)
    make = lambda: Dense(Histogram(), 8)  # noqa: E731
    return built(fitted(make, (x, y), epochs=12), (u, v))


class Packed(nn.Module):
    """Two bytes packed into one key, as tables and file formats do, and taken apart again."""

    def forward(self, x: Tensor) -> Tensor:
        high, low = x.flatten(1)[:, ::2], x.flatten(1)[:, 1::2]
        key = high * 256 + low
        high = torch.floor(key / 256)
        return torch.cat([high, key - 256 * high], 1) / 255


@planted("absorption", "first", "add", fails=TRUE, family="mlp")
def packed_keys() -> Built:
    """high · 256 + low: the low byte is lost beside the high one."""
    (x, y), (u, v) = digits_times(240.0)
    make = lambda: Dense(Packed(), 64)  # noqa: E731
    return built(fitted(make, (x.round(), y)), (u.round(), v))


class Bias(nn.Module):
    """A constant added before the activations are stored and taken off where they are used."""

    def __init__(self, constant: float) -> None:
        super().__init__()
        self.constant = constant

    def forward(self, x: Tensor) -> Tensor:
        return x + self.constant


@planted("absorption", "middle.shift", "add", fails=ALL, also=("precision-loss",), family="cnn")
def quantiser_offset() -> Built:
    """The offset of 2¹³ with which integer code makes signed values unsigned."""
    train, test = data.digits()

    def make() -> nn.Module:
        part = nn.Sequential()
        part.add_module("shift", Bias(8192.0))
        part.add_module("back", Bias(-8192.0))
        return Conv(middle=part)

    return built(fitted(make, train), test)


# --- precision loss -----------------------------------------------------------------------------


@planted("precision-loss", "head", "addmm linear mm", fails=ALL, also=("absorption",), family="cnn")
def common_logit_offset() -> Built:
    """A common offset of 3000 in the head's bias: softmax ignores it, 16 bits cannot."""
    train, test = data.digits()
    model = fitted(Conv, train)
    with torch.no_grad():
        model.head.bias.add_(3000)
    return built(model, test)


@planted("precision-loss", "head", "addmm linear mm", fails=ALL, also=("absorption",), family="vit")
def common_logit_direction() -> Built:
    """Weights with a large part common to all classes, so that all logits rise and fall as one."""
    train, test = data.digits()
    model = fitted(Vision, train)
    with torch.no_grad():
        random = torch.Generator().manual_seed(0)
        common = torch.randn(1, 32, generator=random) * 2.0**10
        model.head.weight.add_(common)
    return built(model, test)


class Fourier(nn.Module):
    """Gaussian Fourier features of coordinates (Tancik et al.)."""

    def __init__(self, count: int, spread: float) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(1)
        self.register_buffer("matrix", torch.randn(2, count, generator=random) * spread)
        self.register_buffer("phase", torch.rand(count, generator=random) * 6.2832)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x @ self.matrix + self.phase)


@planted(
    "precision-loss",
    "first",
    "mm sin add addmm linear",
    fails=ALL,
    also=("absorption",),
    family="implicit field",
)
def fourier_features() -> Built:
    """A photograph as a function of coordinates: the sine of an angle of hundreds has no phase."""
    x, y = data.picture()
    model = fitted(lambda: Dense(Shifted(), 128, classes=2), (x, y), epochs=30, batch=128)
    return built(model, (x, y), 512)


class Shifted(Fourier):
    """The same, with coordinates counted from a far corner of a map."""

    def __init__(self) -> None:
        super().__init__(128, 20.0)
        self.origin = 31.0

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin((x + self.origin) @ self.matrix + self.phase)


class LockIn(nn.Module):
    """A bank of lock-in amplifiers: correlate with oscillators whose phase is a running sum."""

    def __init__(self, pitches: int = 24, length: int = 512) -> None:
        super().__init__()
        self.step = nn.Parameter(0.15 * 2 ** (torch.arange(pitches) / 12))
        self.length = length

    def forward(self, x: Tensor) -> Tensor:
        phase = self.step[:, None].expand(-1, self.length).cumsum(1) + 2000 * torch.pi
        real, imaginary = x @ torch.cos(phase).T, x @ torch.sin(phase).T
        return torch.sqrt((real / 30).square() + (imaginary / 30).square() + 0.01)


@planted(
    "precision-loss", "oscillator", "cumsum add", fails=TRUE, also=("absorption",), family="audio"
)
def oscillator_phase() -> Built:
    """A phase of thousands of radians, as in neural source-filter vocoders."""
    model = nn.Sequential()
    model.add_module("oscillator", LockIn())
    return built(model, data.tones(512, seed=1))


class Cosine(nn.Module):
    """100 times the cosine with class prototypes, as CLIP classifies."""

    def __init__(self, dim: int, classes: int = 10) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(classes, dim))

    def forward(self, x: Tensor) -> Tensor:
        return 100 * F.normalize(x, dim=-1) @ F.normalize(self.prototypes, dim=-1).T


@planted(
    "precision-loss", "head", "mm mul div matmul addmm", fails=ALL, also=("cancellation",),
    family="embedding",
)  # fmt: skip
def anisotropic_cosine() -> Built:
    """Embeddings that share one long common vector: every cosine is 0.999."""
    train, test = data.digits()

    def make() -> nn.Module:
        model = Conv()
        model.head = Cosine(32)
        return model

    model = fitted(make, train)
    with torch.no_grad():  # a common direction that neither pool nor prototypes had
        common = torch.zeros(33)
        common[32] = 1.0
        scale = model.head.prototypes.norm(dim=1, keepdim=True)
        tall = torch.cat([model.head.prototypes / scale, torch.full((10, 1), 24.0)], 1)
        model.head.prototypes = nn.Parameter(tall)
    model.pool = nn.Sequential(model.pool, Common(24.0))
    return built(model, test)


class Common(nn.Module):
    """Unit vectors beside one long common coordinate."""

    def __init__(self, length: float) -> None:
        super().__init__()
        self.length = length

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(x, dim=-1)
        return torch.cat([x, torch.full_like(x[:, :1], self.length)], 1)


class Dates(nn.Module):
    """A perceptron that predicts a year."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.body(x)))


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(outputs, targets)


@planted(
    "precision-loss", "head", "addmm linear mm", fails=ALL, also=("absorption",), family="mlp",
    task="regression",
)  # fmt: skip
def year_regression() -> Built:
    """Years around 2000 with a spread of 1: float16 knows every one, bfloat16 every eighth."""
    (x, _), (u, _) = data.digits()
    year = lambda t: (t[..., 2:6].mean((1, 2, 3)) - 0.45)[:, None] * 10  # noqa: E731
    model = fitted(Dates, (x, year(x)), epochs=40, loss=squared)
    with torch.no_grad():
        model.head.bias.add_(2000)
    return built(model, (u, year(u) + 2000))


class Resonators(nn.Module):
    """A bank of two-pole filters run sample by sample: coefficients near 2 and 1 set the pitch."""

    def __init__(self, pitches: int = 24, radius: float = 0.995) -> None:
        super().__init__()
        omega = 0.15 * 2 ** (torch.arange(pitches) / 12)
        self.first = nn.Parameter(2 * radius * torch.cos(omega))
        self.second = nn.Parameter(torch.tensor(radius * radius))
        self.gain = nn.Parameter(torch.sin(omega))

    def forward(self, x: Tensor) -> Tensor:
        old = older = torch.zeros_like(x[:, :1]).expand(-1, len(self.first))
        energy = torch.zeros_like(old)
        for sample in x.unbind(1):
            new = self.first * old - self.second * older + sample[:, None] * 0.1
            energy = energy + (new * self.gain).square()
            old, older = new, old
        return energy / x.shape[1]


@planted(
    "precision-loss", "resonators", "mul sub add", fails=("bf16-true",), moot=("16-true",),
    also=("absorption", "cancellation"), family="recurrent filter",
)  # fmt: skip
def resonator_bank() -> Built:
    """Recursive filters: in bfloat16 the poles move, and every sample rounds into the next."""
    model = nn.Sequential()
    model.add_module("resonators", Resonators())
    return built(model, data.tones(256, length=400, seed=2))


class Rotary(nn.Module):
    """Positions turned into angles by a product of two 16-bit numbers, far from the origin."""

    def __init__(self, start: int) -> None:
        super().__init__()
        self.start = start

    def forward(self, x: Tensor) -> Tensor:
        _, t, d = x.shape
        place = torch.arange(t, device=x.device).to(x.dtype) + self.start
        rate = torch.pow(10.0, -torch.arange(d // 2, device=x.device) / (d // 2)).to(x.dtype)
        angle = place[:, None] * rate
        a, b = x.chunk(2, -1)
        cos, sin = torch.cos(angle), torch.sin(angle)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class RotaryPixels(nn.Module):
    """An embedding of each row, turned by its place, and a perceptron on the sum."""

    def __init__(self, start: int) -> None:
        super().__init__()
        self.embed, self.rotary = nn.Linear(8, 32), Rotary(start)
        self.hidden, self.head = nn.Linear(32, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.rotary(torch.tanh(self.embed(x.flatten(1, 2)))).sum(1)
        return self.head(F.relu(self.hidden(x)))


@planted(
    "precision-loss", "rotary", "mul add cos sin _to_copy", fails=ALL, also=("absorption",),
    family="rotary",
)  # fmt: skip
def rotary_far_positions() -> Built:
    """Rotary angles at position 3000 and on, computed in the type of the data."""
    train, test = data.digits()
    return built(fitted(lambda: RotaryPixels(3001), train), test)
