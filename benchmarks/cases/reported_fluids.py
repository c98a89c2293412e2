"""Held-out fluids and places: harmonics of the globe, shocks, lattices; readings in the dark.

Each is written in the shape its project has; outputs of a random model are mostly the labels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from benchmarks.cases.base import Built, built, fitted, healthy, planted
from benchmarks.cases.reported_quantities import taught
from benchmarks.cases.reported_tongues import drawn
from benchmarks.data import digits


def legendre(l: int, m: int, x: Tensor) -> Tensor:  # noqa: E741
    """Associated Legendre polynomials, as SatCLIP's closed form has them."""
    pmm = torch.ones_like(x)
    if m > 0:
        somx2 = torch.sqrt((1 - x) * (1 + x))
        fact = 1.0
        for _ in range(1, m + 1):
            pmm = pmm * (-fact) * somx2
            fact += 2.0
    if l == m:
        return pmm
    pmmp1 = x * (2.0 * m + 1.0) * pmm
    for ll in range(m + 2, l + 1):
        pmm, pmmp1 = pmmp1, ((2.0 * ll - 1.0) * x * pmmp1 - (ll + m - 1.0) * pmm) / (ll - m)
    return pmmp1


def harmonic(l: int, m: int, phi: Tensor, theta: Tensor) -> Tensor:  # noqa: E741
    """One real spherical harmonic."""
    k = (2.0 * l + 1.0) * math.factorial(l - abs(m)) / (4 * math.pi * math.factorial(l + abs(m)))
    k = math.sqrt(k)
    p = legendre(l, abs(m), torch.cos(theta))
    if m == 0:
        return k * p
    turn = torch.cos(m * phi) if m > 0 else torch.sin(-m * phi)
    return math.sqrt(2.0) * k * turn * p


class SphericalHarmonics(nn.Module):
    """All harmonics of a place below a degree."""

    def __init__(self, polynomials: int) -> None:
        super().__init__()
        self.polynomials = polynomials

    def forward(self, lonlat: Tensor) -> Tensor:
        phi = torch.deg2rad(lonlat[:, 0] + 180)
        theta = torch.deg2rad(lonlat[:, 1] + 90)
        degrees = range(self.polynomials)
        return torch.stack(
            [harmonic(l, m, phi, theta) for l in degrees for m in range(-l, l + 1)],  # noqa: E741
            -1,
        )


class Siren(nn.Module):
    """Sines of a layer."""

    def __init__(self, into: int, out: int, w0: float) -> None:
        super().__init__()
        self.w0, self.layer = w0, nn.Linear(into, out)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.w0 * self.layer(x))


class Location(nn.Sequential):
    """A place to a vector, of which its climate is told."""

    def __init__(self, polynomials: int) -> None:
        super().__init__(
            SphericalHarmonics(polynomials), Siren(polynomials**2, 48, 2.0), Siren(48, 48, 1.0),
            nn.Linear(48, 3),
        )  # fmt: skip


def globe() -> Tensor:
    """Places everywhere, in degrees that both formats hold."""
    random = torch.Generator().manual_seed(9)
    lon = torch.randint(-45, 46, (400, 1), generator=random) * 4
    return torch.cat([lon, torch.randint(-21, 22, (400, 1), generator=random) * 4], 1).float()


@planted(
    "overflow", "0", "mul", fails=("16-true",), moot=("bf16-true",), family="places",
    task="regression",
)  # fmt: skip
def harmonics_of_degree_nine() -> Built:
    """microsoft/satclip: 17!! is 34 million, before the factorials below take it back."""
    return taught(lambda: Location(10), (globe(),))


@healthy(task="regression", precisions=("16-true", "16-mixed", "bf16-mixed"))
def harmonics_of_degree_five() -> Built:
    """microsoft/satclip: 945 is a number of float16, and one over the square root of 10! too."""
    return taught(lambda: Location(6), (globe(),))


class Weno(nn.Module):
    """Three stencils, weighed by how smooth each is; steps of Burgers' equation."""

    def __init__(self, eps: float, steps: int) -> None:
        super().__init__()
        self.eps, self.steps = eps, steps

    def face(self, u: Tensor) -> Tensor:
        a, b, c, d, e = (torch.roll(u, k, -1) for k in (2, 1, 0, -1, -2))
        beta = (
            13 / 12 * (a - 2 * b + c) ** 2 + 0.25 * (a - 4 * b + 3 * c) ** 2,
            13 / 12 * (b - 2 * c + d) ** 2 + 0.25 * (b - d) ** 2,
            13 / 12 * (c - 2 * d + e) ** 2 + 0.25 * (3 * c - 4 * d + e) ** 2,
        )
        alpha = [w / (self.eps + s) ** 2 for w, s in zip((0.1, 0.6, 0.3), beta, strict=True)]
        total = alpha[0] + alpha[1] + alpha[2]
        stencils = (2 * a - 7 * b + 11 * c, -b + 5 * c + 2 * d, 2 * c + 5 * d - e)
        return sum(w / total * s / 6 for w, s in zip(alpha, stencils, strict=True))

    def forward(self, u: Tensor) -> Tensor:
        for _ in range(self.steps):
            flux = 0.5 * self.face(u) ** 2
            u = u - 0.2 * (flux - torch.roll(flux, 1, -1))
        return u


class Solver(nn.Module):
    """A wave that steepens, and what a convolution corrects of it."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.weno, self.correct = Weno(eps, 8), nn.Conv1d(1, 1, 5, padding=2)

    def forward(self, u: Tensor) -> Tensor:
        u = self.weno(u)
        return u + 0.1 * self.correct(u.unsqueeze(1)).squeeze(1)


def waves() -> Tensor:
    """Waves above zero, of one or two periods."""
    x = torch.arange(48) / 48 * 2 * math.pi
    a, b = 0.3 * drawn(300, 1, seed=12), 0.2 * drawn(300, 1, seed=13)
    return 1.5 + a * torch.sin(x + b) + b * torch.sin(2 * x + a)


@planted(
    "underflow", "weno", "pow div", fails=("16-true",), moot=("bf16-true",),
    also=("eps-underflow", "overflow"), family="solver", task="regression",
)  # fmt: skip
def stencils_by_their_smoothness() -> Built:
    """WENO-JS as it is printed: (1e-6 + beta)^2 is nothing in float16, and one over it infinite."""
    return taught(lambda: Solver(1e-6), (waves(),))


@healthy(task="regression", precisions=("16-true", "16-mixed", "bf16-mixed"))
def stencils_by_their_smoothness_and_more() -> Built:
    """WENO with 1e-2, as shallow-water codes have it: 6000 is a number, and the weights even."""
    return taught(lambda: Solver(1e-2), (waves(),))


class Lattice(nn.Module):
    """D2Q9: nine populations, an equilibrium, a relaxation, a stream."""

    shifted = False

    def __init__(self, steps: int = 24, tau: float = 0.8) -> None:
        super().__init__()
        c = [(0, 0), (1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (-1, 1), (-1, -1), (1, -1)]
        self.directions, self.steps, self.tau = c, steps, tau
        self.register_buffer("c", torch.tensor(c).float())
        self.register_buffer("w", torch.tensor([4 / 9] + [1 / 9] * 4 + [1 / 36] * 4))

    def equilibrium(self, rho: Tensor, u: Tensor) -> Tensor:
        cu = torch.einsum("qd,ndxy->nqxy", self.c, u)
        uu = (u**2).sum(1, keepdim=True)
        w, more = self.w.view(1, -1, 1, 1), 3 * cu + 4.5 * cu**2 - 1.5 * uu
        if self.shifted:
            return w * (rho + (1 + rho) * more)
        return w * rho * (1 + more)

    def forward(self, u: Tensor) -> Tensor:
        rho = torch.zeros_like(u[:, :1]) if self.shifted else torch.ones_like(u[:, :1])
        f = self.equilibrium(rho, u)
        for _ in range(self.steps):
            rho = f.sum(1, keepdim=True)
            u = torch.einsum("qd,nqxy->ndxy", self.c, f) / (1 + rho if self.shifted else rho)
            f = f - (f - self.equilibrium(rho, u)) / self.tau
            moved = [torch.roll(f[:, q], c, (1, 2)) for q, c in enumerate(self.directions)]
            f = torch.stack(moved, 1)
        return u


class ShiftedLattice(Lattice):
    """Populations less what they are at rest."""

    shifted = True


class Flow(nn.Module):
    """Where a flow goes, in units of its own speed, smoothed a little."""

    lattice: type[Lattice] = Lattice

    def __init__(self) -> None:
        super().__init__()
        self.fluid, self.out = (
            self.lattice(),
            nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
        )

    def forward(self, u: Tensor) -> Tensor:
        return self.out(self.fluid(u) * 100).flatten(1)


class ShiftedFlow(Flow):
    """The same of what is shifted."""

    lattice = ShiftedLattice


def whirls() -> Tensor:
    """Sums of few waves without divergence, of a speed of 0.005."""
    x = torch.arange(12) / 12 * 2 * math.pi
    y, x = torch.meshgrid(x, x, indexing="ij")
    a, b = drawn(100, 1, 1, seed=14), drawn(100, 1, 1, seed=15)
    return 0.005 * torch.stack([a * torch.sin(x + b), b * torch.cos(y - a)], 1)


@planted(
    "absorption", "fluid", "add mul sub sum mm bmm", fails=("16-true", "bf16-true", "bf16-mixed"),
    family="solver", moot=("16-mixed",),
    also=("cancellation", "precision-loss"), task="regression",
)  # fmt: skip
def populations_of_a_slow_flow() -> Built:
    """lettuce and its kin: one and 0.015 of it; the flow is the difference of nine sums."""
    return taught(Flow, (whirls(),))


@healthy(task="regression", precisions=("16-true", "16-mixed", "bf16-mixed"))
def populations_less_those_at_rest() -> Built:
    """FluidX3D: populations less their weights keep their digits in 16 bits."""
    return taught(ShiftedFlow, (whirls(),))


class Dark(nn.Module):
    """See-in-the-dark's: a sensor's numbers less its black level, times how dark it was."""

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, 1, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 16, 3, 2, 1),
            nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(256, 10),
        )  # fmt: skip

    def forward(self, raw: Tensor) -> Tensor:
        x = torch.clamp(raw - 512, min=0) / (16383 - 512)
        return self.net(torch.clamp(x * self.ratio, max=1.0))


def exposed(light: float) -> Built:
    """Digits as counts of a sensor whose black is 512."""
    (x, y), (u, v) = digits()
    seen, other = (
        (512 + (light * t + 0.4 * drawn(*t.shape, seed=16)).round()).clamp(0, 16383)
        for t in (x[:1200], u[:400])
    )
    model = fitted(lambda: Dark(16383 / light / 1.5), (seen, y[:1200]), epochs=15)
    return built(model, (other, v[:400]))


@planted(
    "cancellation", "", "_to_copy sub", fails=("bf16-true",), family="input",
    also=("precision-loss", "absorption"),
)  # fmt: skip
def pictures_taken_in_the_dark() -> Built:
    """cchen156/Learning-to-See-in-the-Dark: bfloat16 knows 512 to 4, and a star is 3 brighter."""
    return exposed(3.0)


@healthy()
def pictures_taken_at_dusk() -> Built:
    """cchen156/Learning-to-See-in-the-Dark: the same sensor, where ink is 400 brighter."""
    return exposed(400.0)
