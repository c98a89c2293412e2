"""Optimizers, penalties and dtypes in 16 bits, after what public issue trackers report.

As `training_reported`: written anew, labelled before the check answered, and asked of the judge.
"""

from __future__ import annotations

import copy
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe
from benchmarks.cases.training_reported_steps import by_hand, zeros
from benchmarks.data import batches, text_split


def adan(p: Tensor, g: Tensor, state: dict, group: dict) -> None:
    m, d, n, last = zeros(state, p, "m", "difference", "n", "last")
    change = g - last if state["t"] > 1 else torch.zeros_like(g)
    m.lerp_(g, 0.02)
    d.lerp_(change, 0.08)
    n.mul_(0.99).addcmul_(g + 0.92 * change, g + 0.92 * change, value=0.01)
    p.sub_(group["lr"] * (m + 0.92 * d) / (n.sqrt() + group["eps"]))
    last.copy_(g)


@case("16-true", f"bf16-true {MIXED}")
def adan_by_hand() -> dict:
    """Adan and its 1e-8 (after sail-sg/Adan)."""
    return by_hand(adan, 2e-3)


def yogi(p: Tensor, g: Tensor, state: dict, group: dict) -> None:
    (m,) = zeros(state, p, "m")
    v = state.setdefault("v", torch.full_like(p, 1e-6))
    m.lerp_(g, 0.1)
    v.addcmul_((v - g * g).sign(), g * g, value=-0.001)
    p.sub_(group["lr"] * m / (v.sqrt() + group["eps"]))


@case(sound=f"{TRUE} {MIXED}")
def yogi_by_hand() -> dict:
    """Yogi, whose 1e-3 is meant to be added (after jettify/pytorch-optimizer)."""
    return by_hand(yogi, 2e-3, 1e-3)


@case("16-true", f"bf16-true {MIXED}")
def adam_of_clip() -> dict:
    """An eps of 1e-6 that float16 holds, and a second moment that it does not (open_clip)."""
    return recipe(optimizer=partial(torch.optim.AdamW, lr=2e-3, betas=(0.9, 0.98), eps=1e-6))


def schedule_free(p: Tensor, g: Tensor, state: dict, group: dict) -> None:
    z = state.setdefault("z", p.clone())
    share = 1 / state["t"]
    p.lerp_(z, share).add_(g, alpha=group["lr"] * (0.9 * (1 - share) - 1))
    z.sub_(g, alpha=group["lr"])


@case(sound=f"16-true {MIXED}")
def schedule_free_by_hand() -> dict:
    """Evaluates where it takes its gradients (after facebookresearch/schedule_free)."""
    return by_hand(schedule_free, 0.3)


def projected(p: Tensor, g: Tensor, state: dict, group: dict, wide: bool) -> None:
    if g.dim() < 2:
        p.sub_(group["lr"] * g)
        return
    if state["t"] % 20 == 1:
        u = torch.linalg.svd(g.float() if wide else g, full_matrices=False)[0]
        state["basis"] = u[:, :8].to(g.dtype)
    basis = state["basis"]
    low = basis.T @ g
    m = state.setdefault("m", torch.zeros_like(low))
    m.mul_(0.9).add_(low)
    p.sub_(group["lr"] * (basis @ m))


@case(TRUE, MIXED)
def low_rank_gradients() -> dict:
    """GaLore without its cast: no SVD in 16 bits (after jiaweizzhao/GaLore)."""
    return by_hand(partial(projected, wide=False), 0.1)


@case(sound=f"{TRUE} {MIXED}")
def low_rank_gradients_safe() -> dict:
    """The same with its cast to float32."""
    return by_hand(partial(projected, wide=True), 0.1)


@lru_cache
def learned() -> tuple[nn.Module, list[Tensor]]:
    """A model of the first five digits, and how much each weight counts for them."""
    (x, y), _ = data.digits()
    x, y = x[y < 5], y[y < 5]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = mlp()
        optimizer = SGD(model.parameters(), lr=0.1)
        for _ in range(10):
            for a, b in batches(x, y, size=64):
                optimizer.zero_grad()
                F.cross_entropy(model(a), b).backward()
                optimizer.step()
    fisher = [torch.zeros_like(p) for p in model.parameters()]
    for a, b in batches(x, y, size=8):
        for f, g in zip(
            fisher,
            torch.autograd.grad(F.cross_entropy(model(a), b), list(model.parameters())),
            strict=True,
        ):
            f.add_(g.square(), alpha=8 / len(x))
    return model, fisher


class Remembering(nn.Module):
    """A model with what it must not forget."""

    def __init__(self) -> None:
        super().__init__()
        model, fisher = learned()
        self.body = copy.deepcopy(model)
        for i, (p, f) in enumerate(zip(model.parameters(), fisher, strict=True)):
            self.register_buffer(f"was{i}", p.detach().clone())
            self.register_buffer(f"fisher{i}", f.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    def penalty(self) -> Tensor:
        kept = dict(self.named_buffers())
        return sum(
            (kept[f"fisher{i}"] * (p - kept[f"was{i}"]) ** 2).sum()
            for i, p in enumerate(self.body.parameters())
        )


@case(sound=f"16-true {MIXED}")
def elastic_weights() -> dict:
    """EWC: a penalty of tiny products beside the loss on other digits (after avalanche)."""
    (x, y), (a, b) = data.digits()

    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1]) + 2000 * model.penalty()

    later = batches(x[y >= 5], y[y >= 5], size=64)
    given = {"train_data": later, "eval_data": batches(a, b, size=200), "epochs": 6}
    return recipe(
        Remembering, loss=None, training_step=step, optimizer=partial(SGD, lr=0.01), **given
    )


@case("16-true", f"bf16-true {MIXED}")
def clipped_to_nothing() -> dict:
    """Finite gradients whose length is infinite are clipped to zero (tracel-ai/burn#5699)."""
    return recipe(
        scale=255.0,
        size=600,
        loss=partial(F.cross_entropy, reduction="sum"),
        optimizer=partial(torch.optim.SGD, lr=0.02),
        clip_grad_norm=1.0,
        epochs=60,
    )


@case(sound=f"{TRUE} {MIXED}")
def layerwise_rates() -> dict:
    """Every layer at a third of the rate of the next, and no decay of norms (after BEiT)."""

    def make(params) -> torch.optim.Optimizer:
        groups = [
            {"params": [p], "lr": 0.1 * 0.3 ** (3 - i // 2), "weight_decay": 0.01 * (p.dim() > 1)}
            for i, p in enumerate(params)
        ]
        return torch.optim.SGD(groups, lr=0.1, momentum=0.9)

    layers = lambda: nn.Sequential(mlp(64, 64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 10))  # noqa: E731
    return recipe(layers, optimizer=make)


class Words(nn.Module):
    """A bag of words with sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.EmbeddingBag(1200, 32, sparse=True), nn.Linear(32, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.words(ids))


@case("16-true", f"bf16-true {MIXED}")
def sparse_adam() -> dict:
    """SparseAdam's 1e-8 beside SGD (after pytorch/pytorch's torch.optim.SparseAdam)."""

    class Both(torch.optim.SparseAdam):
        def __init__(self, params, **settings) -> None:
            words, *rest = params
            self.other = torch.optim.SGD(rest, lr=0.5)
            super().__init__([words], **settings)
            self.param_groups += self.other.param_groups

        def step(self, closure=None) -> None:
            groups, self.param_groups = self.param_groups, self.param_groups[:1]
            super().step()
            self.param_groups = groups
            self.other.step()

    (x, y), (a, b) = text_split()
    given = {"train_data": batches(x, y, size=64), "eval_data": batches(a, b, size=200)}
    return recipe(Words, optimizer=partial(Both, lr=5e-3), **given)


class Canvas(nn.Module):
    """Features of the brightest places, written back onto an empty picture."""

    def __init__(self) -> None:
        super().__init__()
        self.point, self.head = nn.Linear(1, 4), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        lit = x > 0.2
        canvas = torch.zeros(*x.shape, 4, dtype=x.dtype, device=x.device)
        canvas[lit] = self.point(x[lit][:, None]).relu()
        return self.head(canvas.flatten(1))


@case(MIXED, TRUE)
def scattered_pillars() -> dict:
    """A canvas in the input's type takes no features of another (open-mmlab/mmdetection3d#1842)."""
    return recipe(Canvas)


class Adapted(nn.Module):
    """A frozen layer in float16 with an adapter of low rank in float32."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.half().requires_grad_(False)
        self.down = nn.Linear(base.in_features, 8, bias=False)
        self.up = nn.Linear(8, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


@case(sound=f"16-true {MIXED}")
def adapters_over_half() -> dict:
    """LoRA over a base that was loaded in float16, which SGD trains (after huggingface/peft)."""

    def make() -> nn.Module:
        model = copy.deepcopy(learned()[0])
        return nn.Sequential(model[0], Adapted(model[1]), model[2], Adapted(model[3]))

    return recipe(make, optimizer=partial(SGD, lr=0.02))
