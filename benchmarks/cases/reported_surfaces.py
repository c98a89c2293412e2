"""Held-out surfaces, drifts and counters: small differences, squares of returns, fades, halos.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import ALL, TRUE, Built, healthy, planted
from benchmarks.cases.reported_quantities import perceptron, taught
from benchmarks.cases.reported_tongues import decided, drawn


class Surface(nn.Module):
    """A signed distance: a sphere, and what a small net adds to it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = perceptron(3, 1, 32)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sqrt(torch.sum(x**2, -1, keepdim=True) + 1e-8) - 1 + 0.3 * self.net(x)


class Shading(nn.Module):
    """Rays are marched to a surface; its normal by differences, and its colour by the normal."""

    def __init__(self, epsilon: float, steps: int = 12) -> None:
        super().__init__()
        self.epsilon, self.steps = epsilon, steps
        self.sdf, self.colour = Surface(), nn.Linear(3, 3)

    def normal(self, x: Tensor) -> Tensor:
        e = self.epsilon
        parts = []
        for axis in range(3):
            step = torch.zeros(3, dtype=x.dtype, device=x.device)
            step[axis] = e
            parts.append(0.5 * (self.sdf(x + step) - self.sdf(x - step)) / e)
        return F.normalize(torch.cat(parts, -1), dim=-1)

    def forward(self, origin: Tensor, direction: Tensor) -> Tensor:
        t = torch.zeros_like(origin[:, :1])
        for _ in range(self.steps):
            t = t + 0.8 * self.sdf(origin + t * direction)
        return self.colour(self.normal(origin + t * direction))


def rays() -> tuple[Tensor, Tensor]:
    """Rays from two and a half away, towards what is there."""
    origin = 2.5 * F.normalize(drawn(400, 3, seed=1), dim=-1)
    return origin, F.normalize(0.5 * F.normalize(drawn(400, 3, seed=2), dim=-1) - origin, dim=-1)


@planted(
    "cancellation", "sdf", "sqrt sub add", fails=("bf16-true",), family="render",
    also=("precision-loss", "absorption"), task="regression", moot=("16-true", "bf16-mixed"),
)  # fmt: skip
def normals_by_small_differences() -> Built:
    """ashawkey/torch-ngp's finite differences at 5e-3, of distances that bfloat16 knows to 4e-3."""
    return taught(lambda: Shading(5e-3), rays())


@healthy(task="regression", precisions=("16-true", "16-mixed"))
def normals_by_large_differences() -> Built:
    """The same at 0.25: a slope over a half, of what float16 knows to a thousandth."""
    return taught(lambda: Shading(0.25), rays(), noise=0.1)


class Garch(nn.Module):
    """How far returns will go: a constant, the last one squared, and how far they went."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.unit, self.alpha, self.beta = unit, nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, returns: Tensor, features: Tensor) -> Tensor:
        a = 0.05 + 0.1 * torch.sigmoid(self.alpha(features)).squeeze(-1)
        b = 0.8 + 0.05 * torch.sigmoid(self.beta(features)).squeeze(-1)
        variance = torch.full_like(a, self.unit**2)
        for r in returns.unbind(1):
            variance = 0.1 * self.unit**2 + a * r**2 + b * variance
        return torch.log(variance + 1e-20)


def minutes(unit: float) -> tuple[Tensor, Tensor]:
    """Twenty returns of that size, calm or not."""
    return unit * torch.exp(drawn(400, 1, seed=3)) * drawn(400, 20, seed=4), drawn(400, 4, seed=5)


@planted(
    "underflow", "", "pow mul add", fails=("16-true",), family="finance", task="regression",
    moot=("bf16-true",),
)  # fmt: skip
def variances_of_a_minute() -> Built:
    """bashtage/arch warns of it: squares of 2e-4 are none in float16, nor is a floor of 1e-20."""
    return taught(lambda: Garch(2e-4), minutes(2e-4), noise=0.1)


@healthy(task="regression", precisions=("16-true", "16-mixed", "bf16-mixed"))
def variances_of_returns_in_percent() -> Built:
    """bashtage/arch, rescaled as it advises: returns in units of their own size."""
    return taught(lambda: Garch(1.0), minutes(1.0), noise=0.1)


class Drift(nn.Module):
    """Two samples' features, and how far apart their kernels' means are."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = perceptron(8, 6, 32)
        with torch.no_grad():
            self.encoder[-1].weight *= 2

    def kernel(self, x: Tensor, y: Tensor) -> Tensor:
        square = ((x.unsqueeze(2) - y.unsqueeze(1)) ** 2).sum(-1)
        return torch.exp(-square / 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = self.encoder(x), self.encoder(y)
        within = self.kernel(x, x).mean((1, 2)) + self.kernel(y, y).mean((1, 2))
        return (within - 2 * self.kernel(x, y).mean((1, 2))).unsqueeze(-1)


@planted(
    "cancellation", "", "sub", fails=("bf16-true",), family="statistics", task="regression",
    also=("precision-loss",), moot=("16-true", "bf16-mixed"),
)  # fmt: skip
def drifts_between_two_samples() -> Built:
    """SeldonIO/alibi-detect's MMD: means of 0.6 and 0.6 less twice 0.59, in the samples' type."""
    shift = 0.5 * torch.rand(200, 1, 1, generator=torch.Generator().manual_seed(6))
    return taught(Drift, (drawn(200, 16, 8, seed=7), drawn(200, 16, 8, seed=8) + shift))


class DistanceTransform(nn.Module):
    """kornia's: how far each pixel is from what is drawn, by logarithms of blurs, step by step."""

    def __init__(self, size: int = 7, h: float = 0.35) -> None:
        super().__init__()
        self.size, self.h = size, h

    def forward(self, image: Tensor) -> Tensor:
        steps = math.ceil(max(image.shape[2:]) / math.floor(self.size / 2))
        axis = torch.arange(self.size, device=image.device, dtype=image.dtype) - self.size // 2
        far = torch.sqrt(axis[:, None] ** 2 + axis[None, :] ** 2)
        kernel = torch.exp(far / -self.h).view(1, 1, self.size, self.size)
        out, boundary = torch.zeros_like(image), image.clone()
        ones = torch.ones_like(image)
        for i in range(steps):
            padded = F.pad(boundary, [self.size // 2] * 4, mode="replicate")
            near = -self.h * torch.log(F.conv2d(padded, kernel))
            near = torch.nan_to_num(near, posinf=0.0)
            mask = torch.where(near > 0, 1.0, 0.0)
            if not mask.any():
                break
            out = self.grown(out, (i * (self.size // 2) + near) * mask)
            boundary = torch.where(mask == 1, ones, boundary)
        return out

    def grown(self, out: Tensor, more: Tensor) -> Tensor:
        out += more
        return out


class PortedTransform(DistanceTransform):
    """The same as a port has it that writes nothing in place."""

    def grown(self, out: Tensor, more: Tensor) -> Tensor:
        return out + more


class Drawn(nn.Module):
    """A drawing, its distances, and what a small net makes of them."""

    def __init__(self, distance: nn.Module) -> None:
        super().__init__()
        self.distance, self.body = distance, nn.Conv2d(1, 8, 5, stride=3)
        self.head = nn.Linear(72, 5)
        with torch.no_grad():
            self.head.weight *= 6

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.body(self.distance(x))).flatten(1))


def drawings() -> tuple[Tensor]:
    """A few dots."""
    pixels = (drawn(300, 1, 12, 12, seed=9) > 2.0).float()
    pixels[:, :, 6, 6] = 1
    return (pixels,)


@healthy()
def distances_by_logarithms_of_blurs() -> Built:
    """kornia's distance_transform: infinite where nothing is near, which is made zero."""
    return decided(lambda: Drawn(DistanceTransform()), drawings())


@planted("unsupported-op", "body", "convolution conv2d", fails=TRUE, family="dtypes")
def distances_by_logarithms_of_blurs_elsewhere() -> Built:
    """A port of kornia's distance_transform: where(…, 1.0, 0.0) is float32, and so is the sum."""
    return decided(lambda: Drawn(PortedTransform()), drawings())


class Count(nn.Module):
    """An LSTM by hand whose cells add up what their gates let in."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.width, self.embed = width, nn.Embedding(6, 8)
        self.gates, self.head = nn.Linear(8, 3 * width), nn.Linear(width, 3)
        with torch.no_grad():
            self.gates.bias[width : 2 * width] += 14
            self.head.weight /= 20

    def forward(self, tokens: Tensor) -> Tensor:
        gates = self.gates(self.embed(tokens))
        c = gates.new_zeros(len(tokens), self.width)
        for i, f, g in zip(*(t.unbind(1) for t in gates.chunk(3, -1)), strict=True):
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g + 1)
        return self.head(c)


@planted(
    "absorption", "", "add", fails=ALL, family="recurrence", task="regression",
    also=("precision-loss",),
)  # fmt: skip
def cells_that_count_to_hundreds() -> Built:
    """pytorch's LSTMs in bfloat16: a cell near 200 takes steps of one, and gates open by half."""
    chances = (0.6 * drawn(200, 6, seed=10)).softmax(-1)
    tokens = torch.multinomial(chances, 500, True, generator=torch.Generator().manual_seed(11))
    return taught(Count, (tokens,))


class LogMel(nn.Module):
    """Whisper's: powers by a bank, a logarithm above 1e-10, at most eight below the largest."""

    def __init__(self, bands: int = 16) -> None:
        super().__init__()
        self.register_buffer("filters", drawn(24, bands, seed=12).abs() * 0.2)

    def forward(self, magnitudes: Tensor) -> Tensor:
        mel = magnitudes.square() @ self.filters
        log_spec = torch.clamp(mel, min=1e-10).log10()
        log_spec = torch.maximum(log_spec, log_spec.amax((1, 2), keepdim=True) - 8.0)
        return (log_spec + 4.0) / 4.0


class Listener(nn.Module):
    """Log mels, two convolutions in time, a class."""

    def __init__(self) -> None:
        super().__init__()
        self.mel, self.conv = LogMel(), nn.Conv1d(16, 24, 3, padding=1)
        self.head = nn.Linear(24, 5)
        with torch.no_grad():
            self.head.weight *= 6

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.conv(self.mel(x).transpose(1, 2))).amax(-1))


def heard(level: float) -> Tensor:
    """Magnitudes of twenty frames, the last of them silent."""
    x = level * (drawn(300, 20, 24, seed=13) + 1.5 * drawn(300, 1, 24, seed=14)).abs()
    x[:, 16:] = 0
    return x


@healthy()
def frames_of_silence_in_a_loud_recording() -> Built:
    """openai/whisper: zero has no logarithm in float16; eight below the largest it has one."""
    return decided(Listener, (heard(30.0),))


class SoftNms(nn.Module):
    """Boxes by their score, one after another; what overlaps a better one fades."""

    def __init__(self, sigma: float = 0.5, rounds: int = 8) -> None:
        super().__init__()
        self.sigma, self.rounds = sigma, rounds

    def overlap(self, box: Tensor, boxes: Tensor) -> Tensor:
        low, high = (
            torch.maximum(box[..., :2], boxes[..., :2]),
            torch.minimum(box[..., 2:], boxes[..., 2:]),
        )
        shared = (high - low).clamp(min=0).prod(-1)
        areas = [(b[..., 2:] - b[..., :2]).prod(-1) for b in (box, boxes)]
        return shared / (areas[0] + areas[1] - shared + 1e-9)

    def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
        rows = torch.arange(len(boxes), device=boxes.device)
        scores, kept = scores.clone(), torch.zeros_like(scores)
        for _ in range(self.rounds):
            best = scores.argmax(1)
            kept[rows, best] = scores[rows, best]
            scores[rows, best] = -1.0
            fades = torch.exp(-(self.overlap(boxes[rows, best][:, None], boxes) ** 2) / self.sigma)
            scores = torch.where(scores > 0, scores * fades, scores)
        return kept


class Faded(nn.Module):
    """Boxes in parts of a picture, their scores by a layer, what is left of each."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.nms = nn.Linear(6, 1), SoftNms()

    def forward(self, boxes: Tensor, features: Tensor) -> Tensor:
        return self.nms(boxes, torch.sigmoid(2 * self.score(features)).squeeze(-1))


@planted(
    "unsupported-op", "nms", "index_put index_put_", fails=("16-mixed", "bf16-mixed"),
    family="detector", task="regression", moot=("bf16-true",),
)  # fmt: skip
def boxes_that_fade() -> Built:
    """open-mmlab/mmcv's soft NMS in torch: autocast's exp makes float32 of scores, not of all."""
    corner = torch.rand(200, 8, 2, generator=torch.Generator().manual_seed(15))
    size = 0.2 + 0.6 * torch.rand(200, 8, 2, generator=torch.Generator().manual_seed(16))
    return taught(Faded, (torch.cat([corner, corner + size], -1), drawn(200, 8, 6, seed=17)))
