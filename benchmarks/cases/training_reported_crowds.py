"""Graphs, teachers, forecasters, signals and tables in 16 bits, after what issue trackers report.

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
from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe, text
from benchmarks.data import batches

# Optimizers ---------------------------------------------------------------------------------------


class AdEMAMix(torch.optim.Optimizer):
    """Adam with a second, slow average of the gradient."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        eps: float = 1e-8,
        alpha: float = 2.0,
        slow: float = 0.99,
    ) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "alpha": alpha, "slow": slow})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = 0
                    state["fast"] = torch.zeros_like(p)
                    state["slow"] = torch.zeros_like(p)
                    state["square"] = torch.zeros_like(p)
                state["step"] += 1
                fast, slow, square = state["fast"], state["slow"], state["square"]
                fast.mul_(0.9).add_(p.grad, alpha=0.1)
                slow.mul_(0.99).add_(p.grad, alpha=0.01)
                square.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
                size = (square / (1 - 0.999 ** state["step"])).sqrt_().add_(group["eps"])
                way = fast / (1 - 0.9 ** state["step"]) + group["alpha"] * slow
                p.addcdiv_(way, size, value=-group["lr"])


@case("16-true", f"bf16-true {MIXED}")
def two_averages() -> dict:
    """Two averages over √v + 1e-8, each in the weights' type (after apple/ml-ademamix)."""
    return recipe(optimizer=partial(AdEMAMix, lr=2e-3))


class Compact(torch.optim.Optimizer):
    """One second moment for each row of a weight."""

    def __init__(self, params: Any, lr: float = 1e-3, eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(step=0, mean=torch.zeros_like(p))
                    state["square"] = torch.zeros_like(p.flatten(1).mean(1) if p.dim() > 1 else p)
                state["step"] += 1
                g = p.grad
                square = g.square().flatten(1).mean(1) if p.dim() > 1 else g.square()
                state["mean"].lerp_(g, 0.1)
                state["square"].mul_(0.95).add_(square, alpha=0.05)
                size = (state["square"] / (1 - 0.95 ** state["step"])).sqrt() + group["eps"]
                size = size.view(-1, *[1] * (p.dim() - 1))
                p.addcdiv_(state["mean"] / (1 - 0.9 ** state["step"]), size, value=-group["lr"])


@case("16-true", f"bf16-true {MIXED}")
def moments_by_row() -> dict:
    """The mean of g² by row, over its root + 1e-8 (after zyushun/Adam-mini)."""
    return recipe(optimizer=partial(Compact, lr=2e-3))


# Teachers -----------------------------------------------------------------------------------------


def apart(e: Tensor, eps: float) -> Tensor:
    """Distances between the rows of a batch, nothing on the diagonal."""
    square = e.pow(2).sum(1)
    found = (square[:, None] + square[None] - 2 * (e @ e.t())).clamp(min=eps).sqrt()
    found = found.clone()
    found[range(len(e)), range(len(e))] = 0
    return found


def relational(eps: float) -> dict:
    """A student learns the distances of a teacher, beside its labels."""
    torch.manual_seed(5)
    teacher = mlp(64, 64, 32).requires_grad_(False)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = mlp(64, 48, 16), nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Any:
            e = self.body(x)
            return (e, self.head(e.relu())) if self.training else self.head(e.relu())

    def step(model: nn.Module, batch: tuple) -> Tensor:
        x, y = batch
        e, z = model(x)
        with torch.no_grad():
            t = apart(teacher(x.float()), 1e-12)
            t = t / t[t > 0].mean()
        d = apart(e, eps)
        d = d / d[d > 0].mean()
        return F.cross_entropy(z, y) + F.smooth_l1_loss(d, t.to(d.dtype))

    return recipe(Net, training_step=step, loss=None)


@case("16-true", "bf16-true")
def distances_of_a_teacher() -> dict:
    """√clamp(d², 1e-12) whose diagonal is set to zero afterwards (after lenscloth/RKD)."""
    return relational(1e-12)


@case(sound=f"{TRUE} {MIXED}")
def distances_of_a_teacher_safe() -> dict:
    """The same clamped to 1e-4."""
    return relational(1e-4)


# Graphs -------------------------------------------------------------------------------------------


def near(x: Tensor, k: int) -> Tensor:
    """Edges to the k nearest rows."""
    found = torch.cdist(x, x).fill_diagonal_(math.inf).topk(k, largest=False).indices
    return torch.stack([found.flatten(), torch.arange(len(x)).repeat_interleave(k)])


def graphs(model: Any, count: int = 64) -> dict:
    """Pictures in small graphs of neighbours; each is to be named."""
    (x, y), (a, b) = data.digits()

    def parts(x: Tensor, y: Tensor) -> list:
        cut = zip(x.flatten(1).split(count), y.split(count), strict=True)
        return [((rows, near(rows, 4)), labels) for rows, labels in cut if len(rows) == count]

    given = {"train_data": parts(x, y), "eval_data": parts(a, b)}
    return recipe(model, optimizer=partial(SGD, lr=0.02), **given)


class Aggregated(nn.Module):
    """Mean, largest, and spread of neighbours, as PNA takes them."""

    def __init__(self, root: float) -> None:
        super().__init__()
        self.first, self.mix, self.head = nn.Linear(64, 48), nn.Linear(192, 48), nn.Linear(48, 10)
        self.root = root

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.first(x).relu()
        sent, to = h[edges[0]], edges[1]
        count = torch.zeros_like(h).index_add(0, to, torch.ones_like(sent)).clamp(min=1)
        mean = torch.zeros_like(h).index_add(0, to, sent) / count
        squares = torch.zeros_like(h).index_add(0, to, sent * sent) / count
        spread = ((squares - mean * mean).relu() + self.root).sqrt()
        most = torch.zeros_like(h).scatter_reduce(0, to[:, None].expand_as(sent), sent, "amax")
        return self.head(self.mix(torch.cat([h, mean, most, spread], -1)).relu())


@case(sound=f"{TRUE} {MIXED}")
def spread_of_neighbours() -> dict:
    """√(relu(E[x²] - E[x]²) + 1e-5) of neighbours (after pyg-team's PNAConv)."""
    return graphs(partial(Aggregated, 1e-5))


@case(sound=TRUE)
def spread_of_neighbours_bare() -> dict:
    """The same with 1e-10, which float16 does not have: relu has no slope there."""
    return graphs(partial(Aggregated, 1e-10))


# Forecasters --------------------------------------------------------------------------------------


class Reversible(nn.Module):
    """A forecast of windows, normalised by themselves and scaled back (RevIN)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))
        self.body = nn.Sequential(nn.Linear(48, 64), nn.GELU(), nn.Linear(64, 12))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True).detach()
        spread = (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt().detach()
        out = self.body((x - mean) / spread * self.weight + self.bias)
        return (out - self.bias) / (self.weight + 1e-10) * spread + mean


def windows(level: float) -> dict:
    """Windows of sums of waves on a level of their own."""
    random = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.rand(shape, generator=random)  # noqa: E731
    t = torch.arange(60) / 12
    wave = (draw(1600, 1) + 0.5) * torch.sin(2 * math.pi * (t + draw(1600, 1)))
    wave = wave + 0.5 * torch.sin(math.pi * (t + 2 * draw(1600, 1))) + level * draw(1600, 1)
    train = batches(wave[:1280, :48], wave[:1280, 48:], size=64)
    test = batches(wave[1280:, :48], wave[1280:, 48:], size=160)
    adam = partial(torch.optim.Adam, lr=2e-3, eps=1e-4)
    given = {"loss": F.mse_loss, "task": "regression", "clip_grad_norm": 1.0, "optimizer": adam}
    cosine = lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20)  # noqa: E731
    return recipe(
        Reversible, train_data=train, eval_data=test, scheduler=cosine, epochs=20, **given
    )


@case(sound=f"{TRUE} {MIXED}")
def reversible_windows() -> dict:
    """Windows scaled back by w + 1e-10, which is w (after ts-kim/RevIN)."""
    return windows(1.0)


# Text ---------------------------------------------------------------------------------------------


def unlikely(z: Tensor, y: Tensor) -> Tensor:
    """Cross entropy, and -log(1 - p) of a word that is not meant."""
    told = z.log_softmax(-1)
    other = told.gather(1, ((y + 3) % z.shape[-1])[:, None])
    return F.nll_loss(told, y) - torch.log(torch.clamp(1.0 - other.exp(), min=1e-5)).mean()


@case(sound=f"16-true {MIXED}")
def unlikely_words() -> dict:
    """log(clamp(1 - p, 1e-5)) of what is not meant (after facebookresearch's)."""
    words = lambda: nn.Sequential(nn.EmbeddingBag(1200, 32, mode="mean"), nn.Linear(32, 8))  # noqa: E731
    return text(
        words, loss=unlikely, optimizer=partial(torch.optim.Adam, lr=1e-2, eps=1e-4), epochs=20
    )


# Signals ------------------------------------------------------------------------------------------


def cleaned(eps: float) -> dict:
    """Tones out of noise; every eighth is silent."""
    random = torch.Generator().manual_seed(0)
    t = torch.arange(64)
    phase = torch.rand(1600, 1, generator=random) * 2 * math.pi
    rate = 0.1 + 0.4 * torch.rand(1600, 1, generator=random)
    clean = torch.sin(rate * t + phase)
    clean[::8] = 0
    noisy = clean + 0.5 * torch.randn(clean.shape, generator=random)

    def loss(s: Tensor, t: Tensor) -> Tensor:
        part = (s * t).sum(-1, keepdim=True) * t / ((t * t).sum(-1, keepdim=True) + eps)
        ratio = (part * part).sum(-1) / (((s - part) * (s - part)).sum(-1) + eps)
        return F.mse_loss(s, t) - 0.005 * (10 * torch.log10(ratio + eps)).mean()

    make = lambda: nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))  # noqa: E731
    train, test = batches(noisy[:1280], clean[:1280], size=64), batches(noisy[1280:], clean[1280:])
    given = {"loss": loss, "task": "regression", "optimizer": partial(SGD, lr=0.05), "epochs": 20}
    return recipe(make, train_data=train, eval_data=test, **given)


@case("16-true", "bf16-true 16-mixed bf16-mixed")
def silent_targets() -> dict:
    """Scale-invariant SNR over 1e-8 of targets that are silent (after asteroid-team/asteroid)."""
    return cleaned(1e-8)


@case(sound=f"{TRUE} {MIXED}")
def silent_targets_safe() -> dict:
    """The same over 1e-3."""
    return cleaned(1e-3)
