"""Optimizers, hooks, norms and views in 16 bits, after what public issue trackers report.

As `training_reported`: written anew, and labelled by the judge before the gradient check answered.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe
from benchmarks.cases.training_reported_steps import by_hand, zeros


class Clipped(torch.optim.SGD):
    """Clips all gradients by their common length, found by hand."""

    @torch.no_grad()
    def step(self, closure=None) -> None:
        slopes = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        total = sum(s.square().sum() for s in slopes).sqrt()
        for s in slopes:
            s.mul_((1 / (total + 1e-6)).clamp(max=1))
        super().step()


@case("16-true", f"bf16-true {MIXED}")
def clipped_by_hand() -> dict:
    """A summed loss: the gradient's squared length is infinite (facebookresearch/fairscale#263)."""
    loss = partial(F.cross_entropy, reduction="sum")
    return recipe(loss=lambda z, y: 8 * loss(z, y), optimizer=partial(Clipped, lr=0.1))


@case(sound=f"{TRUE} {MIXED}")
def clipped_mean_by_hand() -> dict:
    """The same of a mean loss (NVIDIA-NeMo/Automodel#825)."""
    return recipe(optimizer=partial(Clipped, lr=0.2))


def hooked(bound: float) -> nn.Module:
    """Every gradient is clamped by a hook."""
    model = mlp()
    for p in model.parameters():
        p.register_hook(lambda g: g.clamp(-bound, bound))
    return model


@case("16-mixed", f"{TRUE} bf16-mixed")
def clamped_in_hooks() -> dict:
    """Hooks clamp gradients while they are scaled (pytorch/pytorch#40907)."""
    return recipe(partial(hooked, 0.1))


@case(TRUE, MIXED)
def centered_moments() -> dict:
    """Centred RMSprop over all data: v - m² below zero (google-deepmind/optax#1784)."""
    rms = partial(torch.optim.RMSprop, lr=1e-3, centered=True, alpha=0.9, eps=1e-3)
    return recipe(size=1200, epochs=200, optimizer=rms)


@case(sound=f"bf16-true {MIXED}")
def weak_decay() -> dict:
    """Weight decay that bfloat16 rounds away, and nobody misses (Nerogar/OneTrainer#996)."""
    return recipe(optimizer=partial(torch.optim.AdamW, lr=2e-3, weight_decay=0.05))


def factored(p: Tensor, g: Tensor, state: dict, group: dict) -> None:
    square = g.square() + 1e-30
    if p.dim() < 2:
        (v,) = zeros(state, p, "v")
        v.mul_(0.99).add_(square, alpha=0.01)
        update = g * v.rsqrt()
    else:
        row, column = zeros(state, p[:, 0], "row")[0], zeros(state, p[0], "column")[0]
        row.mul_(0.99).add_(square.mean(1), alpha=0.01)
        column.mul_(0.99).add_(square.mean(0), alpha=0.01)
        update = g * (row / row.mean()).rsqrt()[:, None] * column.rsqrt()[None]
    update = update / (update.square().mean().sqrt()).clamp(min=1)
    p.sub_(group["lr"] * update)


@case("16-true", MIXED)
def factored_moments() -> dict:
    """Adafactor's factors with 1e-30 (facebookresearch/ParlAI#2392)."""
    return by_hand(factored, 3e-3)


def trusted(p: Tensor, g: Tensor, state: dict, group: dict) -> None:
    size, slope = p.norm(), g.norm()
    rate = 0.02 * size / (slope + 1e-4 * size + 1e-8)
    rate = torch.where((size > 0) & (slope > 0), rate, torch.ones_like(rate) * 0.02)
    (m,) = zeros(state, p, "m")
    m.mul_(0.9).add_(rate * g)
    p.sub_(group["lr"] * m)


@case(sound=f"{TRUE} {MIXED}")
def trust_ratio() -> dict:
    """LARS: weights' length over gradients' (NVIDIA/apex#1030)."""
    return by_hand(trusted, 0.5)


class Standardised(nn.Conv2d):
    """A convolution whose weights have mean 0 and spread 1."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = w - w.mean((1, 2, 3), keepdim=True)
        w = w / (w.flatten(1).std(-1).view(-1, 1, 1, 1) + 1e-5)
        return F.conv2d(x, w * self.weight[0].numel() ** -0.5, self.bias, self.stride, self.padding)


@case(sound=f"{TRUE} {MIXED}")
def standardised_weights() -> dict:
    """Standardised weights and GroupNorm (joe-siyuan-qiao/WeightStandardization#19)."""

    def make() -> nn.Module:
        first = (Standardised(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU())
        second = (Standardised(8, 16, 3, 2, 1), nn.GroupNorm(4, 16), nn.ReLU())
        return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(256, 10))

    return recipe(make, optimizer=partial(SGD, lr=0.05), epochs=5)


class Frozen(nn.Module):
    """A norm with the statistics of other data: the first channel never varied there."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.cat([torch.tensor([1e-9]), torch.full((7,), 0.3)]))
        self.register_buffer("weight", torch.cat([torch.tensor([1e-5]), torch.ones(7)]))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.var + self.eps).rsqrt()
        return (x - self.mean[:, None, None]) * scale[:, None, None]


def frozen(eps: float) -> dict:
    def make() -> nn.Module:
        tail = (nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
        return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), Frozen(eps), nn.ReLU(), *tail)

    return recipe(make, optimizer=partial(SGD, lr=0.02), epochs=5)


@case("16-true", f"bf16-true {MIXED}")
def frozen_norm() -> dict:
    """A frozen BatchNorm without an eps: a variance of 1e-9 is zero (pytorch/vision#2599)."""
    return frozen(0.0)


@case(sound=f"{TRUE} {MIXED}")
def frozen_norm_safe() -> dict:
    """The same with 1e-5 (pytorch/vision#2169)."""
    return frozen(1e-5)


class Viewed(nn.Module):
    """Two noisy views of a batch, and what they are."""

    def __init__(self, still: bool = False) -> None:
        super().__init__()
        self.body, self.head, self.views = mlp(64, 64, 64), nn.Linear(64, 10), nn.Linear(64, 32)
        if still:
            nn.init.zeros_(self.views.weight)
            nn.init.zeros_(self.views.bias)

    def forward(self, x: Tensor):
        if not self.training:
            return self.head(self.body(x))
        h, other = (self.body(x + 0.1 * torch.randn_like(x)) for _ in range(2))
        return self.head(h), self.views(h), self.views(other)


def barlow(out: tuple[Tensor, ...], y: Tensor) -> Tensor:
    z, a, b = out
    a, b = ((v - v.mean(0)) / v.std(0) for v in (a, b))
    cross = a.T @ b / len(a)
    apart = (cross - torch.eye(32, device=z.device, dtype=z.dtype)).square()
    weights = torch.full_like(apart, 0.02).fill_diagonal_(1)
    return F.cross_entropy(z, y) + 0.02 * (apart * weights).sum()


def vicreg(out: tuple[Tensor, ...], y: Tensor, eps: float) -> Tensor:
    z, a, b = out
    spread = sum(F.relu(1 - torch.sqrt(v.var(0) + eps)).mean() for v in (a, b))
    return F.cross_entropy(z, y) + 0.1 * (F.mse_loss(a, b) + spread)


@case(sound=f"{TRUE} {MIXED}")
def cross_correlation() -> dict:
    """Barlow Twins beside the labels (facebookresearch/vissl#229)."""
    return recipe(Viewed, loss=barlow, optimizer=partial(SGD, lr=0.02))


@case(sound=f"{TRUE} {MIXED}")
def spread_of_views() -> dict:
    """VICReg's root of variance + 1e-4 (tensorflow/similarity#243)."""
    return recipe(Viewed, loss=partial(vicreg, eps=1e-4), optimizer=partial(SGD, lr=0.05))


@case("16-true 16-mixed", "bf16-true bf16-mixed")
def spread_of_still_views() -> dict:
    """1e-8, and a projection that starts at zero (galilai-group/stable-pretraining#130)."""
    make = partial(Viewed, True)
    return recipe(make, loss=partial(vicreg, eps=1e-8), optimizer=partial(SGD, lr=0.05))


def supervised(out: tuple[Tensor, ...], y: Tensor, half: bool) -> Tensor:
    z, a, b = out
    views, labels = F.normalize(torch.cat([a, b[:4]]), dim=-1), torch.cat([y, y[:4]])
    logits = views @ views.T / 0.1
    logits = logits - logits.amax(-1, keepdim=True).detach()
    itself = torch.eye(len(views), device=z.device)
    same = (labels[:, None] == labels).float() - itself
    same = same.to(logits.dtype) if half else same
    log = logits - torch.log((logits.exp() * (1 - itself).to(logits.dtype)).sum(-1, keepdim=True))
    return F.cross_entropy(z, y) - 0.1 * ((same * log).sum(-1) / (same.sum(-1) + 1e-12)).mean()


@case("16-true", "bf16-true bf16-mixed")
def alone_in_half() -> dict:
    """Who has no like is 0 / (0 + 1e-12) (HobbitLong/SupContrast#20)."""
    loss = partial(supervised, half=True)
    return recipe(Viewed, loss=loss, size=16, optimizer=partial(SGD, lr=0.02), epochs=4)


@case(sound=f"{TRUE} {MIXED}")
def alone_in_float() -> dict:
    """The same with a mask in float32 (HobbitLong/SupContrast#142)."""
    loss = partial(supervised, half=False)
    return recipe(Viewed, loss=loss, size=16, optimizer=partial(SGD, lr=0.02), epochs=4)


def pairwise(out: tuple[Tensor, ...], y: Tensor) -> Tensor:
    z, a, b = out
    logits = 10 * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T - 10
    same = 2 * torch.eye(len(logits), device=z.device, dtype=z.dtype) - 1
    return F.cross_entropy(z, y) - 0.1 * F.logsigmoid(same * logits).sum() / len(logits)


@case(sound=f"{TRUE} {MIXED}")
def pairs_by_sigmoid() -> dict:
    """SigLIP's loss of all pairs (huggingface/transformers#29218)."""
    return recipe(Viewed, loss=pairwise, optimizer=partial(SGD, lr=0.02))
