"""Held-out tables and sensors: missing readings, pieces of years, small shares, kernels, latents.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import ALL, FP16, TRUE, Built, healthy, planted
from benchmarks.cases.reported_quantities import perceptron, taught
from benchmarks.cases.reported_structures import settled
from benchmarks.cases.reported_tongues import decided, drawn


class Stations(nn.Module):
    """Readings of a network of stations, with a number that says that there is none."""

    def __init__(self, missing: float, product: bool) -> None:
        super().__init__()
        self.missing, self.product = missing, product
        self.net = perceptron(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        there = x != self.missing
        x = x * there.to(x.dtype) if self.product else torch.where(there, x, torch.zeros_like(x))
        return self.net(torch.cat([x, there.to(x.dtype)], dim=-1))


def readings(missing: float) -> tuple[Tensor]:
    """Twelve temperatures, a sixth of which are missing."""
    x = 8 * drawn(500, 12, seed=1)
    gone = torch.rand(500, 12, generator=torch.Generator().manual_seed(2)) < 1 / 6
    return (torch.where(gone, torch.full_like(x, missing), x),)


@healthy()
def gaps_of_minus_9999() -> Built:
    """pyramids#1102 and its kin: -9999 is -10000 in float16, and so is what it is compared with."""
    return settled(partial(Stations, -9999.0, False), readings(-9999.0))


@planted("overflow", "", "_to_copy mul", fails=("16-true",), family="sensors",
         also=("mask-inf",))  # fmt: skip
def gaps_of_minus_99999_by_a_product() -> Built:
    """GeoscienceAustralia/wagl#268 is of its kin: -99999 is infinite, and times nothing NaN."""
    return settled(partial(Stations, -99999.0, True), readings(-99999.0))


class PiecewiseLinearEncoding(nn.Module):
    """rtdl_num_embeddings: for every bin, how far a number has come through it."""

    def __init__(self, bins: list[Tensor]) -> None:
        super().__init__()
        widths = torch.stack([b.diff() for b in bins])
        self.register_buffer("weight", 1.0 / widths)
        self.register_buffer("bias", -torch.stack([b[:-1] for b in bins]) / widths)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.addcmul(self.bias, self.weight, x[..., None])
        first, *middle, last = x.unbind(-1)
        parts = [first.clamp_max(1.0), *(m.clamp(0.0, 1.0) for m in middle), last.clamp_min(0.0)]
        return torch.stack(parts, -1).flatten(1)


class Sold(nn.Module):
    """Houses by the years they were built, renewed and sold in, and their size."""

    def __init__(self, bins: list[Tensor]) -> None:
        super().__init__()
        self.encoding = PiecewiseLinearEncoding(bins)
        self.net = perceptron(sum(len(b) - 1 for b in bins), 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.encoding(x))


def houses(seed: int) -> Tensor:
    """Years with their months as fractions, and square feet."""
    random = torch.Generator().manual_seed(seed)
    years = 2000 + 22 * torch.rand(500, 3, generator=random)
    return torch.cat([years, 900 + 2000 * torch.rand(500, 1, generator=random)], 1)


@planted("cancellation", "encoding", "addcmul", fails=TRUE, family="tables",
         also=("precision-loss", "absorption"))  # fmt: skip
def years_in_pieces() -> Built:
    """yandex-research/rtdl-num-embeddings: a thousand and more are taken off as many and a bit."""
    x = houses(3)
    bins = [torch.quantile(column, torch.linspace(0, 1, 13)) for column in x.T]
    return settled(partial(Sold, bins), (x,))


class Ozone(nn.Module):
    """A mixing ratio by its standardized value, in kilograms to a kilogram."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.net = perceptron(8, 1)
        self.register_buffer("mean", torch.tensor(6e-7 / unit))
        self.register_buffer("stdv", torch.tensor(3e-7 / unit))

    def forward(self, x: Tensor) -> Tensor:
        return self.denormalize(self.net(x).squeeze(1))

    def denormalize(self, y: Tensor) -> Tensor:
        return y * self.stdv + self.mean


@planted("underflow", "", "_to_copy mul add", fails=FP16, task="regression",
         family="weather", also=("precision-loss",))  # fmt: skip
def ozone_by_the_kilogram() -> Built:
    """ecmwf/WeatherGenerator#2046: denormalized in half, where 6e-7 is ten steps from nothing.

    Under autocast, too: a number without dimensions leaves what it multiplies in half.
    """
    return taught(partial(Ozone, 1.0), (2 * drawn(600, 8, seed=4),), 0.02)


@healthy(task="regression")
def ozone_by_the_milligram() -> Built:
    """The same in milligrams to a kilogram."""
    return taught(partial(Ozone, 1e-6), (2 * drawn(600, 8, seed=4),), 0.02)


class Autoencoder(nn.Module):
    """How unusual a reading is: the divergence of its latent from the prior."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 48), nn.SiLU())
        self.fc_mu, self.fc_var = nn.Linear(48, 24), nn.Linear(48, 24)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        mu, log_var = 0.05 * self.fc_mu(h), 0.1 * self.fc_var(h)
        return -0.5 * torch.sum(1 + log_var - mu**2 - log_var.exp(), dim=1)


@planted("cancellation", "", "add sub rsub sum", fails=ALL, task="regression",
         family="scores", also=("absorption", "precision-loss"))  # fmt: skip
def latents_near_their_prior() -> Built:
    """AntixK/PyTorch-VAE: one and a little, less an exponential, is no more than rounding."""
    return taught(Autoencoder, (drawn(500, 16, seed=5),), 0.02)


class ChebyshevKAN(nn.Module):
    """Chebyshev polynomials of what tanh lets through, by their angles."""

    def __init__(self, into: int, out: int, degree: int = 4) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.randn(into, out, degree + 1) / (into * degree))
        self.register_buffer("arange", torch.arange(0, degree + 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x)[..., None].expand(-1, -1, self.arange.shape[0])
        x = (x.acos() * self.arange).cos()
        return torch.einsum("bid,iod->bo", x, self.coefficients)


class Layers(nn.Module):
    """Two such layers and a norm between them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = ChebyshevKAN(10, 32), nn.LayerNorm(32), ChebyshevKAN(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.norm(self.one(x)))


@healthy()
def polynomials_by_their_angles() -> Built:
    """SynodicMonth/ChebyKAN: an arccosine is steep near one, where a cosine of it is flat."""
    return decided(Layers, (1.5 * drawn(500, 10, seed=6),))


class Tokens(nn.Module):
    """A bag of items, whose vectors may not be longer than one: a table that mends itself."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(300, 24, padding_idx=0, max_norm=1.0)
        self.head = perceptron(24, 5)
        with torch.no_grad():
            self.items.weight *= 0.3

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(4 * self.items(ids).mean(1))


@healthy()
def items_of_a_largest_norm() -> Built:
    """pytorch#26792 is of its kin: max_norm writes into the table as it is read."""
    ids = torch.randint(0, 300, (500, 9), generator=torch.Generator().manual_seed(7))
    return settled(Tokens, (ids,))


class Standardized(nn.Conv2d):
    """google-research/big_transfer's convolution, its kernels standardized as they are used."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        v, m = torch.var_mean(w, dim=[1, 2, 3], keepdim=True, unbiased=False)
        w = (w - m) / torch.sqrt(v + 1e-10)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Transferred(nn.Module):
    """A small net of such convolutions."""

    def __init__(self, shrunk: float) -> None:
        super().__init__()
        self.stem, self.conv = Standardized(1, 12, 3), Standardized(12, 24, 3, stride=2)
        self.norm, self.head = nn.GroupNorm(4, 24), nn.Linear(24, 5)
        with torch.no_grad():
            self.conv.weight *= shrunk

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(F.relu(self.norm(self.conv(x))).mean((2, 3)))


@planted("underflow", "conv", "sqrt div add var_mean", fails=("16-true",), family="vision",
         also=("eps-underflow", "precision-loss"))  # fmt: skip
def kernels_decayed_to_little() -> Built:
    """google-research/big_transfer: kernels made small by weight decay have no variance in half."""
    return settled(partial(Transferred, 2e-3), (drawn(256, 1, 12, 12, seed=8),))


@healthy()
def kernels_of_the_usual_size() -> Built:
    """The same kernels as they were drawn."""
    return settled(partial(Transferred, 1.0), (drawn(256, 1, 12, 12, seed=8),))
