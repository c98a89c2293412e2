"""Held-out structures: molecules by their distances, directions, rotations; filters of a graph.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import FP16, TRUE, Built, built, healthy, planted
from benchmarks.cases.reported_quantities import perceptron, taught
from benchmarks.cases.reported_tongues import decided, drawn


def settled(make: Callable[[], nn.Module], inputs: tuple[Tensor, ...], size: int = 128) -> Built:
    """As `decided`, with the last layer's bias such that no class is preferred."""

    def even() -> nn.Module:
        model = make().eval()
        with torch.no_grad():
            mean = model(*inputs).mean(0)
            linear = (m for m in model.modules() if isinstance(m, nn.Linear))
            [m for m in linear if m.out_features == len(mean)][-1].bias -= mean
        return model

    return decided(even, inputs, size)


class Envelope(nn.Module):
    """DimeNet's: one near nothing, and with two derivatives nothing at the cutoff."""

    def __init__(self, exponent: int = 5) -> None:
        super().__init__()
        self.p = exponent + 1
        self.a = -(self.p + 1) * (self.p + 2) / 2
        self.b = self.p * (self.p + 2)
        self.c = -self.p * (self.p + 1) / 2

    def forward(self, x: Tensor) -> Tensor:
        x_pow_p0 = x.pow(self.p - 1)
        x_pow_p1 = x_pow_p0 * x
        x_pow_p2 = x_pow_p1 * x
        return 1.0 / x + self.a * x_pow_p0 + self.b * x_pow_p1 + self.c * x_pow_p2


class BesselBasis(nn.Module):
    """Waves of a distance, made to end at the cutoff."""

    def __init__(self, radial: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff, self.envelope = cutoff, Envelope()
        self.freq = nn.Parameter(torch.arange(1, radial + 1).float() * math.pi)

    def forward(self, dist: Tensor) -> Tensor:
        dist = dist.unsqueeze(-1) / self.cutoff
        return self.envelope(dist) * (self.freq * dist).sin()


class Contacts(nn.Module):
    """A sum over the contacts of a ligand, each by its distance."""

    def __init__(self, basis: nn.Module, radial: int) -> None:
        super().__init__()
        self.basis, self.net = basis, perceptron(radial, 1)

    def forward(self, dist: Tensor) -> Tensor:
        return self.net(self.basis(dist)).sum((1, 2))


def dimenet() -> nn.Module:
    """Distances in a basis that ends at 5 angstrom."""
    model = Contacts(BesselBasis(6, 5.0), 6)
    with torch.no_grad():
        model.net[0].weight *= 8
    return model


@planted("cancellation", "basis.envelope", "add mul", fails=TRUE, moot=("bf16-mixed",),
         family="molecules", task="regression", also=("absorption", "precision-loss"))  # fmt: skip
def envelopes_near_their_cutoff() -> Built:
    """pytorch_geometric's DimeNet: 1 - 28 x^5 + 48 x^6 - 21 x^7 of 0.9 is a hundredth."""
    return taught(dimenet, (4.3 + 0.15 * drawn(400, 8, seed=1).clamp(-2, 2),), 0.02)


class GaussianSmearing(nn.Module):
    """SchNet's: how near a distance is to each of 300 centres, ten to an angstrom."""

    def __init__(self, stop: float = 30.0, centres: int = 300) -> None:
        super().__init__()
        offset = torch.linspace(0.0, stop, centres)
        self.coeff = -0.5 / (offset[1] - offset[0]).item() ** 2
        self.register_buffer("offset", offset)

    def forward(self, dist: Tensor) -> Tensor:
        dist = dist.unsqueeze(-1) - self.offset
        return torch.exp(self.coeff * torch.pow(dist, 2))


@planted("precision-loss", "basis", "_to_copy sub pow mul exp", fails=("bf16-true",),
         moot=("16-true", "bf16-mixed"), family="molecules", task="regression",
         also=("cancellation", "absorption"))  # fmt: skip
def distances_in_narrow_gaussians() -> Built:
    """SchNet: 20.3 angstrom is 20.25 in bfloat16, and a Gaussian is a tenth wide."""
    return taught(partial(Contacts, GaussianSmearing(), 300), (18 + 3 * drawn(400, 6, seed=2),))


class SphericalHarmonics(nn.Module):
    """Real harmonics to the third degree, by polynomials of x, y and z."""

    def __init__(self, normalize: bool) -> None:
        super().__init__()
        self.normalize = normalize

    def forward(self, vec: Tensor) -> Tensor:
        if self.normalize:
            vec = F.normalize(vec, dim=-1)
        x, y, z = vec.unbind(-1)
        xx, yy, zz = x * x, y * y, z * z
        s3, s5, s15 = math.sqrt(3), math.sqrt(5), math.sqrt(15)
        sh = [x, y, z]
        sh += [s3 * x * z, s3 * x * y, yy - 0.5 * (xx + zz), s3 * y * z, s3 / 2 * (zz - xx)]
        sh += [
            s5 / math.sqrt(8) * x * (3 * zz - xx),
            s15 * x * y * z,
            s3 / math.sqrt(8) * x * (4 * yy - xx - zz),
            0.5 * y * (2 * yy - 3 * xx - 3 * zz),
            s3 / math.sqrt(8) * z * (4 * yy - xx - zz),
            s15 / 2 * y * (zz - xx),
            s5 / math.sqrt(8) * z * (zz - 3 * xx),
        ]
        return torch.stack(sh, dim=-1)


class Orientation(nn.Module):
    """Neighbours of an atom as seen by harmonics of their places, and what they make of them."""

    def __init__(self, normalize: bool) -> None:
        super().__init__()
        self.harmonics = SphericalHarmonics(normalize)
        degree = torch.tensor([1.0] * 3 + [2.0] * 5 + [3.0] * 7)
        self.register_buffer("unit", 45.0 ** -(degree if not normalize else 0 * degree))
        self.net = perceptron(15, 4)

    def forward(self, vec: Tensor) -> Tensor:
        return self.net((self.harmonics(vec) * self.unit).sum(1))


def neighbours(seed: int) -> tuple[Tensor]:
    """Places of eight neighbours, up to 60 angstrom away."""
    return (25 * drawn(500, 8, 3, seed=seed).clamp(-2, 2),)


@planted("overflow", "harmonics", "mul sub", fails=("16-true",), family="molecules")
def harmonics_of_whole_vectors() -> Built:
    """e3nn's normalize=False: third powers of 45 angstrom are beyond float16."""
    return settled(partial(Orientation, False), neighbours(3))


@healthy()
def harmonics_of_directions() -> Built:
    """e3nn's normalize=True: the same polynomials of unit vectors."""
    return settled(partial(Orientation, True), neighbours(3))


class Superposed(NamedTuple):
    """How far apart two structures stay, and the rotation that brings them together."""

    rmsd: Tensor
    rotation: Tensor


def kabsch(p: Tensor, q: Tensor) -> Tensor:
    """The rotation that takes p to q with the least squares."""
    u, _, vh = torch.linalg.svd(p.transpose(-1, -2) @ q)
    d = torch.sign(torch.det(u @ vh))
    flip = torch.ones_like(p[:, :3, 0])
    flip = torch.cat([flip[:, :2], d[:, None]], dim=1)
    return (u * flip[:, None]) @ vh


class Superposition(nn.Module):
    """Atoms of two conformers, weighed by a net, and superposed."""

    def __init__(self, wide: bool) -> None:
        super().__init__()
        self.move, self.wide = perceptron(3, 3), wide

    def forward(self, a: Tensor, b: Tensor) -> Superposed:
        p, q = a + 0.3 * self.move(a), b + 0.3 * self.move(b)
        p, q = p - p.mean(1, keepdim=True), q - q.mean(1, keepdim=True)
        if self.wide:
            with torch.autocast(p.device.type, enabled=False):
                rotation = kabsch(p.float(), q.float())
        else:
            rotation = kabsch(p, q)
        apart = (p.float() @ rotation.float() - q.float()) if self.wide else p @ rotation - q
        return Superposed(apart.square().sum(-1).mean(1).sqrt(), rotation)


def conformers() -> tuple[Tensor, Tensor]:
    """Twelve atoms, and the same bent and turned."""
    a = 2 * drawn(400, 12, 3, seed=5)
    turn = torch.linalg.qr(drawn(400, 3, 3, seed=6)).Q
    turn = turn * torch.linalg.det(turn)[:, None, None].sign()
    return a, (a + drawn(400, 1, 1, seed=8).exp() * drawn(400, 12, 3, seed=7)) @ turn


def bent(wide: bool) -> Built:
    """Conformers, and how far apart they stay."""
    a, b = conformers()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = Superposition(wide).eval()
        said = model(a, b).rmsd
    return built(model, (a, b, said + 0.05 * said.std() * drawn(400, seed=13)))


@planted("unsupported-op", "", "linalg_svd _linalg_svd", task="regression", family="molecules",
         fails=(*TRUE, "16-mixed", "bf16-mixed"))  # fmt: skip
def conformers_by_singular_vectors() -> Built:
    """pytorch#98308: cuSOLVER has no singular values of 16 bits, which autocast's product is in."""
    return bent(False)


@healthy(task="regression")
def conformers_by_singular_vectors_in_float32() -> Built:
    """The same with autocast off and float32 for the covariance and its rotation."""
    return bent(True)


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Between two latents, along the sphere."""
    low, high = a / a.norm(dim=-1, keepdim=True), b / b.norm(dim=-1, keepdim=True)
    omega = torch.acos((low * high).sum(-1, keepdim=True).clamp(-1, 1))
    so = torch.sin(omega)
    return (torch.sin((1.0 - t) * omega) / so) * a + (torch.sin(t * omega) / so) * b


class Between(nn.Module):
    """A frame between two that hardly differ."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = perceptron(12, 32), perceptron(32, 5)

    def forward(self, first: Tensor, second: Tensor, t: Tensor) -> Tensor:
        return self.decode(8 * slerp(self.encode(first), self.encode(second), t))


@planted("precision-loss", "", "acos sum mul clamp div sin linalg_vector_norm", fails=TRUE,
         fails_cpu=("16-mixed", "bf16-mixed"), family="geometry",
         also=("absorption", "cancellation"))  # fmt: skip
def frames_between_close_latents() -> Built:
    """filament#821, bullet3#446 are of its kin: a cosine near one is one, and 0 / 0 follows."""
    first = drawn(500, 12, seed=9)
    second = first + 0.03 * drawn(500, 12, seed=10)
    return settled(Between, (first, second, torch.linspace(0.05, 0.95, 500)[:, None]))


class ChebConv(nn.Module):
    """Chebyshev polynomials of a Laplacian: small, if its spectrum is between -1 and 1."""

    def __init__(self, into: int, out: int, order: int) -> None:
        super().__init__()
        self.lins = nn.ModuleList(nn.Linear(into, out, bias=False) for _ in range(order))

    def forward(self, x: Tensor, laplacian: Tensor) -> Tensor:
        before, now = x, laplacian @ x
        out = self.lins[0](before) + self.lins[1](now)
        for lin in self.lins[2:]:
            before, now = now, 2.0 * (laplacian @ now) - before
            out = out + lin(now)
        return out


class Mesh(nn.Module):
    """A mesh of twenty nodes: what kind it is, by one filter and a pool."""

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.conv, self.head, self.scaled = ChebConv(4, 16, 5), nn.Linear(16, 4), scaled

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        degree = adjacency.sum(-1)
        laplacian = torch.diag_embed(degree) - adjacency
        if self.scaled:
            bound = 2 * degree.amax(-1)[:, None, None]
            laplacian = laplacian * (2 / bound) - torch.eye(
                x.shape[1], dtype=x.dtype, device=x.device
            )
        x = self.conv(x, laplacian)
        return self.head(F.normalize(x, dim=-1).amax(1))


def meshes() -> tuple[Tensor, Tensor]:
    """Random graphs with values on their nodes."""
    random = torch.Generator().manual_seed(11)
    edges = (torch.rand(400, 20, 20, generator=random) < 0.6).float().triu(1)
    return drawn(400, 20, 4, seed=12), edges + edges.transpose(1, 2)


@planted("overflow", "conv", "mul matmul bmm sub", fails=FP16, family="graphs")
def filters_of_a_whole_laplacian() -> Built:
    """pytorch_geometric's ChebConv without lambda_max: 2 times 20, to the fourth power."""
    return settled(partial(Mesh, False), meshes())


@healthy()
def filters_of_a_scaled_laplacian() -> Built:
    """The same with the spectrum brought to [-1, 1]."""
    return settled(partial(Mesh, True), meshes())
