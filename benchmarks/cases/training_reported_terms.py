"""Times of events, densities, relations, faces and lists in 16 bits, after what trackers report.

As `training_reported`: written anew, labelled before the check answered, and asked of the judge.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, TRUE, case, mlp, recipe
from benchmarks.data import batches

ADAM = partial(torch.optim.Adam, lr=3e-3, eps=1e-4)

# Times and densities ------------------------------------------------------------------------------


@case("bf16-true")
def event_chances() -> dict:
    """log(relu(Σ - cumsum) + 1e-7) and exp(-Δ / 0.1) of chances (after havakv/pycox's DeepHit)."""
    (x, y), _ = data.digits()
    seen = (torch.arange(len(y)) % 5 > 0).long()
    until = torch.where(seen == 1, y, (y - 2).clamp(min=0))

    def loss(phi: Tensor, target: Tensor) -> Tensor:
        when, events = target[:, :1], target[:, 1]
        top = phi.max(1)[0]
        cumsum = phi.sub(top.view(-1, 1)).exp().cumsum(1)
        total = cumsum[:, -1]
        part1 = phi.gather(1, when).view(-1).sub(top).mul(events)
        part2 = -total.relu().add(1e-7).log()
        left = total.sub(cumsum.gather(1, when).view(-1)).relu().add(1e-7).log()
        nll = -(part1 + part2 + left.mul(1.0 - events)).mean()
        rank = ((when < when.T) & (events[:, None] == 1)).to(phi.dtype)
        chance = torch.softmax(phi, 1).cumsum(1)
        at = chance[:, when.view(-1)].T
        r = at.diag()[:, None] - at.T
        return nll + 0.2 * (rank * torch.exp(-r / 0.1)).mean()

    def step(model: Any, batch: tuple) -> Tensor:
        return loss(model(batch[0]), batch[1])

    train = batches(x, torch.stack([until, seen], 1), size=64)
    given = {"training_step": step, "loss": None, "optimizer": ADAM, "epochs": 15}
    return recipe(train_data=train, **given)


class Ellipse(nn.Module):
    """Where the ink of a picture lies, as a normal of two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(64, 64, 5)

    def forward(self, x: Tensor) -> Any:
        z = self.body(x)
        if not self.training:
            return z[:, :2]
        (a, b), c = F.softplus(z[:, 2:4]).add(0.05).unbind(1), z[:, 4]
        return z[:, :2], torch.stack([torch.stack([a, a * 0], 1), torch.stack([c, b], 1)], 1)


def places(x: Tensor) -> Tensor:
    """The centre of the ink, in parts of the picture's middle."""
    i = torch.arange(8).float() - 3.5
    ink = x.squeeze(1) / x.sum((1, 2, 3))[:, None, None]
    return torch.stack([(ink * i[:, None]).sum((1, 2)), (ink * i[None]).sum((1, 2))], 1)


@case(TRUE)
def ellipses() -> dict:
    """MultivariateNormal solves for its triangle: no kernel (after pyro-ppl/pyro's users)."""
    (x, _), (a, _) = data.digits()

    def loss(out: Any, y: Tensor) -> Tensor:
        mean, tril = out
        return -torch.distributions.MultivariateNormal(mean, scale_tril=tril).log_prob(y).mean()

    train, test = batches(x, places(x), size=64), batches(a, places(a), size=200)
    given = {"task": "regression", "loss": loss, "optimizer": partial(ADAM, lr=1e-3), "epochs": 25}
    return recipe(Ellipse, train_data=train, eval_data=test, **given)


class Forecast(nn.Module):
    """A number and how sure it is; the number once trained."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(64, 64, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        return z if self.training else z[:, :1]


@case(sound=f"{TRUE} {MIXED}")
def ranked_scores() -> dict:
    """The CRPS of a normal by erf, with a width of softplus + 1e-6 (after scoringrules)."""
    (x, _), (a, _) = data.digits()

    def loss(z: Tensor, y: Tensor) -> Tensor:
        sigma = F.softplus(z[:, 1:]) + 1e-6
        w = (y - z[:, :1]) / sigma
        below = 0.5 * (1 + torch.erf(w / math.sqrt(2)))
        density = torch.exp(-0.5 * w**2) / math.sqrt(2 * math.pi)
        return (sigma * (w * (2 * below - 1) + 2 * density - 1 / math.sqrt(math.pi))).mean()

    train = batches(x, places(x)[:, :1], size=64)
    test = batches(a, places(a)[:, :1], size=200)
    given = {"task": "regression", "loss": loss, "optimizer": ADAM, "epochs": 15}
    return recipe(Forecast, train_data=train, eval_data=test, **given)


# Relations ----------------------------------------------------------------------------------------


class Turned(nn.Module):
    """RotatE: a relation turns complex numbers; what is nearest to the result is meant."""

    def __init__(self, things: int = 80, ways: int = 4, width: int = 16) -> None:
        super().__init__()
        self.range = (6.0 + 2.0) / width
        self.things = nn.Parameter(torch.empty(things, 2 * width).uniform_(-self.range, self.range))
        self.ways = nn.Parameter(torch.empty(ways, width).uniform_(-self.range, self.range))

    def score(self, head: Tensor, way: Tensor, tail: Tensor) -> Tensor:
        re, im = self.things[head].chunk(2, -1)
        phase = self.ways[way] / (self.range / 3.14159265358979323846)
        cos, sin = torch.cos(phase), torch.sin(phase)
        re_tail, im_tail = tail.chunk(2, -1)
        re_score = (re * cos - im * sin).unsqueeze(1) - re_tail
        im_score = (re * sin + im * cos).unsqueeze(1) - im_tail
        far = torch.stack([re_score, im_score], dim=0).norm(dim=0)
        return 6.0 - far.sum(dim=-1)

    def forward(self, asked: Tensor) -> Tensor:
        return self.score(asked[:, 0], asked[:, 1], self.things.unsqueeze(0))


@case(sound=f"{TRUE} {MIXED}")
def turned_relations() -> dict:
    """Lengths of complex differences, self-adversarial (after DeepGraphLearning/RotatE)."""
    steps = torch.tensor([1, 3, 7, -2])
    asked = torch.cartesian_prod(torch.arange(80), torch.arange(4))
    told = (asked[:, 0] + steps[asked[:, 1]]) % 80
    order = torch.randperm(320, generator=torch.Generator().manual_seed(0))
    train, test = order[:280], order[280:]

    def step(model: Any, batch: tuple) -> Tensor:
        asked, tail = batch
        others = torch.randint(0, 80, (len(tail), 32), device=tail.device)
        away = model.score(asked[:, 0], asked[:, 1], model.things[others])
        away = (F.softmax(away, dim=1).detach() * F.logsigmoid(-away)).sum(dim=1)
        near = model.score(asked[:, 0], asked[:, 1], model.things[tail].unsqueeze(1))
        return -(F.logsigmoid(near).squeeze(1).mean() + away.mean()) / 2

    given = {"training_step": step, "loss": None, "epochs": 80}
    given["train_data"] = batches(asked[train], told[train], size=70)
    given["eval_data"] = batches(asked[test], told[test], size=40)
    return recipe(Turned, optimizer=partial(ADAM, lr=2e-2), **given)


# Faces and lists ----------------------------------------------------------------------------------


class Faces(nn.Module):
    """AdaFace: cosines to ten directions, with a margin by how long a feature is."""

    def __init__(self, eps: float, t_alpha: float = 0.01) -> None:
        super().__init__()
        self.body, self.kernel = mlp(64, 96, 32), nn.Parameter(torch.randn(32, 10))
        self.register_buffer("batch_mean", torch.ones(1) * 20)
        self.register_buffer("batch_std", torch.ones(1) * 100)
        self.eps, self.t_alpha, self.h, self.m, self.s = eps, t_alpha, 0.333, 0.4, 32.0

    def forward(self, x: Tensor) -> Any:
        h = self.body(x)
        norms = torch.norm(h, 2, 1, True)
        h = torch.div(h, norms)
        cosine = torch.mm(h, F.normalize(self.kernel, dim=0))
        return (cosine, norms) if self.training else cosine


def adaptive_margins(eps: float) -> dict:
    def step(model: Any, batch: tuple) -> Tensor:
        x, y = batch
        cosine, norms = model(x)
        cosine = cosine.clamp(-1 + eps, 1 - eps)
        safe = torch.clip(norms, min=0.001, max=100).clone().detach()
        with torch.no_grad():
            mean, std = safe.mean(), safe.std()
            keep = 1 - model.t_alpha
            model.batch_mean.copy_(mean * model.t_alpha + keep * model.batch_mean)
            model.batch_std.copy_(std * model.t_alpha + keep * model.batch_std)
        scaler = (safe - model.batch_mean) / (model.batch_std + 1e-3)
        scaler = torch.clip(scaler * model.h, -1, 1)
        one = torch.zeros(len(y), 10, device=x.device).scatter_(1, y.reshape(-1, 1), 1.0)
        theta = cosine.acos()
        theta = torch.clip(theta + one * (model.m * scaler * -1), min=eps, max=math.pi - eps)
        cosine = theta.cos() - one * (model.m + model.m * scaler)
        return F.cross_entropy(cosine * model.s, y)

    given = {"training_step": step, "loss": None, "optimizer": ADAM, "epochs": 20}
    return recipe(partial(Faces, eps), **given)


@case(sound=f"{TRUE} {MIXED}")
def adaptive_faces() -> dict:
    """acos of at most 1 - 1e-3, one in bfloat16, which is not met (after mk-minchul/AdaFace)."""
    return adaptive_margins(1e-3)


@case(sound=f"{TRUE} {MIXED}")
def adaptive_faces_apart() -> dict:
    """The same of at most 1 - 1/64."""
    return adaptive_margins(1 / 64)


class Listed(nn.Module):
    """A score for each of eight pictures of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).squeeze(-1)


def ranked(z: Tensor, y: Tensor, eps: float, most: float) -> Tensor:
    """LambdaRank's weights of pairs, by what they change of the NDCG."""
    z_sorted, by_score = z.sort(descending=True, dim=-1)
    y_sorted, _ = y.sort(descending=True, dim=-1)
    by = torch.gather(y, 1, by_score)
    above = (by[:, :, None] - by[:, None, :]) > 0
    place = torch.arange(1, z.shape[1] + 1, device=z.device).to(z.dtype)
    d = torch.log2(1.0 + place)[None]
    ideal = ((2**y_sorted - 1) / d).sum(-1).clamp(min=eps)
    g = (2**by - 1) / ideal[:, None]
    w = torch.abs(1 / d[:, :, None] - 1 / d[:, None, :]) * torch.abs(g[:, :, None] - g[:, None, :])
    diff = (z_sorted[:, :, None] - z_sorted[:, None, :]).clamp(min=-most, max=most)
    p = (torch.sigmoid(diff).clamp(min=eps) ** w).clamp(min=eps)
    return -torch.log2(p)[above].mean()


def lists(eps: float, most: float) -> dict:
    """Lists of eight digits, of which the largest is to be found."""
    (x, y), (a, b) = data.digits()

    def listed(x: Tensor, y: Tensor, count: int) -> tuple:
        random, found = torch.Generator().manual_seed(0), []
        while len(found) < count:
            pick = torch.randperm(len(y), generator=random)[:8]
            if (y[pick] == y[pick].max()).sum() == 1:
                found.append(pick)
        places = torch.stack(found)
        return x.flatten(1)[places], y[places].float() / 2

    (x, y), (a, b) = listed(x, y, 800), listed(a, b, 400)
    loss = partial(ranked, eps=eps, most=most)
    train, test = batches(x, y, size=40), batches(a, b.argmax(1), size=200)
    given = {"loss": loss, "optimizer": partial(ADAM, lr=5e-3), "epochs": 15}
    return recipe(Listed, train_data=train, eval_data=test, **given)


@case("16-true", "bf16-true bf16-mixed")
def weighed_lists() -> dict:
    """p^w of p of at least 1e-10: an infinite slope, and 1e8 on a CPU (after allegro/allRank)."""
    return lists(1e-10, 1e8)


@case("16-true", f"bf16-true {MIXED}")
def weighed_lists_apart() -> dict:
    """The same within 1e4, of at least 1e-6: a power whose slope is infinite."""
    return lists(1e-6, 1e4)
