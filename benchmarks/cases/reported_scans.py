"""Held-out scans: coils of a scanner, silent codecs, fine matches, prototypes of parts.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import Built, healthy, planted
from benchmarks.cases.reported_quantities import taught
from benchmarks.cases.reported_tongues import decided, drawn


class Coils(nn.Module):
    """fastMRI's: what the coils saw, by the root of the sum of their squares."""

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.sqrt((x**2).sum((1, 2), keepdim=True))
        return x / (seen + 1e-12)


class Scan(nn.Module):
    """Coils brought to one size, a convolution, what is in the slice."""

    def __init__(self) -> None:
        super().__init__()
        self.coils, self.conv, self.norm = Coils(), nn.Conv2d(8, 12, 3), nn.InstanceNorm2d(12)
        self.head = nn.Linear(12, 4)
        with torch.no_grad():
            self.head.weight *= 6

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(self.coils(x).flatten(1, 2))
        return self.head(F.leaky_relu(self.norm(h), 0.2).square().mean((2, 3)).sqrt())


def slices(unit: float) -> tuple[Tensor]:
    """Real and imaginary parts of four coils, in a scanner's units."""
    return (unit * drawn(240, 4, 2, 10, 10, seed=1) * torch.exp(drawn(240, 4, 1, 1, 1, seed=2)),)


@planted("underflow", "coils", "pow sum sqrt", fails=("16-true",), family="scanner")
def coils_in_a_scanners_units() -> Built:
    """facebookresearch/fastMRI: signals of 1e-5 have no squares in float16, and no floor."""
    return decided(Scan, slices(1e-5))


@healthy()
def coils_in_units_of_their_signal() -> Built:
    """facebookresearch/fastMRI: the same scans, normalized by instance before."""
    return decided(Scan, slices(1.0))


class Codec(nn.Module):
    """Encodec's: loudness taken out, coded, and put back in."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Conv1d(1, 12, 7, 4, 3), nn.ConvTranspose1d(12, 1, 8, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        volume = x.mean(1, keepdim=True).pow(2).mean(2, keepdim=True).sqrt()
        scale = 1e-8 + volume
        return self.decoder(F.elu(self.encoder(x / scale))) * scale


def waves(silent: bool) -> tuple[Tensor]:
    """Short waves, of which every eighth may be silent."""
    x = 0.2 * drawn(160, 1, 128, seed=3)
    if silent:
        x[::8] = 0
    return (x,)


@planted(
    "eps-underflow", "", "add div", fails=("16-true",), family="audio", task="regression",
)  # fmt: skip
def codecs_of_silence() -> Built:
    """facebookresearch/encodec: 1e-8 is zero in float16, and silence by silence no number."""
    return taught(Codec, waves(True))


@healthy(task="regression")
def codecs_of_noise() -> Built:
    """facebookresearch/encodec: the same floor, beside volumes of a fifth."""
    return taught(Codec, waves(False))


class Fine(nn.Module):
    """LoFTR's fine level: a heat map of a window, its mean place and how sure that is."""

    def __init__(self, width: int = 5, heat: float = 4.0) -> None:
        super().__init__()
        self.width, self.heat, self.features = width, heat, nn.Linear(16, 16)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        middle = self.features(one)[:, (self.width**2) // 2]
        heat = torch.einsum("mc,mrc->mr", middle, self.features(other))
        heat = torch.softmax(self.heat * heat / 16**0.5, 1)
        axis = torch.linspace(-1, 1, self.width, device=one.device, dtype=one.dtype)
        grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).flatten(0, 1)
        place = heat @ grid
        var = (grid**2 * heat.unsqueeze(-1)).sum(1) - place**2
        spread = torch.sqrt(torch.clamp(var, min=1e-10)).sum(-1, keepdim=True)
        return torch.cat([place, spread], -1)


@healthy(task="regression", precisions=("16-true", "16-mixed"))
def matches_and_how_sure_they_are() -> Built:
    """zju3dv/LoFTR, kornia#4614: 1e-10 is zero in float16, whose root has a value forwards."""
    return taught(Fine, (drawn(200, 25, 16, seed=4), drawn(200, 25, 16, seed=5)))


class Parts(nn.Module):
    """ProtoPNet's: how near a patch of the picture comes to each of twelve prototypes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 32, 3), nn.Linear(12, 4, bias=False)
        self.prototypes = nn.Parameter(torch.rand(12, 32))
        with torch.no_grad():
            self.conv.weight *= 3
            self.last.weight *= 30

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sigmoid(self.conv(x))
        squares = h.square().sum(1, keepdim=True)
        products = F.conv2d(h, self.prototypes[:, :, None, None])
        own = self.prototypes.square().sum(1)[:, None, None]
        distances = F.relu(squares - 2 * products + own)
        least = -F.max_pool2d(-distances, distances.shape[2:]).flatten(1)
        return self.last(torch.log((least + 1) / (least + 1e-4)))


@healthy(precisions=("16-true", "16-mixed"))
def parts_like_prototypes() -> Built:
    """cfchen-duke/ProtoPNet: distances by squares that cancel a little, and 1e-4 of float16's."""
    return decided(Parts, (drawn(240, 1, 8, 8, seed=6),))
