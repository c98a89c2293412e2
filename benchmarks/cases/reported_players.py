"""Held-out players and prices: masked actions, empty histories, surprises, options, bodies, folds.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal
from torch.nn import functional as F

from benchmarks.cases.base import ALL, FP16, TRUE, Built, healthy, planted
from benchmarks.cases.reported_quantities import perceptron, taught
from benchmarks.cases.reported_tongues import decided, drawn


class CategoricalMasked(Categorical):
    """CleanRL's: what may not be done is as good as impossible."""

    def __init__(self, logits: Tensor, masks: Tensor) -> None:
        self.masks = masks.bool()
        logits = torch.where(self.masks, logits, torch.tensor(-1e8).to(logits.device))
        super().__init__(logits=logits)

    def entropy(self) -> Tensor:
        p_log_p = self.logits * self.probs
        p_log_p = torch.where(self.masks, p_log_p, torch.tensor(0.0).to(p_log_p.device))
        return -p_log_p.sum(-1)


class Agent(nn.Module):
    """What to do, of what may be done; a sure one less of it."""

    def __init__(self, actions: int = 8) -> None:
        super().__init__()
        self.actor = perceptron(12, actions)
        with torch.no_grad():
            self.actor[-1].weight *= 8

    def forward(self, x: Tensor, masks: Tensor) -> Tensor:
        dist = CategoricalMasked(self.actor(x), masks)
        return dist.probs * (1 + dist.entropy().unsqueeze(-1))


@healthy()
def actions_that_may_not_be_done() -> Built:
    """vwxyzjn/cleanrl: -1e8 is minus infinity in half; its NaN times no chance is left out."""
    masks = drawn(400, 8, seed=1) > 0.3
    masks[:, 0] = True
    return decided(Agent, (drawn(400, 12, seed=2), masks))


class Dice(nn.Module):
    """DIN's activation: a batch norm without scale decides how much of an input passes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn, self.alpha = nn.BatchNorm1d(width, eps=1e-8), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        p = torch.sigmoid(self.bn(x.transpose(1, 2)).transpose(1, 2))
        return self.alpha * (1 - p) * x + p * x


class Interest(nn.Module):
    """What was looked at before, weighed by what is looked at."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.unit = nn.Sequential(nn.Linear(4 * width, 16), Dice(16), nn.Linear(16, 1))

    def forward(self, query: Tensor, keys: Tensor, masks: Tensor) -> Tensor:
        queries = query.unsqueeze(1).expand_as(keys)
        scores = self.unit(torch.cat([queries, keys, queries - keys, queries * keys], -1))
        scores = scores.transpose(1, 2)
        paddings = torch.ones_like(scores) * (-(2**32) + 1)
        scores = torch.where(masks.unsqueeze(1), scores, paddings)
        return torch.matmul(F.softmax(scores, dim=-1), keys).squeeze(1)


class Clicks(nn.Module):
    """An item, a history of items, and whether it is clicked."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.items, self.attention = nn.Embedding(60, width), Interest(width)
        self.dnn = perceptron(2 * width, 2)

    def forward(self, item: Tensor, history: Tensor, lengths: Tensor) -> Tensor:
        query, keys = self.items(item), self.items(history)
        masks = torch.arange(keys.size(1), device=keys.device) < lengths.unsqueeze(1)
        return self.dnn(torch.cat([query, self.attention(query, keys, masks)], -1)) * 4


def histories(least: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sixteen items at most, and no fewer than that many."""
    random = torch.Generator().manual_seed(3)
    item = torch.randint(0, 60, (400,), generator=random)
    history = torch.randint(0, 60, (400, 16), generator=random)
    return item, history, torch.randint(least, 17, (400,), generator=random)


@planted(
    "mask-inf", "attention", "mul where softmax _softmax", fails=FP16, family="recommender",
    also=("overflow",),
)  # fmt: skip
def users_without_a_history() -> Built:
    """shenweichen/DeepCTR-Torch's DIN: -2^32 + 1 is infinite, and a row of it has no softmax."""
    return decided(Clicks, histories(0))


@healthy()
def users_with_a_history() -> Built:
    """shenweichen/DeepCTR-Torch's DIN: as infinite, beside an item at least; an eps of 1e-8."""
    return decided(Clicks, histories(1))


class Surprise(nn.Module):
    """TrueSkill's v: how much better than thought the winner of a game is."""

    def forward(self, t: Tensor) -> Tensor:
        normal = Normal(torch.zeros_like(t), torch.ones_like(t))
        return normal.log_prob(t).exp() / normal.cdf(t)


class SurpriseByLogarithms(nn.Module):
    """The same by logarithms."""

    def forward(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * t**2 - 0.5 * math.log(2 * math.pi) - torch.special.log_ndtr(t))


class Game(nn.Module):
    """Two players by what is known of them, one has won: what is known of both now."""

    def __init__(self, surprise: nn.Module) -> None:
        super().__init__()
        self.skill, self.surprise = nn.Linear(6, 1), surprise
        self.out = nn.Linear(2, 2)
        with torch.no_grad():
            self.skill.weight.fill_(0.5)

    def forward(self, winner: Tensor, loser: Tensor) -> Tensor:
        a, b = self.skill(winner), self.skill(loser)
        sigma, c = 0.6, math.sqrt(2 * 0.5**2 + 2 * 0.6**2)
        v = self.surprise((a - b) / c)
        return self.out(torch.cat([a + sigma**2 / c * v, b - sigma**2 / c * v], -1))


@planted(
    "cancellation", "surprise", "add erf mul div", fails=TRUE, family="rating",
    also=("absorption", "underflow", "precision-loss"), task="regression",
)  # fmt: skip
def games_won_by_outsiders() -> Built:
    """sublee/trueskill by torch's Normal: 1 + erf(-3) is none in half, and divides a density."""
    return taught(lambda: Game(Surprise()), (drawn(400, 6, seed=4), drawn(400, 6, seed=5)))


@planted(
    "unsupported-op", "surprise", "special_log_ndtr", fails=ALL, family="rating",
    task="regression",
)  # fmt: skip
def games_won_by_outsiders_in_logarithms() -> Built:
    """torch.special.log_ndtr, which gpytorch uses for this: float32 and float64 alone."""
    return taught(
        lambda: Game(SurpriseByLogarithms()), (drawn(400, 6, seed=4), drawn(400, 6, seed=5))
    )


class BlackScholes(nn.Module):
    """A call by its formula."""

    def forward(self, spot: Tensor, strike: Tensor, time: Tensor, sigma: Tensor) -> Tensor:
        normal = Normal(torch.zeros_like(sigma), torch.ones_like(sigma))
        spread = sigma * time.sqrt()
        d1 = (torch.log(spot / strike) + 0.5 * sigma**2 * time) / spread
        return spot * normal.cdf(d1) - strike * normal.cdf(d1 - spread)


class Option(nn.Module):
    """Volatility by a net of what is known, and what a call is worth."""

    def __init__(self) -> None:
        super().__init__()
        self.volatility, self.price = nn.Linear(4, 1), BlackScholes()

    def forward(self, contract: Tensor, features: Tensor) -> Tensor:
        sigma = 0.1 + 0.1 * torch.sigmoid(self.volatility(features))
        spot, strike, time = contract.split(1, -1)
        return self.price(spot, strike, time, sigma)


@planted(
    "cancellation", "price", "sub mul div log", fails=("bf16-true",), moot=("16-true",),
    family="finance", also=("precision-loss",), task="regression",
)  # fmt: skip
def calls_a_week_before_they_end() -> Built:
    """pfnet-research/pfhedge and its kin: 4000 times a half less as much, of which 20 is left."""
    random = torch.Generator().manual_seed(6)
    spot = 4000 * (0.9 + 0.2 * torch.rand(400, 1, generator=random))
    strike = spot * (0.99 + 0.02 * torch.rand(400, 1, generator=random))
    time = 0.01 + 0.02 * torch.rand(400, 1, generator=random)
    return taught(Option, (torch.cat([spot, strike, time], 1), drawn(400, 4, seed=7)))


def batch_rodrigues(vectors: Tensor) -> Tensor:
    """SMPL-X's: rotations from axes times angles."""
    angle = torch.norm(vectors + 1e-8, dim=1, keepdim=True)
    axis = vectors / angle
    cos, sin = torch.cos(angle).unsqueeze(1), torch.sin(angle).unsqueeze(1)
    rx, ry, rz = torch.split(axis, 1, dim=1)
    zeros = torch.zeros_like(rx)
    k = torch.cat([zeros, -rz, ry, rz, zeros, -rx, -ry, rx, zeros], dim=1).view(-1, 3, 3)
    ident = torch.eye(3, dtype=vectors.dtype, device=vectors.device).unsqueeze(0)
    return ident + sin * k + (1 - cos) * torch.bmm(k, k)


class Body(nn.Module):
    """A template, shapes and a pose; joints in a chain carry the vertices near them."""

    def __init__(self, joints: int = 6, vertices: int = 30) -> None:
        super().__init__()
        self.joints = joints
        self.register_buffer("v_template", drawn(vertices, 3, seed=8))
        self.register_buffer("shapedirs", 0.1 * drawn(vertices, 3, 5, seed=9))
        self.register_buffer("J_regressor", drawn(joints, vertices, seed=10).softmax(-1))
        self.register_buffer("weights", (2 * drawn(vertices, joints, seed=11)).softmax(-1))

    def forward(self, betas: Tensor, pose: Tensor) -> Tensor:
        n = len(betas)
        shaped = self.v_template + torch.einsum("bl,mkl->bmk", betas, self.shapedirs)
        joints = torch.einsum("bik,ji->bjk", shaped, self.J_regressor)
        rotations = batch_rodrigues(pose.reshape(-1, 3)).view(n, self.joints, 3, 3)
        turn, place = rotations[:, 0], joints[:, 0]
        turns, moves = [turn], [place - (turn @ joints[:, 0].unsqueeze(-1)).squeeze(-1)]
        for i in range(1, self.joints):
            bone = (joints[:, i] - joints[:, i - 1]).unsqueeze(-1)
            place = place + (turn @ bone).squeeze(-1)
            turn = turn @ rotations[:, i]
            turns.append(turn)
            moves.append(place - (turn @ joints[:, i].unsqueeze(-1)).squeeze(-1))
        blended = torch.einsum("vj,bjkl->bvkl", self.weights, torch.stack(turns, 1))
        moved = torch.einsum("vj,bjk->bvk", self.weights, torch.stack(moves, 1))
        return (blended @ shaped.unsqueeze(-1)).squeeze(-1) + moved


class Shaped(nn.Module):
    """A picture's features to a shape, a pose that is given, and where the vertices are."""

    def __init__(self) -> None:
        super().__init__()
        self.betas, self.body = nn.Linear(8, 5), Body()

    def forward(self, features: Tensor, pose: Tensor) -> Tensor:
        return self.body(self.betas(features), pose).flatten(1)


@planted(
    "eps-underflow", "body", "add div linalg_vector_norm norm", fails=("16-true",),
    family="bodies", task="regression",
)  # fmt: skip
def bodies_at_rest() -> Built:
    """vchoutas/smplx: a joint that is not turned has no axis, and 1e-8 is zero in float16."""
    pose = 0.7 * drawn(240, 18, seed=12)
    pose[::6, 3:] = 0
    return taught(Shaped, (drawn(240, 8, seed=13), pose))


class PointAttention(nn.Module):
    """OpenFold's invariant point attention: scores by features, pairs, and points in space."""

    def __init__(
        self, inf: float, eps: float, c: int = 16, heads: int = 4, points: int = 3
    ) -> None:
        super().__init__()
        self.inf, self.eps, self.heads, self.points = inf, eps, heads, points
        self.linear_q, self.linear_kv = nn.Linear(c, c), nn.Linear(c, 2 * c)
        self.linear_q_points = nn.Linear(c, heads * points * 3)
        self.linear_kv_points = nn.Linear(c, heads * 2 * points * 3)
        self.head_weights = nn.Parameter(torch.full((heads,), 0.5414))
        self.linear_out = nn.Linear(c + heads * points * 4, c)

    def forward(self, s: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        n, r, c = s.shape
        q = self.linear_q(s).view(n, r, self.heads, -1)
        k, v = self.linear_kv(s).view(n, r, self.heads, -1).chunk(2, -1)
        shape = (n, r, self.heads, -1, 3)
        q_pts = self.linear_q_points(s).view(shape) + places[:, :, None, None]
        kv_pts = self.linear_kv_points(s).view(shape) + places[:, :, None, None]
        k_pts, v_pts = kv_pts.chunk(2, 3)
        a = torch.matmul(q.permute(0, 2, 1, 3), k.permute(0, 2, 3, 1))
        a = a * math.sqrt(1.0 / (3 * c / self.heads))
        pt_att = (q_pts.unsqueeze(2) - k_pts.unsqueeze(1)) ** 2
        pt_att = sum(torch.unbind(pt_att, dim=-1))
        weights = F.softplus(self.head_weights).view(1, 1, 1, -1, 1)
        weights = weights * math.sqrt(1.0 / (3 * (self.points * 9.0 / 2)))
        pt_att = torch.sum(pt_att * weights, dim=-1) * -0.5
        square_mask = mask.unsqueeze(-1) * mask.unsqueeze(-2)
        square_mask = self.inf * (square_mask - 1)
        a = torch.softmax(a + pt_att.permute(0, 3, 1, 2) + square_mask.unsqueeze(1), -1)
        o = torch.matmul(a, v.transpose(1, 2).to(a.dtype)).transpose(1, 2).flatten(2)
        o_pt = torch.einsum("nhij,njhpk->nihpk", a, v_pts.to(a.dtype))
        o_pt = o_pt - places[:, :, None, None].to(o_pt.dtype)
        o_norm = torch.sqrt(torch.sum(o_pt**2, dim=-1) + self.eps)
        joined = torch.cat([o, o_pt.flatten(2), o_norm.flatten(2)], -1)
        return self.linear_out(joined.to(self.linear_out.weight.dtype))


class Fold(nn.Module):
    """Residues and their places, two such layers, what the chain is."""

    def __init__(self, inf: float, eps: float) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(8, 16), nn.LayerNorm(16)
        self.ipa = nn.ModuleList(PointAttention(inf, eps) for _ in range(2))
        self.head = nn.Linear(16, 4)

    def forward(self, residues: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        s = self.embed(residues)
        for layer in self.ipa:
            s = self.norm(s + layer(s, places, mask))
        pooled = (s * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        return self.head(pooled.to(self.head.weight.dtype)) * 6


def folded() -> tuple[Tensor, Tensor, Tensor]:
    """Chains of ten residues to fourteen, in nanometres."""
    mask = (torch.arange(14) < (10 + torch.arange(200).view(-1, 1) % 5)).float()
    return drawn(200, 14, 8, seed=14), 0.4 * drawn(200, 14, 3, seed=15).cumsum(1), mask


@planted(
    "mask-inf", "ipa.0", "mul softmax _softmax", fails=("16-true",), family="attention",
    also=("overflow",),
)  # fmt: skip
def residues_that_are_padding() -> Built:
    """aqlaboratory/openfold: an inf of 1e5 is one, and rows of padding have nothing else."""
    return decided(lambda: Fold(1e5, 1e-8), folded())


@healthy()
def residues_that_are_padding_in_low_precision() -> Built:
    """aqlaboratory/openfold's low_prec: an inf of 1e4, an eps of 1e-4."""
    return decided(lambda: Fold(1e4, 1e-4), folded())
