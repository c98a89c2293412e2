"""Steps without slopes, curvature, routers, reversible and carried states in 16 bits.

As `training_reported`: written anew after what issue trackers report, labelled before the check
answered, and asked of the judge.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, SGD, TRUE, case, raw_tabular, recipe
from benchmarks.data import batches

# Steps without slopes -----------------------------------------------------------------------------


class Perturbed(torch.optim.Optimizer):
    """Steps along random directions by how much the loss differs on both sides (MeZO)."""

    def __init__(self, params: Any, lr: float, away: float, draws: int = 8) -> None:
        super().__init__(params, {"lr": lr, "away": away, "draws": draws})

    def move(self, seed: int, by: float) -> None:
        random = torch.Generator().manual_seed(seed)
        for group in self.param_groups:
            for p in group["params"]:
                z = torch.randn(p.shape, generator=random).to(p)
                p.add_(z, alpha=by)

    @torch.no_grad()
    def step(self, closure: Any) -> Any:
        group, found = self.param_groups[0], []
        for _ in range(group["draws"]):
            seed = int(torch.randint(2**31, ()))
            losses = []
            for by in (group["away"], -2 * group["away"]):
                self.move(seed, by)
                with torch.enable_grad():
                    losses.append(closure())
            self.move(seed, group["away"])
            found.append((seed, float(losses[0] - losses[1]) / (2 * group["away"])))
        for seed, slope in found:
            self.move(seed, -group["lr"] * slope / group["draws"])
        return losses[0]


def without_slopes(away: float) -> dict:
    """A linear classifier of measurements, trained forwards alone."""
    (x, y), (a, b) = data.tabular()
    mean, spread = x.mean(0), x.std(0)
    train = batches((x - mean) / spread, y, size=64)
    test = batches((a - mean) / spread, b, size=128)
    steps = partial(Perturbed, lr=0.02, away=away)
    make = lambda: nn.Linear(30, 2)  # noqa: E731
    return raw_tabular(model=make, train_data=train, eval_data=test, optimizer=steps, epochs=20)


@case(sound=f"{TRUE} bf16-mixed")
def zeroth_order() -> dict:
    """(L(w + 1e-3 z) - L(w - 1e-3 z)) / 2e-3 of losses in bfloat16 (after princeton-nlp/MeZO)."""
    return without_slopes(1e-3)


# Curvature ----------------------------------------------------------------------------------------


class Curved(torch.optim.Optimizer):
    """AdaHessian: Adam whose second moment is of the curvature, kept at the parameter."""

    def __init__(self, params: Any, lr: float, eps: float) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(step=0, mean=torch.zeros_like(p), curve=torch.zeros_like(p))
                state["step"] += 1
                h = p.curvature.to(p)
                state["mean"].mul_(0.9).add_(p.grad, alpha=0.1)
                state["curve"].mul_(0.999).addcmul_(h, h, value=0.001)
                size = (state["curve"] / (1 - 0.999 ** state["step"])).sqrt() + group["eps"]
                p.addcdiv_(state["mean"] / (1 - 0.9 ** state["step"]), size, value=-group["lr"])


def curved(eps: float) -> dict:
    """Curvature along random signs, by differentiating the slopes once more."""

    def step(model: nn.Module, batch: tuple) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(model(x), y)
        params = list(model.parameters())
        slopes = torch.autograd.grad(loss, params, create_graph=True)
        signs = [torch.randint_like(p, 2) * 2 - 1 for p in params]
        turned = torch.autograd.grad(slopes, params, signs, retain_graph=True)
        for p, z, h in zip(params, signs, turned, strict=True):
            p.curvature = (z * h).detach().abs()
        return loss

    make = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 10))  # noqa: E731
    return recipe(make, training_step=step, loss=None, optimizer=partial(Curved, lr=0.02, eps=eps))


@case("16-true", "bf16-true")
def curvature_by_chance() -> dict:
    """AdaHessian with 1e-8 over a curvature that is zero (after amirgholami/adahessian#22)."""
    return curved(1e-8)


@case(sound=f"{TRUE} {MIXED}")
def curvature_by_chance_safe() -> dict:
    """The same with 0.02."""
    return curved(0.02)


# Steps that are clamped ---------------------------------------------------------------------------


class Adopted(torch.optim.Optimizer):
    """ADOPT, cautious: over the last second moment, clamped, and not against the slope."""

    def __init__(self, params: Any, lr: float, eps: float = 1e-6) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(step=0, mean=torch.zeros_like(p), square=p.grad * p.grad)
                    continue
                state["step"] += 1
                most = state["step"] ** 0.25
                way = p.grad / torch.clamp(state["square"].sqrt(), min=group["eps"])
                state["mean"].lerp_(way.clamp_(-most, most), 0.1)
                mask = (state["mean"] * p.grad > 0).to(p.dtype)
                mask.div_(mask.mean().clamp_(min=1e-3))
                p.add_(state["mean"] * mask, alpha=-group["lr"])
                state["square"].mul_(0.99).addcmul_(p.grad, p.grad, value=0.01)


@case(sound=f"{TRUE} {MIXED}")
def adopted_steps() -> dict:
    """ADOPT: g / max(√v, 1e-6), clamped, where v is zero (after iShohei220/adopt)."""
    return recipe(optimizer=partial(Adopted, lr=2e-3))


# Routers ------------------------------------------------------------------------------------------


class Routed(nn.Module):
    """Six experts, two for each patch, and a bias that keeps them equally busy."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.gate = nn.Linear(4, 32), nn.Linear(32, 6, bias=False)
        self.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(6))
        self.head = nn.Linear(32 * 16, 10)
        self.register_buffer("bias", torch.zeros(6))
        self.register_buffer("tokens", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(F.unfold(x, 2, stride=2).transpose(1, 2)).relu().flatten(0, 1)
        scores = self.gate(h).sigmoid()
        chosen = (scores + self.bias).topk(2, -1).indices
        weight = torch.zeros_like(scores).scatter(1, chosen, scores.gather(1, chosen))
        weight = weight / (weight.sum(-1, keepdim=True) + 1e-6)
        if self.training:
            with torch.no_grad():
                self.tokens += torch.bincount(chosen.flatten(), minlength=6)
                self.bias += 1e-3 * torch.sign(self.tokens.mean() - self.tokens)
                self.tokens.zero_()
        out = sum(weight[:, i : i + 1] * e(h) for i, e in enumerate(self.experts))
        return self.head((h + out.relu()).view(len(x), -1))


@case(sound=f"{TRUE} {MIXED}")
def expert_bias() -> dict:
    """A router's bias moves by 0.001, in the weights' type (after NVIDIA/Megatron-LM#1482)."""
    return recipe(Routed, optimizer=partial(SGD, lr=0.05))


# Reversible blocks --------------------------------------------------------------------------------


def branch() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32))


class Reversing(torch.autograd.Function):
    """Keeps the last outputs only: backwards, the blocks' inputs are computed from them."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, blocks: Any, again: Any) -> Any:
        ctx.blocks, ctx.again = blocks, again()
        for f, g in blocks:
            a = a + f(b)
            b = b + g(a)
        ctx.ends = a.detach(), b.detach()
        return a, b

    @staticmethod
    def backward(ctx: Any, da: Tensor, db: Tensor) -> Any:
        a, b = ctx.ends
        for f, g in reversed(ctx.blocks):
            with torch.enable_grad(), ctx.again:
                a = a.detach().requires_grad_()
                back = g(a)
                back.backward(db)
            with torch.no_grad():
                b, da = b - back, da + a.grad
            with torch.enable_grad(), ctx.again:
                b = b.detach().requires_grad_()
                back = f(b)
                back.backward(da)
            with torch.no_grad():
                a, db = a.detach() - back, db + b.grad
        return da, db, None, None


def as_forwards() -> Any:
    """The autocast that is on now."""
    kind = "cuda" if torch.is_autocast_enabled("cuda") else "cpu"
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return torch.autocast(kind, dtype=dtype, enabled=enabled)


class Reversible(nn.Module):
    """Five reversible blocks between two layers."""

    def __init__(self, again: Any) -> None:
        super().__init__()
        self.first, self.head, self.again = nn.Linear(64, 64), nn.Linear(64, 10), again
        self.blocks = nn.ModuleList(nn.ModuleList([branch(), branch()]) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x.flatten(1)).chunk(2, -1)
        return self.head(torch.cat(Reversing.apply(a, b, self.blocks, self.again), -1))


@case(MIXED, TRUE)
def reversible_blocks() -> dict:
    """Blocks computed again backwards, where autocast is off (facebookresearch/SlowFast#641)."""
    return recipe(partial(Reversible, nullcontext), optimizer=partial(SGD, lr=0.02))


@case(sound=f"{TRUE} {MIXED}")
def reversible_blocks_recast() -> dict:
    """The same under the autocast of the way forwards."""
    return recipe(partial(Reversible, as_forwards), optimizer=partial(SGD, lr=0.02))


# Carried states -----------------------------------------------------------------------------------


class Carried(nn.Module):
    """Reads a stream in pieces, and goes on where it was."""

    def __init__(self) -> None:
        super().__init__()
        self.letters, self.body = nn.Embedding(28, 24), nn.GRU(24, 64, batch_first=True)
        self.head, self.state = nn.Linear(64, 28), None

    def forward(self, x: Tensor) -> Tensor:
        held = self.state if self.state is not None and self.state.shape[1] == len(x) else None
        h, state = self.body(self.letters(x), held)
        self.state = state.detach()
        return self.head(h).transpose(1, 2)


@case(sound=f"{TRUE} {MIXED}")
def carried_state() -> dict:
    """The state of 24 steps is where the next begin (after pytorch/examples' language model)."""
    stream = data.characters(24)[:3600].view(60, 60, 24).transpose(0, 1)
    parts = [(part[:, :-1], part[:, 1:]) for part in stream]
    adam = partial(torch.optim.Adam, lr=5e-3, eps=1e-4)
    given = {"train_data": parts[:50], "eval_data": parts[50:], "optimizer": adam, "epochs": 4}
    return recipe(Carried, clip_grad_norm=1.0, **given)
