"""Optimizers, teachers and several aims at once in 16 bits, after what issue trackers report.

As `training_reported`: written anew, labelled before the check answered, and asked of the judge.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe
from benchmarks.data import batches


@case(sound=f"{TRUE} {MIXED}")
def averaged_descent() -> dict:
    """ASGD, which decays by 1 - 1e-4 lr, and that is one."""
    return recipe(optimizer=partial(torch.optim.ASGD, lr=0.5), epochs=15)


@case(sound=f"{TRUE} {MIXED}")
def adadelta() -> dict:
    """Adadelta with its 1e-6."""
    return recipe(optimizer=partial(torch.optim.Adadelta, lr=1.0), epochs=12)


class Muon(torch.optim.Optimizer):
    """torch's Muon for matrices, and SGD for what else there is."""

    def __init__(self, params) -> None:
        params = list(params)
        self.parts = [
            torch.optim.Muon([p for p in params if p.ndim == 2], lr=0.02, weight_decay=0.01),
            torch.optim.SGD([p for p in params if p.ndim != 2], lr=0.05),
        ]
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for part in self.parts:
            part.step()


@case(sound=f"{TRUE} {MIXED}")
def muon_of_torch() -> dict:
    """torch.optim.Muon, which turns matrices round in bfloat16 itself (after KellerJordan/Muon)."""
    return recipe(optimizer=Muon)


def limited(params) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(params, lr=0.5, max_iter=4, history_size=5)


@case(TRUE, "bf16-mixed")
def limited_memory() -> dict:
    """L-BFGS over all data: y·s below 1e-10 is none (Lightning-AI/pytorch-lightning#4083)."""
    return recipe(size=1200, optimizer=limited, epochs=40)


class Student(nn.Module):
    """A student beside a slow teacher whose outputs are centred and sharpened (DINO)."""

    def __init__(self, follows: float) -> None:
        super().__init__()
        self.body, self.head = mlp(64, 64, 32), nn.Linear(32, 10)
        self.teacher = copy.deepcopy(self.body).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(32))
        self.follows = follows

    def forward(self, x: Tensor):
        if not self.training:
            return self.head(self.teacher(x))
        with torch.no_grad():
            for slow, new in zip(self.teacher.parameters(), self.body.parameters(), strict=True):
                slow.mul_(1 - self.follows).add_(self.follows * new)
            seen = self.teacher(x + 0.1 * torch.randn_like(x))
            wanted = ((seen - self.centre) / 0.04).softmax(-1)
            self.centre.mul_(0.9).add_(0.1 * seen.mean(0))
        h = self.body(x + 0.1 * torch.randn_like(x))
        return self.head(h), (h / 0.1).log_softmax(-1), wanted


def without_labels(out: tuple[Tensor, ...], y: Tensor) -> Tensor:
    z, student, wanted = out
    return F.cross_entropy(z, y) - 0.05 * (wanted * student).sum(-1).mean()


@case("bf16-true", MIXED)
def centred_teacher() -> dict:
    """DINO's teacher follows by 0.003 (facebookresearch/dino#58)."""
    return recipe(
        partial(Student, 0.003),
        loss=without_labels,
        size=16,
        optimizer=partial(SGD, lr=0.02),
        epochs=15,
    )


@case(sound=f"16-true {MIXED}")
def centred_teacher_quick() -> dict:
    """The same by 0.03."""
    return recipe(
        partial(Student, 0.03),
        loss=without_labels,
        size=16,
        optimizer=partial(SGD, lr=0.02),
        epochs=6,
    )


class Shared(nn.Module):
    """Digits, and which pixels are bright, from the same features."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(64, 64, 32)
        self.kind, self.pixels = nn.Linear(32, 10), nn.Linear(32, 64)

    def forward(self, x: Tensor):
        h = self.body(x).relu()
        return (self.kind(h), self.pixels(h)) if self.training else self.kind(h)


def surgery(model: nn.Module, batch: tuple[Tensor, Tensor], eps: float) -> Tensor:
    """PCGrad on the shared weights: aims that disagree are made perpendicular."""
    x, y = batch
    kind, pixels = model(x)
    losses = F.cross_entropy(kind, y), 0.02 * F.mse_loss(pixels, x.flatten(1))
    shared = list(model.body.parameters())
    g, h = (
        torch.cat([t.flatten() for t in torch.autograd.grad(loss, shared, retain_graph=True)])
        for loss in losses
    )
    dot = (g * h).sum()
    if dot < 0:
        # What is taken off is put into the loss: its slope is the difference.
        off = dot / (h.square().sum() + eps) * h + dot / (g.square().sum() + eps) * g
    else:
        off = torch.zeros_like(g)
    flat = torch.cat([p.flatten() for p in shared])
    return sum(losses) - (off.detach() * flat).sum()


@case("16-true", f"bf16-true {MIXED}")
def gradient_surgery() -> dict:
    """g·h / |h|² where |h|² is zero (after WeiChengTseng/Pytorch-PCGrad)."""
    return recipe(Shared, loss=None, training_step=partial(surgery, eps=1e-12), epochs=15)


class Scaled(nn.Module):
    """Residual branches times 1e-6 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 48)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 48))
            for _ in range(2)
        )
        self.scales = nn.ParameterList(torch.full((48,), 1e-6) for _ in range(2))
        self.head = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 10))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.flatten(1))
        for branch, scale in zip(self.branches, self.scales, strict=True):
            h = h + scale * branch(h)
        return self.head(h)


@case(sound=f"{TRUE} {MIXED}")
def layer_scale() -> dict:
    """Branches times 1e-6, which float16 just holds (after facebookresearch/ConvNeXt)."""
    return recipe(Scaled, optimizer=partial(SGD, lr=0.05))


class Gates(nn.Module):
    """Hard-concrete gates on the inputs, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha, self.body = nn.Parameter(torch.full((64,), 2.0)), mlp()

    def forward(self, x: Tensor) -> Tensor:
        x, alpha = x.flatten(1), self.alpha
        if self.training:
            u = torch.empty_like(x).uniform_(1e-6, 1 - 1e-6)
            alpha = (u.log() - (1 - u).log() + alpha) / (2 / 3)
        return self.body(x * (alpha.sigmoid() * 1.2 - 0.1).clamp(0, 1))


@case(sound=f"{TRUE} {MIXED}")
def hard_gates() -> dict:
    """log u - log(1 - u), where u may be one (after AMLab-Amsterdam/L0_regularization)."""
    return recipe(Gates, epochs=15)


class Atoms(nn.Module):
    """A distribution over 21 returns; its mean once trained."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(64, 64, 21)
        self.register_buffer("atoms", torch.linspace(-1, 1, 21))

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        return z if self.training else (z.softmax(-1) * self.atoms).sum(-1, keepdim=True)


@case(MIXED, TRUE)
def categorical_returns() -> dict:
    """C51: index_add_ of one type into another (after Kaixhin/Rainbow)."""

    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, reward = batch
        z = model(x)
        with torch.no_grad():
            next_ = model(x.flip(-1)).to(z.dtype).softmax(-1).to(z.dtype)
            moved = (reward + 0.2 * model.atoms).clamp(-1, 1)
            at = (moved + 1) / 0.1
            low, high = at.floor().long().clamp(0, 20), at.ceil().long().clamp(0, 20)
            low[(high > 0) & (low == high)] -= 1
            high[(low < 20) & (low == high)] += 1
            row = torch.arange(len(x), device=x.device)[:, None] * 21
            wanted = reward.new_zeros(len(x) * 21)
            wanted.index_add_(0, (row + low).flatten(), (next_ * (high - at).to(z.dtype)).flatten())
            wanted.index_add_(0, (row + high).flatten(), (next_ * (at - low).to(z.dtype)).flatten())
        return -(wanted.view(len(x), 21) * z.log_softmax(-1)).sum(-1).mean()

    (x, _), (a, _) = data.digits()
    ink = lambda x: (x.mean((1, 2, 3)) * 4 - 1.2).clamp(-0.7, 0.7)[:, None]  # noqa: E731
    given = {"train_data": batches(x, ink(x), size=64), "eval_data": batches(a, ink(a), size=200)}
    given |= {"task": "regression", "epochs": 25}
    return recipe(Atoms, loss=None, training_step=step, **given)


class Recurrent(nn.Module):
    """An LSTM over rows, its last state and the forget gates open."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.head = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, 10)
        with torch.no_grad():
            self.rows.bias_hh_l0[32:64].fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rows(x.squeeze(1))[0][:, -1])


@case(sound=f"{TRUE} bf16-mixed")
def clipped_recurrence() -> dict:
    """An LSTM with clipping to 0.25 and a warm-up (after salesforce/awd-lstm-lm)."""
    warm = lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.05, total_iters=40)  # noqa: E731
    given = {"clip_grad_norm": 0.25, "scheduler": warm, "scheduler_step": "step"}
    return recipe(Recurrent, optimizer=partial(SGD, lr=0.3), epochs=15, **given)
