"""Held-out bins, votes, late interactions, marks in words, hooks: means of what was chosen.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import Built, healthy, planted
from benchmarks.cases.reported_quantities import taught
from benchmarks.cases.reported_tongues import drawn


class AdaptiveBins(nn.Module):
    """AdaBins: depths of a picture in bins of its own, and each pixel a mean of their centres."""

    def __init__(self, bins: int = 64, least: float = 1e-3, most: float = 10.0) -> None:
        super().__init__()
        self.least, self.most = least, most
        self.body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.LeakyReLU())
        self.regressor, self.conv_out = nn.Linear(16, bins), nn.Conv2d(16, bins, 1)
        with torch.no_grad():
            self.conv_out.weight *= 6

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        y = F.relu(self.regressor(x.mean((2, 3)))) + 0.1
        widths = y / y.sum(dim=1, keepdim=True) * (self.most - self.least)
        widths = F.pad(widths, (1, 0), mode="constant", value=self.least)
        edges = torch.cumsum(widths, dim=1)
        centers = 0.5 * (edges[:, :-1] + edges[:, 1:])
        out = self.conv_out(x).softmax(dim=1)
        return torch.sum(out * centers.view(*centers.shape, 1, 1), dim=1).flatten(1)


@healthy(task="regression")
def depths_in_bins_of_their_own() -> Built:
    """shariqfarooq123/AdaBins: edges are a running sum of 64 widths, and hardly any is near one."""
    return taught(AdaptiveBins, (drawn(200, 1, 8, 8, seed=1) + drawn(200, 1, 1, 1, seed=2),))


class EMRouting(nn.Module):
    """Capsules whose votes are routed by expectation and maximization, three times."""

    def __init__(self, into: int, out: int, pose: int, eps: float) -> None:
        super().__init__()
        self.c, self.p, self.eps = out, pose, eps
        self.weights = nn.Parameter(torch.randn(into, out, pose, pose) / pose**0.5)
        self.beta_u, self.beta_a = nn.Parameter(torch.zeros(out, 1)), nn.Parameter(torch.zeros(out))

    def m_step(self, a_in: Tensor, r: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r = r * a_in
        r = r / (r.sum(dim=2, keepdim=True) + self.eps)
        r_sum = r.sum(dim=1, keepdim=True)
        coeff = (r / (r_sum + self.eps)).unsqueeze(-1)
        mu = torch.sum(coeff * v, dim=1, keepdim=True)
        sigma_sq = torch.sum(coeff * (v - mu) ** 2, dim=1, keepdim=True) + self.eps
        cost_h = (self.beta_u + torch.log(sigma_sq.squeeze(1).sqrt())) * r_sum.transpose(1, 2)
        return torch.sigmoid(0.1 * (self.beta_a - cost_h.sum(dim=2))), mu, sigma_sq

    def e_step(self, mu: Tensor, sigma_sq: Tensor, a_out: Tensor, v: Tensor) -> Tensor:
        ln_p = -1.0 * (v - mu) ** 2 / (2 * sigma_sq) - torch.log(sigma_sq.sqrt())
        ln_ap = (ln_p - 0.5 * math.log(2 * math.pi)).sum(dim=3) + torch.log(a_out.unsqueeze(1))
        return ln_ap.softmax(dim=2)

    def forward(self, poses: Tensor, a_in: Tensor) -> tuple[Tensor, Tensor]:
        v = torch.einsum("nbp,bcpq->nbcq", poses, self.weights)
        r = torch.ones(*v.shape[:3], dtype=v.dtype, device=v.device) / self.c
        for i in range(3):
            a_out, mu, sigma_sq = self.m_step(a_in.unsqueeze(-1), r, v)
            if i < 2:
                r = self.e_step(mu, sigma_sq, a_out, v)
        return mu.squeeze(1), a_out


class Capsules(nn.Module):
    """Poses and activations of parts, a layer of capsules, and what they say."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.routing, self.head = EMRouting(10, 5, 6, eps), nn.Linear(30, 4)

    def forward(self, poses: Tensor, a_in: Tensor) -> Tensor:
        poses, a_out = self.routing(poses, a_in)
        said = poses * a_out.unsqueeze(-1)
        return self.head(said.flatten(1).to(self.head.weight.dtype)) * 4


def parts() -> tuple[Tensor, Tensor]:
    """Parts of a picture; every twelfth picture is blank, and its parts are nothing."""
    there = (torch.arange(300) % 12 > 0).float().view(-1, 1)
    poses = drawn(300, 10, 6, seed=3) + drawn(300, 1, 6, seed=4)
    return poses * there.unsqueeze(-1), drawn(300, 10, seed=5).sigmoid() * there


def routed(eps: float) -> Built:
    """Blank pictures among the others, whose classes are what the model says."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model, (poses, a_in) = Capsules(eps).eval(), parts()
        said = model(poses, a_in)
        model.head.bias -= said.mean(0) / 4
        said = model(poses, a_in)
    two = said.topk(2).values.diff().squeeze(1).masked_fill(a_in.sum(1) == 0, -1e9)
    sure = two.argsort()[:225].sort().values
    label = said.argmax(1)
    return model, [((poses[i], a_in[i]), label[i]) for i in sure.split(75)]


@planted("eps-underflow", "routing", "add div log", fails=("16-true",), family="capsules")
def votes_of_a_blank_picture() -> Built:
    """Matrix-Capsules-EM-PyTorch: 1e-8 is zero in float16, and so is the spread of no votes."""
    return routed(1e-8)


class MaxSim(nn.Module):
    """ColBERT: a query's words, each by the nearest word of a document, summed."""

    def __init__(self, dim: int = 24) -> None:
        super().__init__()
        self.query, self.document = nn.Linear(16, dim), nn.Linear(16, dim)
        with torch.no_grad():
            self.document.weight.copy_(self.query.weight)

    def forward(self, query: Tensor, documents: Tensor, mask: Tensor) -> Tensor:
        q = F.normalize(self.query(query), p=2, dim=-1)
        d = F.normalize(self.document(documents), p=2, dim=-1)
        d = d * mask.unsqueeze(-1).to(d.dtype)
        similar = torch.einsum("nqd,nckd->ncqk", q, d)
        similar = similar.masked_fill(~mask.unsqueeze(2), -9999.0)
        return similar.max(-1).values.sum(-1) * 10


@healthy()
def documents_by_their_nearest_words() -> Built:
    """stanford-futuredata/ColBERT: -9999 is -10000 in half, and no cosine is."""
    query = drawn(300, 12, 16, seed=6)
    documents = drawn(300, 6, 20, 16, seed=7)
    for i in range(300):
        documents[i, i % 6, :10] = query[i, :10] + 0.5 * documents[i, i % 6, :10]
    mask = torch.arange(20) < (10 + torch.arange(300).view(-1, 1, 1) % 11)
    mask = mask.expand(-1, 6, -1).contiguous()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = MaxSim().eval()
        label = model(query, documents, mask).argmax(1)
    return model, [
        ((query[i], documents[i], mask[i]), label[i]) for i in torch.arange(300).split(100)
    ]


class Tournament(nn.Module):
    """SynthID: words by a tournament of thirty rounds over marks that each of them has."""

    def __init__(self, depth: int = 30) -> None:
        super().__init__()
        self.depth, self.lm_head = depth, nn.Linear(16, 60)
        with torch.no_grad():
            self.lm_head.weight *= 4

    def forward(self, x: Tensor, g_values: Tensor) -> Tensor:
        probs = torch.softmax(self.lm_head(x), dim=1)
        for i in range(self.depth):
            g = g_values[:, :, i]
            mass = (g * probs).sum(axis=1, keepdims=True)
            probs = probs * (1 + g - mass)
        log_probs = torch.log(probs)
        return torch.where(torch.isfinite(log_probs), log_probs, torch.finfo(log_probs.dtype).min)


@healthy()
def words_by_a_tournament() -> Built:
    """transformers' SynthID: chances of next to nothing are none in float16, and lose anyway."""
    marks = (drawn(300, 60, 30, seed=8) > 0).long()
    return settled_marks(drawn(300, 16, seed=9), marks)


def settled_marks(x: Tensor, marks: Tensor) -> Built:
    """What the tournament says by itself of the words it is surest of."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = Tournament().eval()
        said = model(x, marks)
    sure = said.topk(2).values.diff().squeeze(1).argsort()[:225].sort().values
    label = said.argmax(1)
    return model, [((x[i], marks[i]), label[i]) for i in sure.split(75)]


ACTIVATIONS: dict[str, Tensor] = {}


def get_activation(name: str) -> Any:
    """MiDaS': what a block gave is kept under its name."""

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        ACTIVATIONS[name] = output

    return hook


class Reassembled(nn.Module):
    """A backbone of three blocks whose outputs are taken by hooks, and fused."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(c, 12, 3, padding=1), nn.ReLU()) for c in (1, 12, 12))
        )
        for i, block in enumerate(self.backbone):
            block.register_forward_hook(get_activation(str(i)))
        self.fuse = nn.ModuleList(nn.Conv2d(12, 12, 1) for _ in range(3))
        self.head = nn.Conv2d(12, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.backbone(x)
        layers = [f(ACTIVATIONS[str(i)]) for i, f in enumerate(self.fuse)]
        x = layers[2]
        for layer in layers[1::-1]:
            x = F.interpolate(x, scale_factor=1.0) + F.relu(layer)
        return self.head(x).flatten(1)


@healthy(task="regression")
def layers_kept_by_hooks() -> Built:
    """isl-org/MiDaS: hooks write what blocks gave into a dictionary of the module's file."""
    return taught(Reassembled, (drawn(128, 1, 8, 8, seed=10) + drawn(128, 1, 1, 1, seed=11),))
