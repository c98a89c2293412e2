"""Held-out models of correlations, polygons and tiles, in the units their readings have."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import Built, built, fitted, healthy, planted


class Connectivity(nn.Module):
    """Correlations of the regions of each scan, as a vector."""

    def forward(self, x: Tensor) -> Tensor:
        r = torch.stack([torch.corrcoef(scan) for scan in self.prepared(x)])
        row, column = torch.triu_indices(x.shape[1], x.shape[1], 1)
        return torch.atanh(r[:, row, column] * 0.999)

    def prepared(self, x: Tensor) -> Tensor:
        return x


class CentredConnectivity(Connectivity):
    """Scans less their mean and by their spread, in float32, before anything else."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x).to(x.dtype)

    def prepared(self, x: Tensor) -> Tensor:
        return x.float()


class Brain(nn.Module):
    """A gate over connections, and two layers."""

    def __init__(self, connectivity: type[Connectivity], regions: int = 12) -> None:
        super().__init__()
        count = regions * (regions - 1) // 2
        self.connectivity = connectivity()
        self.gate = nn.Sequential(
            nn.Linear(count, 16), nn.Tanh(), nn.Linear(16, count), nn.Sigmoid()
        )
        self.norm, self.body = nn.LayerNorm(count), nn.Linear(count, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        r = self.connectivity(x)
        return self.head(F.elu(self.body(self.norm(r * self.gate(r)))))


def scans(count: int, seed: int, level: float, spread: float) -> tuple[Tensor, Tensor]:
    """Twelve regions of 150 volumes, four networks of different wiring."""
    random = torch.Generator().manual_seed(seed)
    wiring = torch.randn(4, 12, 5, generator=torch.Generator().manual_seed(5))
    y = torch.randint(0, 4, (count,), generator=random)
    own = torch.randn(count, 12, 150, generator=random)
    x = wiring[y] @ torch.randn(count, 5, 150, generator=random) + 2 * own
    return level + spread * x / 3, y


def connected(connectivity: type[Connectivity], level: float, spread: float) -> Built:
    """A scanner's units."""
    train, test = scans(500, 0, level, spread), scans(300, 1, level, spread)
    return built(fitted(lambda: Brain(connectivity), train, epochs=20), test, size=100)


@planted("overflow", "connectivity", "sum mm", fails=("16-true", "16-mixed"), family="signals")
def correlations_of_a_scanner() -> Built:
    """torchmetrics#1725, pytorch#114044: products are summed before they are divided by a count."""
    return connected(Connectivity, 600.0, 40.0)


@planted(
    "cancellation", "connectivity", "sub", fails=("bf16-true",),
    also=("precision-loss", "absorption"), family="signals",
)  # fmt: skip
def correlations_about_a_level() -> Built:
    """torchmetrics#1725: values that are all close are the same in 16 bits."""
    return connected(CentredConnectivity, 4000.0, 1.0)


@healthy()
def correlations_of_standard_scores() -> Built:
    """torchmetrics#1813: float32 for the correlation, of scans that somebody standardized."""
    return connected(CentredConnectivity, 0.0, 1.0)


class Quads(nn.Module):
    """Area, sides and fill of quadrangles, from corners in pixels of the page."""

    def forward(self, corners: Tensor) -> Tensor:
        after = corners.roll(-1, 2)
        x, y = corners.unbind(-1)
        u, v = after.unbind(-1)
        area = (x * v - u * y).sum(-1).abs() / 2
        sides = torch.hypot(u - x, v - y)
        around = sides.sum(-1)
        box = (x.amax(-1) - x.amin(-1)) * (y.amax(-1) - y.amin(-1))
        parts = [area / (around * around) * 16, area / (box + 1e-3), sides[..., 0] / around]
        return torch.stack([*parts, sides[..., 1] / around], -1)


class OwnQuads(Quads):
    """Corners from the first one on, in parts of the longest side."""

    def forward(self, corners: Tensor) -> Tensor:
        corners = corners.float()
        corners = corners - corners[:, :, :1]
        return super().forward(corners / corners.abs().amax((2, 3), keepdim=True))


class Layout(nn.Module):
    """What a page is, by the quadrangles on it."""

    def __init__(self, quads: type[Quads]) -> None:
        super().__init__()
        self.quads = quads()
        self.each = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(32, 3)

    def forward(self, corners: Tensor) -> Tensor:
        said = self.quads(corners).to(self.head.weight.dtype)
        return self.head(self.each(said * 4 - 2).mean(1))


def pages(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Eight turned rectangles on a page of 1900 pixels: lines, blocks or stamps, mostly."""
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (count,), generator=random)
    centre = 150 + 1600 * torch.rand(count, 8, 1, 2, generator=random)
    ratio = torch.tensor([0.35, 0.55, 0.85])[y][:, None] * torch.exp(
        0.25 * torch.randn(count, 8, generator=random)
    )
    width = 60 + 60 * torch.rand(count, 8, generator=random)
    half = torch.stack([width, width * ratio], -1)[:, :, None] / 2
    corner = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]) * half
    angle = 0.6 * torch.rand(count, 8, 1, generator=random) - 0.3
    a, b = corner.unbind(-1)
    turned = torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)
    return centre + turned, y


def laid_out(quads: type[Quads]) -> Built:
    """Pages by their quadrangles."""
    model = fitted(lambda: Layout(quads), pages(1200, 0), epochs=20)
    return built(model, pages(500, 1), size=125)


@planted(
    "overflow", "quads", "mul sub sum", fails=("16-true", "bf16-true"),
    also=("cancellation", "precision-loss"), family="geometry",
)  # fmt: skip
def areas_on_a_page() -> Built:
    """mmcv#1663: rotated boxes in float16; products of two pixels' places, which then cancel."""
    return laid_out(Quads)


@healthy()
def areas_from_a_corner() -> Built:
    """mmcv#1663, repaired: sides from one corner; corners to 8 pixels cost little."""
    return laid_out(OwnQuads)
