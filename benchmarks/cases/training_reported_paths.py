"""Transforms, paths and steps in 16 bits, after what issue trackers report.

As `training_reported`: written anew, and labelled by the judge before the gradient check answered.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe
from benchmarks.cases.training_reported_pictures import pictures
from benchmarks.data import batches


def charbonnier(z: Tensor, t: Tensor) -> Tensor:
    return torch.sqrt((z - t) ** 2 + 1e-12).mean()


@case("16-true", MIXED)
def charbonnier_pixels() -> dict:
    """√(d² + 1e-12) of pixels that are exact (after XPixelGroup/BasicSR)."""
    make = lambda: mlp(64, 96, 64, nn.ReLU())  # noqa: E731
    return pictures(lambda x: x.flatten(1), make, charbonnier, optimizer=partial(SGD, lr=0.5))


POINTS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])


def rodrigues(r: Tensor) -> Tensor:
    """Rotations of vectors whose length is the angle."""
    angle = torch.norm(r + 1e-8, dim=1, keepdim=True)
    axis = r / angle
    cos, sin = angle.cos().unsqueeze(1), angle.sin().unsqueeze(1)
    x, y, z = axis.unbind(1)
    none = torch.zeros_like(x)
    k = torch.stack([none, -z, y, z, none, -x, -y, x, none], 1).view(-1, 3, 3)
    return torch.eye(3, dtype=r.dtype, device=r.device) + sin * k + (1 - cos) * torch.bmm(k, k)


class Posed(nn.Module):
    """A joint that starts without a turn."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(mlp(64, 64, 32), nn.ReLU())
        self.turn = nn.Linear(32, 3)
        nn.init.zeros_(self.turn.weight)
        nn.init.zeros_(self.turn.bias)

    def forward(self, x: Tensor) -> Tensor:
        turned = rodrigues(self.turn(self.body(x)))
        points = POINTS.to(turned)
        return torch.einsum("bij,pj->bpi", turned, points).flatten(1)


def posed(x: Tensor) -> Tensor:
    """The points, turned by how the ink lies."""
    parts = F.adaptive_avg_pool2d(x, (1, 3)).flatten(1) * 2 - 0.5
    return torch.einsum("bij,pj->bpi", rodrigues(parts), POINTS).flatten(1)


@case("16-true 16-mixed", "bf16-mixed")
def first_pose() -> dict:
    """r / |r + 1e-8| of a turn that is zero (after vchoutas/smplx)."""
    return pictures(posed, Posed, F.mse_loss, optimizer=partial(SGD, lr=0.2))


class Monotonic(nn.Module):
    """Attention that only moves on, over the rows of a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.energy = nn.Linear(8, 48), nn.Linear(48, 4)
        self.head = nn.Linear(4 * 48, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.rows(x.squeeze(1)).relu()
        stop = torch.sigmoid(6 * self.energy(h)).mT
        before = torch.zeros_like(stop[:, 0])
        before[:, 0] = 1
        found = []
        for step in range(4):
            p = stop[:, step]
            log = torch.log((1 - p).clamp(1e-10, 1)).cumsum(-1)
            left = torch.cat([torch.ones_like(log[:, :1]), log[:, :-1].exp()], -1)
            before = p * left * (before / left.clamp(1e-10, 1)).cumsum(-1)
            found.append((before.unsqueeze(-1) * h).sum(1))
        return self.head(torch.cat(found, -1))


@case("16-true", "bf16-mixed")
def monotonic_attention() -> dict:
    """Over a product of at least 1e-10, which is zero (after j-min/MoChA-pytorch)."""
    return recipe(Monotonic, optimizer=partial(SGD, lr=0.1), epochs=15)


class Levels(nn.Module):
    """Pixels to the whole line before anything else."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.body, self.alpha = mlp(), alpha

    def forward(self, x: Tensor) -> Tensor:
        p = self.alpha + (1 - 2 * self.alpha) * x.flatten(1)
        return self.body((p.log() - (1 - p).log()) / 8)


@case(TRUE, MIXED)
def logits_of_pixels() -> dict:
    """log(1 - (1 - 1e-6)) of a pixel of one (after kamenbliznashki/normalizing_flows)."""
    return recipe(partial(Levels, 1e-6))


class Score(nn.Module):
    """The slope of a density, told the width of the noise."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(64, 128, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(20 * x)


def annealed(model: Score, batch: tuple[Tensor, Tensor], width: float) -> Tensor:
    """Denoising score matching at one width."""
    clean = batch[1]
    seen = clean + torch.randn_like(clean) * width
    target = -1 / width**2 * (seen - clean)
    scores = model(seen) / width
    return (0.5 * ((scores - target) ** 2).sum(-1) * width**2).mean() / 16


@case(TRUE, MIXED)
def score_of_noise() -> dict:
    """(noise / σ²)² of σ = 0.01 (after ermongroup/ncsn)."""
    (x, _), (a, _) = data.digits()
    x, a = x.flatten(1) / 20, a.flatten(1) / 20
    noise = 0.01 * torch.randn(a.shape, generator=torch.Generator().manual_seed(0))
    given = {"train_data": batches(x, x, size=64), "task": "regression", "epochs": 60}
    given["eval_data"] = batches(a + noise, -noise / 0.01, size=200)
    step = partial(annealed, width=0.01)
    return recipe(Score, loss=None, training_step=step, optimizer=partial(SGD, lr=0.02), **given)


class Projected(torch.optim.Optimizer):
    """SGDP: no step along weights that do not feel their length."""

    def __init__(self, params, lr: float, momentum: float = 0.9, eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.mul_(group["momentum"]).add_(p.grad)
                move, eps = buffer.clone(), group["eps"]
                if p.dim() > 1:
                    w, g = p.flatten(1), p.grad.flatten(1)
                    length = w.norm(dim=1) + eps
                    cos = (w * g).sum(1).abs() / (g.norm(dim=1) + eps) / length
                    if cos.max() < 0.1 / math.sqrt(w.shape[1]):
                        unit = w / length[:, None]
                        flat = move.flatten(1)
                        move = (flat - unit * (unit * flat).sum(1, True)).view_as(p)
                p.add_(move, alpha=-group["lr"])


@case(sound=f"{TRUE} {MIXED}")
def gated_projection() -> dict:
    """Cosines over 1e-8 of units that are not dead (after clovaai/AdamP)."""
    return recipe(optimizer=partial(Projected, lr=0.05), epochs=15)


class Warped(torch.autograd.Function):
    """Soft-DTW, with the slope that its authors wrote down."""

    @staticmethod
    def forward(ctx, d: Tensor, gamma: float) -> Tensor:
        b, n, m = d.shape
        r = d.new_full((b, n + 2, m + 2), math.inf)
        r[:, 0, 0] = 0
        for i in range(1, n + 1):
            for j in range(1, m + 1):
                ways = torch.stack([r[:, i - 1, j - 1], r[:, i - 1, j], r[:, i, j - 1]], -1)
                r[:, i, j] = d[:, i - 1, j - 1] - gamma * torch.logsumexp(-ways / gamma, -1)
        ctx.save_for_backward(d, r.clone())
        ctx.gamma = gamma
        return r[:, n, m]

    @staticmethod
    def backward(ctx, grad: Tensor):
        (d, r), gamma = ctx.saved_tensors, ctx.gamma
        n, m = d.shape[1:]
        wide = F.pad(d, (1, 1, 1, 1))
        e = torch.zeros_like(r)
        e[:, -1, -1] = 1
        r[:, :, -1] = r[:, -1, :] = -math.inf
        r[:, -1, -1] = r[:, -2, -2]
        for j in range(m, 0, -1):
            for i in range(n, 0, -1):
                near = ((i + 1, j), (i, j + 1), (i + 1, j + 1))
                e[:, i, j] = sum(
                    e[:, k, h] * ((r[:, k, h] - r[:, i, j] - wide[:, k, h]) / gamma).exp()
                    for k, h in near
                )
        return grad[:, None, None] * e[:, 1:-1, 1:-1], None


def warped(z: Tensor, t: Tensor) -> Tensor:
    columns, wanted = z.view(-1, 8, 8), t.view(-1, 8, 8)
    d = (columns[:, :, None] - wanted[:, None]).square().sum(-1)
    return Warped.apply(d, 0.01).mean() / 8


@case("bf16-true", MIXED)
def soft_warping() -> dict:
    """exp((r' - r - d) / 0.01) of running sums (after Sleepwalking/pytorch-softdtw)."""
    halves = lambda x: x.flatten(1) * 2  # noqa: E731
    return pictures(
        halves, lambda: mlp(64, 96, 64), warped, optimizer=partial(SGD, lr=0.05), epochs=8
    )


class Tasks(nn.Module):
    """Digits, and a faint copy of the picture, from shared features."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(64, 64, 32)
        self.kind, self.copy = nn.Linear(32, 10), nn.Linear(32, 64)

    def forward(self, x: Tensor):
        h = self.body(x).relu()
        return (self.kind(h), self.copy(h)) if self.training else self.kind(h)


def least_norm(model: Tasks, batch: tuple[Tensor, Tensor]) -> Tensor:
    """MGDA: the shortest vector between the slopes of two aims."""
    x, y = batch
    kind, copy = model(x)
    losses = F.cross_entropy(kind, y), 1e-3 * F.mse_loss(copy, x.flatten(1))
    shared = list(model.body.parameters())
    g, h = (torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses)
    gg, hh, gh = (
        sum((a * b).sum() for a, b in zip(u, v, strict=True)) for u, v in ((g, g), (h, h), (g, h))
    )
    if gh >= gg:
        share = torch.ones_like(gg)
    elif gh >= hh:
        share = torch.zeros_like(gg)
    else:
        share = (hh - gh) / (gg + hh - 2 * gh)
    share = 0.5 + 0.5 * share.detach()
    return share * losses[0] + (1 - share) * 1e3 * losses[1]


@case(sound=f"{TRUE} {MIXED}")
def least_norm_step() -> dict:
    """(h·h - g·h) / |g - h|² of a faint h (after isl-org/MultiObjectiveOptimization)."""
    return recipe(Tasks, loss=None, training_step=least_norm, epochs=15)
