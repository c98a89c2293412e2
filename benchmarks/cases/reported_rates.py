"""Held-out rates: jets of particles, rates of reactions, words met by pictures, residues in touch.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.cases.base import Built, healthy, planted
from benchmarks.cases.reported_quantities import perceptron, taught
from benchmarks.cases.reported_tongues import decided, drawn


class Pairs(nn.Module):
    """Logarithms of what two particles have in common: momentum, share, angle, mass."""

    def forward(self, v: Tensor) -> Tensor:
        px, py, pz, energy = v.unbind(-1)
        pt = torch.sqrt(px.square() + py.square())
        rapidity = 0.5 * torch.log(1 + (2 * pz) / (energy - pz).clamp(min=1e-20))
        phi = torch.atan2(py, px)
        i, j = torch.triu_indices(v.shape[1], v.shape[1], 1, device=v.device)
        turned = (phi[:, i] - phi[:, j] + torch.pi) % (2 * torch.pi) - torch.pi
        delta = ((rapidity[:, i] - rapidity[:, j]).square() + turned.square()).sqrt()
        least = torch.minimum(pt[:, i], pt[:, j])
        both = v[:, i] + v[:, j]
        m2 = both[..., 3].square() - both[..., :3].square().sum(-1)
        said = (
            least * delta,
            least / (pt[:, i] + pt[:, j]).clamp(min=1e-8),
            delta,
            m2,
        )
        return torch.stack([torch.log(x.clamp(min=1e-8)) for x in said], -1)


class Jet(nn.Module):
    """Pairs of particles, a perceptron on each, their mean, what kind of jet it is."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs, self.norm = Pairs(), nn.LayerNorm(4)
        self.embed, self.head = perceptron(4, 16), nn.Linear(16, 4)
        with torch.no_grad():
            self.head.weight *= 6

    def forward(self, v: Tensor) -> Tensor:
        return self.head(self.embed(self.norm(self.pairs(v))).mean(1))


def jets(energy: float) -> tuple[Tensor]:
    """Six particles that fly apart, the hardest of about that energy."""
    p = energy * torch.exp(-drawn(300, 6, 1, seed=1).abs()) * drawn(300, 6, 3, seed=2).div(2)
    mass = 0.3 * energy * (1 + drawn(300, 6, 1, seed=3).abs())
    return (torch.cat([p, (p.square().sum(-1, keepdim=True) + mass**2).sqrt()], -1),)


@planted(
    "overflow", "pairs", "pow square sum sub", fails=("16-true",), family="physics",
    moot=("bf16-true",),
)  # fmt: skip
def jets_of_hundreds_of_gev() -> Built:
    """jet-universe/particle_transformer: squares of 400 GeV are infinite, and so are masses."""
    return decided(Jet, jets(400.0))


@healthy(precisions=("16-true", "16-mixed", "bf16-mixed"))
def jets_in_units_of_their_energy() -> Built:
    """jet-universe/particle_transformer: the same of momenta of about one; 1e-8 is never met."""
    return decided(Jet, jets(1.0))


class Arrhenius(nn.Module):
    """A rate by its barrier, in joules to a mole, and what a small net says of the catalyst."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.gas = 8.314 / unit
        self.register_buffer("barrier", torch.tensor([80000.0, 72000.0, 76000.0]) / unit)
        self.register_buffer("prefactor", torch.tensor([32.0, 29.0, 30.5]))

    def forward(self, kelvin: Tensor) -> Tensor:
        return torch.exp(self.prefactor - self.barrier / (self.gas * kelvin))


class Reactor(nn.Module):
    """Three rates, and what becomes of them."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.rate, self.catalyst = Arrhenius(unit), perceptron(4, 3)

    def forward(self, kelvin: Tensor, features: Tensor) -> Tensor:
        return torch.log1p(self.rate(kelvin)) * self.catalyst(features)


def reactors() -> tuple[Tensor, Tensor]:
    """Between 300 and 400 kelvin."""
    kelvin = 300 + 100 * torch.rand(300, 1, generator=torch.Generator().manual_seed(4))
    return kelvin, drawn(300, 4, seed=5)


@planted(
    "overflow", "rate", "div mul", fails=("16-true",), family="chemistry", task="regression",
    moot=("bf16-true",),
)  # fmt: skip
def rates_by_joules() -> Built:
    """Arrhenius in SI units, as Cantera has it: 80000 is infinite, and a rate of none no NaN."""
    return taught(lambda: Reactor(1.0), reactors(), noise=0.2)


@healthy(task="regression", precisions=("16-true", "16-mixed", "bf16-mixed"))
def rates_by_kilojoules() -> Built:
    """The same in kilojoules."""
    return taught(lambda: Reactor(1000.0), reactors(), noise=0.2)


class Met(nn.Module):
    """GLIP's: scores of words by patches, less their maximum and clamped, read in both ways."""

    def __init__(self, dim: int = 16, most: float = 50000.0) -> None:
        super().__init__()
        self.scale, self.most = dim**-0.5, most
        self.v_proj, self.l_proj, self.v_out, self.l_out = (nn.Linear(dim, dim) for _ in range(4))

    def bounded(self, scores: Tensor) -> Tensor:
        return scores.clamp(min=-self.most).clamp(max=self.most)

    def forward(self, patches: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        scores = (self.v_proj(patches) * self.scale) @ self.l_proj(words).transpose(1, 2)
        scores = self.bounded(scores - scores.max())
        back = scores.transpose(1, 2)
        back = self.bounded(back - back.amax(-1, keepdim=True))
        seen = scores.softmax(-1) @ self.v_out(words)
        return patches + seen, words + back.softmax(-1) @ self.l_out(patches)


class Grounded(nn.Module):
    """Patches and words that have met, and what is there."""

    def __init__(self) -> None:
        super().__init__()
        self.met, self.head = Met(), nn.Linear(32, 5)
        with torch.no_grad():
            self.head.weight *= 6

    def forward(self, patches: Tensor, words: Tensor) -> Tensor:
        patches, words = self.met(patches, words)
        return self.head(torch.cat([patches.mean(1), words.mean(1)], -1))


@healthy()
def words_met_by_pictures() -> Built:
    """microsoft/GLIP: clamps to 50000, which float16 has, and scores that never come near."""
    return decided(Grounded, (drawn(300, 9, 16, seed=6), drawn(300, 5, 16, seed=7)))


class Contacts(nn.Module):
    """ESM's: attention both ways, less the product of its sums, and a weight for each head."""

    def __init__(self, dim: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qk, self.regression = nn.Linear(dim, 2 * dim), nn.Linear(heads, 1)
        with torch.no_grad():
            self.qk.weight *= 3

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.qk(x).unflatten(-1, (2, self.heads, -1)).movedim(2, 0).transpose(2, 3)
        a = (q @ k.transpose(-1, -2) * self.scale).softmax(-1)
        a = a + a.transpose(-1, -2)
        rows, columns = a.sum(-1, keepdim=True), a.sum(-2, keepdim=True)
        common = rows * columns
        common.div_(a.sum((-1, -2), keepdim=True))
        return self.regression((a - common).permute(0, 2, 3, 1)).squeeze(-1)


@healthy(task="regression")
def residues_in_touch() -> Built:
    """facebookresearch/esm: sums of 24 residues by sums, divided in place; a little is left."""
    return taught(Contacts, (drawn(100, 24, 16, seed=8),), noise=0.1)
