"""Held-out filters, as libraries ship them: edges, shapes of patches, similarities, first batches.

Drawn at random; labels are the models' own float32 outputs and a little noise.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import TRUE, Built, healthy, planted
from benchmarks.cases.reported_quantities import perceptron, taught
from benchmarks.cases.reported_solvers import drawn


def pictures(count: int, size: int, seed: int = 0) -> Tensor:
    """Smooth pictures between zero and one."""
    coarse = torch.rand(
        count, 1, size // 4, size // 4, generator=torch.Generator().manual_seed(seed)
    )
    return F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)


SLOPES = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8


class Slopes(nn.Module):
    """Sobel's two slopes of a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("taps", torch.stack([SLOPES, SLOPES.T]).unsqueeze(1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), "replicate"), self.taps)


class Shape(nn.Module):
    """The second moments of a patch's slopes under a window, relative to the largest."""

    def __init__(self, size: int, floor: float) -> None:
        super().__init__()
        along = torch.arange(size) - (size - 1) / 2
        window = torch.exp(-(along / size * 3).square())
        window = window[:, None] * window
        self.register_buffer("window", window / window.sum())
        self.slopes, self.floor = Slopes(), floor

    def forward(self, x: Tensor) -> Tensor:
        across, down = (self.slopes(x) * self.window).unbind(1)
        moments = [across * across, across * down, down * down]
        found = torch.stack([m.mean((1, 2)) for m in moments], 1)
        flat = (found.abs() < self.floor).all(1, keepdim=True)
        found = torch.where(flat, torch.ones_like(found), found)
        return found / found.abs().amax(1, keepdim=True)


class Described(nn.Module):
    """A patch by its affine shape."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.shape, self.head = Shape(32, floor), perceptron(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shape(x))


@planted(
    "underflow", "shape", "mul mean lt div amax", fails=("16-true",),
    also=("eps-underflow", "precision-loss"), task="regression",
)  # fmt: skip
def affine_shape_of_a_patch() -> Built:
    """kornia #4123: moments of windowed slopes are zero in float16, and so is the guard's floor."""
    return taught(lambda: Described(1e-10), (0.3 * pictures(200, 32),))


class Similarity(nn.Module):
    """One less the structural similarity of a picture and another, by a Gaussian window."""

    def __init__(self) -> None:
        super().__init__()
        window = torch.exp(-((torch.arange(11) - 5.0) / 1.5).square() / 2)
        window = window[:, None] * window
        self.register_buffer("window", (window / window.sum())[None, None])

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        means = [F.conv2d(x, self.window) for x in (a, b)]
        spreads = [F.conv2d(x * x, self.window) - m * m for x, m in zip((a, b), means, strict=True)]
        shared = F.conv2d(a * b, self.window) - means[0] * means[1]
        light = (2 * means[0] * means[1] + 1e-4) / (means[0] ** 2 + means[1] ** 2 + 1e-4)
        contrast = (2 * shared + 9e-4) / (spreads[0] + spreads[1] + 9e-4)
        return 1 - (light * contrast).mean((1, 2, 3)).unsqueeze(1)


class Restored(nn.Module):
    """How little a restored picture differs from the one it was made of."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.similarity = nn.Conv2d(1, 1, 3, padding=1), Similarity()

    def forward(self, clean: Tensor, noisy: Tensor) -> Tensor:
        return self.similarity(clean, noisy + 0.01 * self.body(noisy))


def pairs_of_pictures() -> tuple[Tensor, Tensor]:
    """Pictures, and the same with up to a twentieth of noise."""
    clean = pictures(120, 32, seed=1)
    share = 0.05 * torch.rand(120, 1, 1, 1, generator=torch.Generator().manual_seed(3))
    return clean, (clean + share * drawn(120, 1, 32, 32)).clamp(0, 1)


@planted(
    "cancellation", "similarity", "sub rsub convolution mul", fails=("bf16-true", "bf16-mixed"),
    also=("precision-loss", "absorption"), task="regression",
)  # fmt: skip
def similarity_of_structures() -> Built:
    """monai, piq: variances are differences of filtered squares, and one less a value near one."""
    return taught(Restored, pairs_of_pictures(), noise=0.02)


class Edges(nn.Module):
    """Strong edges, and weak ones that touch a strong one, found by masks and their products."""

    def forward(self, slopes: Tensor) -> Tensor:
        size = slopes.square().sum(1, keepdim=True).sqrt()
        strong, weak = size > 0.07, size > 0.03
        edges = strong * 1.0 + (~strong) * weak * 0.5
        near = F.max_pool2d((edges == 1) * 1.0, 3, 1, 1) > 0
        kept = edges + (edges == 0.5) * near * 0.5
        return F.avg_pool2d(((kept == 1) * size), 8).flatten(1)


class Outlined(nn.Module):
    """Where a picture has edges, in sixteen cells."""

    def __init__(self) -> None:
        super().__init__()
        self.slopes, self.edges, self.head = Slopes(), Edges(), perceptron(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(10 * self.edges(self.slopes(x)).to(x.dtype))


@healthy(task="regression")
def edges_by_hysteresis() -> Built:
    """kornia's edges: masks are multiplied with masks."""
    return taught(Outlined, (pictures(160, 32),))


class Shared(nn.Module):
    """A norm over all of a sequence in float32, then a slope that is shared by all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.slope = nn.Parameter(torch.ones(16)), nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = (wide - wide.mean((1, 2), keepdim=True)) / (wide.std((1, 2), keepdim=True) + 1e-8)
        return self.slope(wide * self.gain.float())


class Separated(nn.Module):
    """A sequence's masks, as a speech separator makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.shared, self.head = perceptron(8, 16), Shared(), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        shared = self.shared(self.enter(x))
        return self.head(shared.to(self.head.weight.dtype)).mean(1)


@planted(
    "unsupported-op", "shared.slope", "prelu _prelu_kernel", fails=TRUE, task="regression",
)  # fmt: skip
def slope_after_a_norm_in_float32() -> Built:
    """asteroid: the norm hands float32 on, and a PReLU takes tensors of one dtype."""
    return taught(Separated, (drawn(200, 20, 8),))


class Activation(nn.Module):
    """Scale and shift, taken from the first batch that comes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = (nn.Parameter(torch.zeros(6)) for _ in range(2))
        self.register_buffer("done", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        if not self.done > 0:
            self.scale.data = -torch.log(x.std(0) + 1e-6).data
            self.shift.data = (-x.mean(0) * torch.exp(self.scale)).data
            self.done = torch.tensor(1.0)
        return x * torch.exp(self.scale) + self.shift


class FirstBatch(nn.Module):
    """A flow's step before it has seen anything."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.head = nn.Linear(6, 6), Activation(), perceptron(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.enter(x)))


@healthy(task="regression")
def scale_of_the_first_batch() -> Built:
    """normflows: a norm that assigns to its parameters' data at the first batch."""
    return taught(FirstBatch, (2 * drawn(120, 6) + 1,))


class Prototypes(nn.Module):
    """Cosines with classes that are brought to unit length in place."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.classes = perceptron(6, 16), nn.Parameter(drawn(5, 16))

    def forward(self, x: Tensor) -> Tensor:
        self.classes.data = F.normalize(self.classes.data)
        return 8 * F.normalize(self.body(x)) @ self.classes.T


@healthy(task="regression")
def prototypes_at_unit_length() -> Built:
    """Heads for faces: the weights of classes are normalised by assigning to their data."""
    return taught(Prototypes, (drawn(200, 6),))
