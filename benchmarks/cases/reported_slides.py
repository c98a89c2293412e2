"""Held-out choices: typical words, drafts, landmarks of slides, smooth shells, places of pixels.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import Built, healthy
from benchmarks.cases.reported_quantities import perceptron, taught
from benchmarks.cases.reported_structures import settled
from benchmarks.cases.reported_tongues import drawn


class Warpers(nn.Module):
    """transformers': leaves out forbidden words, untypical ones, those below a floor by entropy."""

    def __init__(self, mass: float = 0.9, epsilon: float = 3e-4) -> None:
        super().__init__()
        self.mass, self.epsilon, self.filter_value = mass, epsilon, -float("inf")

    def forward(self, scores: Tensor, forbidden: Tensor) -> Tensor:
        scores = scores.masked_fill(forbidden, self.filter_value)
        normalized = F.log_softmax(scores, dim=-1)
        p = torch.exp(normalized)
        ent = -(normalized * p).nansum(-1, keepdim=True)
        shifted = torch.abs((-normalized) - ent)
        ordered, index = torch.sort(shifted, descending=False)
        cumulative = scores.gather(-1, index).softmax(dim=-1).cumsum(dim=-1)
        last = (cumulative < self.mass).sum(dim=1).clamp(max=scores.shape[-1] - 1)
        remove = ordered > ordered.gather(1, last.view(-1, 1))
        scores = scores.masked_fill(remove.scatter(1, index, remove), self.filter_value)
        probabilities = scores.softmax(dim=-1)
        entropy = -(probabilities * probabilities.clamp(min=1e-8).log()).sum(-1)
        floor = torch.clamp(math.sqrt(self.epsilon) * torch.exp(-entropy), max=self.epsilon)
        scores = scores.masked_fill(probabilities < floor[..., None], self.filter_value)
        return scores.softmax(dim=-1)


class Typical(nn.Module):
    """A head over sixty words, the filters, and what is expected of what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.lm_head, self.warpers = nn.Linear(16, 60), Warpers()
        self.value = nn.Linear(60, 5)
        with torch.no_grad():
            self.lm_head.weight *= 4
            self.value.weight *= 8

    def forward(self, x: Tensor, forbidden: Tensor) -> Tensor:
        left = self.warpers(self.lm_head(x), forbidden)
        return self.value(left.to(self.value.weight.dtype))


@healthy()
def words_that_are_typical() -> Built:
    """transformers' TypicalLogitsWarper: minus infinity times nothing, left out by nansum."""
    return settled(Typical, (drawn(300, 16, seed=1), drawn(300, 60, seed=2) > 1.8))


class Accepted(nn.Module):
    """Medusa's: drafts are accepted where they are likely enough for how sure the model is."""

    def __init__(self, heads: int = 3, words: int = 40) -> None:
        super().__init__()
        self.lm_head = nn.Linear(16, words)
        self.medusa = nn.ModuleList(nn.Linear(16, words) for _ in range(heads))
        self.embed, self.head = nn.Embedding(words, 16), nn.Linear(32, 5)
        with torch.no_grad():
            self.lm_head.weight *= 9
            for head in self.medusa:
                head.weight.copy_(self.lm_head.weight + 0.2 * head.weight)

    def forward(self, x: Tensor) -> Tensor:
        drafts = torch.stack([head(x[:, 0]).argmax(-1) for head in self.medusa], dim=1)
        logits = self.lm_head(x[:, 1:])
        posterior = torch.softmax(logits / 0.7, dim=-1)
        likely = posterior.gather(-1, drafts.unsqueeze(-1)).squeeze(-1)
        entropy = -torch.sum(posterior * torch.log(posterior + 1e-5), dim=-1)
        threshold = torch.minimum(torch.ones_like(entropy) * 0.09, torch.exp(-entropy) * 0.3)
        accept = torch.cumprod((likely > threshold).int(), dim=1)
        kept = (self.embed(drafts) * accept.unsqueeze(-1)).sum(1)
        return self.head(torch.cat((kept, x[:, 1].to(kept.dtype)), dim=-1))


@healthy()
def drafts_that_are_accepted() -> Built:
    """FasterDecoding/Medusa: 1e-5 under a logarithm is a number of float16; drafts are clear."""
    x = drawn(300, 1, 16, seed=3) + 0.3 * drawn(300, 4, 16, seed=4)
    return settled(Accepted, (x,))


def iter_pinv(x: Tensor, iters: int = 6) -> Tensor:
    """Moore and Penrose's inverse, by six steps of Newton and Schulz."""
    abs_x = torch.abs(x)
    z = x.transpose(-1, -2) / (abs_x.sum(dim=-1).max() * abs_x.sum(dim=-2).max())
    eye = torch.eye(x.shape[-1], device=x.device).unsqueeze(0).to(x.dtype)
    for _ in range(iters):
        xz = x @ z
        z = 0.25 * z @ (13 * eye - (xz @ (15 * eye - (xz @ (7 * eye - xz)))))
    return z


class NystromAttention(nn.Module):
    """Attention by way of a few landmarks, means of neighbouring tokens."""

    def __init__(self, dim: int, landmarks: int = 6) -> None:
        super().__init__()
        self.landmarks, self.scale = landmarks, dim**-0.5
        self.to_qkv, self.to_out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        q = q * self.scale
        marks = x.shape[1] // self.landmarks
        q_l = q.unflatten(1, (-1, marks)).sum(2) / marks
        k_l = k.unflatten(1, (-1, marks)).sum(2) / marks
        pairs = ((q, k_l), (q_l, k_l), (q_l, k))
        a1, a2, a3 = ((a @ b.transpose(1, 2)).softmax(dim=-1) for a, b in pairs)
        inverse = iter_pinv(a2)
        return self.to_out((a1 @ inverse) @ (a3 @ v) + v)


class Slides(nn.Module):
    """TransMIL: patches of a slide and a token for all, that attention, its class."""

    def __init__(self, sharp: float, dim: int = 24) -> None:
        super().__init__()
        self.fc, self.cls = nn.Linear(12, dim), nn.Parameter(torch.randn(1, 1, dim))
        self.norm, self.attn = nn.LayerNorm(dim), NystromAttention(dim)
        self.head = nn.Linear(dim, 4)
        with torch.no_grad():
            self.attn.to_qkv.weight[: 2 * dim] *= sharp

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.fc(x))
        h = torch.cat((self.cls.expand(len(h), -1, -1).to(h.dtype), h), dim=1)
        return self.head((h + self.attn(self.norm(h)))[:, 0])


@healthy(precisions=("16-true", "16-mixed", "bf16-mixed"))
def slides_by_landmarks() -> Built:
    """szc19990412/TransMIL: an inverse by iterations that mend their own rounding."""
    return settled(lambda: Slides(6.0), (drawn(200, 35, 12, seed=5),))


class SmoothShells(nn.Module):
    """e3nn's soft one-hot: each distance in bells that are nothing beyond their neighbours."""

    def __init__(self, number: int = 10, end: float = 5.0) -> None:
        super().__init__()
        values = torch.linspace(0.0, end, number + 2)
        self.step = float(values[1] - values[0])
        self.register_buffer("values", values[1:-1])

    @staticmethod
    def unit_step(x: Tensor) -> Tensor:
        """exp(-1 / x), and nothing for what is not positive."""
        there = x > 0
        return torch.where(there, torch.exp(-1 / torch.where(there, x, 1.0)), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        diff = (x[..., None] - self.values) / self.step
        bells = 1.14136 * math.exp(2.0) * self.unit_step(diff + 1) * self.unit_step(1 - diff)
        return bells * len(self.values) ** 0.5


class Shells(nn.Module):
    """Neighbours of an atom, each by its distance in shells."""

    def __init__(self) -> None:
        super().__init__()
        self.basis, self.fc = SmoothShells(), perceptron(10, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, places: Tensor) -> Tensor:
        lengths = places.norm(dim=-1)
        return self.head(self.fc(self.basis(lengths).to(self.head.weight.dtype)).sum(1))


@healthy(task="regression", precisions=("16-true", "16-mixed", "bf16-mixed"))
def distances_in_smooth_shells() -> Built:
    """e3nn's smooth_finite: one over next to nothing, whose exponential is nothing."""
    return taught(Shells, (1.6 * drawn(200, 8, 3, seed=6),))


class FourierEncoded(nn.Module):
    """Perceiver: places made in the data's own type, to frequencies of half the largest."""

    def __init__(self, bands: int = 4, most: float = 10.0) -> None:
        super().__init__()
        self.bands, self.most, self.latents = bands, most, nn.Parameter(torch.randn(4, 24))
        self.kv, self.head = nn.Linear(1 + 2 * (2 * bands + 1), 48), nn.Linear(24, 5)
        with torch.no_grad():
            self.kv.weight *= 3

    def forward(self, data: Tensor) -> Tensor:
        side, dtype = data.shape[1], data.dtype
        axis = torch.linspace(-1.0, 1.0, steps=side, device=data.device, dtype=dtype)
        place = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).unsqueeze(-1)
        scales = torch.linspace(1.0, self.most / 2, self.bands, device=data.device, dtype=dtype)
        angles = place * scales * math.pi
        encoded = torch.cat((angles.sin(), angles.cos(), place), dim=-1).flatten(2)
        encoded = encoded.expand(len(data), -1, -1, -1)
        k, v = self.kv(torch.cat((data, encoded), dim=-1).flatten(1, 2)).chunk(2, dim=-1)
        weights = (self.latents.to(k.dtype) @ k.transpose(1, 2) * 24**-0.5).softmax(dim=-1)
        return self.head((weights.to(v.dtype) @ v).mean(1))


@healthy(precisions=("16-true", "16-mixed", "bf16-mixed"))
def pixels_at_places_of_their_own_type() -> Built:
    """perceiver-pytorch: linspace in bfloat16, of which neighbours near one are one."""
    spot = drawn(200, 2, seed=7).tanh()
    axis = torch.linspace(-1, 1, 24)
    apart = (axis.view(-1, 1) - spot[:, :1, None]) ** 2 + (axis - spot[:, 1:, None]) ** 2
    return settled(FourierEncoded, ((4 * torch.exp(-8 * apart)).unsqueeze(-1),))
