"""Optimizers, adapters, quantised and pruned weights, and local learning in 16 bits.

As `training_reported`: written anew, labelled before the check answered, and asked of the judge.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from benchmarks import data
from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe
from benchmarks.data import batches

ADAM = partial(torch.optim.Adam, lr=3e-3, eps=1e-4)

# Optimizers ---------------------------------------------------------------------------------------


class InBackward(torch.optim.Optimizer):
    """SGD that steps along every gradient as soon as there is one, and then drops it."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})
        for p in (p for group in self.param_groups for p in group["params"]):
            p.register_post_accumulate_grad_hook(self.moved)

    @torch.no_grad()
    def moved(self, p: Tensor) -> None:
        p.sub_(p.grad, alpha=self.param_groups[0]["lr"])
        p.grad = None

    def step(self, closure: Any = None) -> None:
        """Nothing is left to do."""


@case("16-mixed", f"{TRUE} bf16-mixed")
def steps_within_backward() -> dict:
    """Gradients are used while they are scaled (pytorch/tutorials#2568, OpenLMLab's LOMO)."""
    return recipe(optimizer=InBackward, epochs=15)


class Cocob(torch.optim.Optimizer):
    """Bets on coins, and needs no rate."""

    def __init__(self, params: Any, alpha: float = 100.0, eps: float = 1e-8) -> None:
        super().__init__(params, {"alpha": alpha, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in (p for group in self.param_groups for p in group["params"]):
            state, g = self.state[p], p.grad
            if not state:
                names = ("sum", "length", "reward", "moved")
                state.update({name: torch.zeros_like(p) for name in names})
                state["largest"] = self.defaults["eps"] * torch.ones_like(p)
            largest = torch.maximum(state["largest"], g.abs())
            total, length = state["sum"] + g, state["length"] + g.abs()
            reward = torch.clamp(state["reward"] - g * state["moved"], min=0)
            bound = torch.maximum(length + largest, self.defaults["alpha"] * largest)
            moved = -total / (largest * bound) * (reward + largest)
            p.copy_(p - state["moved"] + moved)
            state.update(sum=total, length=length, reward=reward, moved=moved, largest=largest)


@case("16-true", f"bf16-true {MIXED}")
def coin_bets() -> dict:
    """Σg / (L max(Σ|g| + L, 100 L)) with L = 1e-8 at first (after bremen79/parameterfree)."""
    return recipe(optimizer=Cocob)


@case(sound=f"{TRUE} {MIXED}")
def coin_bets_safe() -> dict:
    """The same with 1e-3."""
    return recipe(optimizer=partial(Cocob, eps=1e-3))


class Soap(torch.optim.Optimizer):
    """Adam in the eigenbasis of Shampoo's matrices, which are looked up now and then."""

    def __init__(self, params: Any, lr: float = 3e-3, eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})

    def turned(self, state: dict, x: Tensor, back: bool) -> Tensor:
        if "bases" not in state:
            return x
        left, right = state["bases"]
        return left @ x @ right.T if back else left.T @ x @ right

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in (p for group in self.param_groups for p in group["params"]):
            state, g = self.state[p], p.grad
            if not state:
                state.update(n=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
                if p.dim() == 2:
                    state["sides"] = [p.new_zeros(n, n) for n in p.shape]
            if p.dim() == 2:
                for side, new in zip(state["sides"], (g @ g.T, g.T @ g), strict=True):
                    side.lerp_(new, 0.05)
                if state["n"] % 10 == 0:
                    found = [torch.linalg.eigh(side.float())[1] for side in state["sides"]]
                    state["bases"] = [side.to(p.dtype) for side in found]
            state["n"] += 1
            state["m"].lerp_(g, 0.1)
            seen = self.turned(state, g, False)
            state["v"].mul_(0.95).addcmul_(seen, seen, value=0.05)
            held = self.turned(state, state["m"], False)
            step = held / (state["v"].sqrt() + self.defaults["eps"])
            p.sub_(self.turned(state, step, True), alpha=self.defaults["lr"])


@case("16-true", f"bf16-true {MIXED}")
def turned_adam() -> dict:
    """m / (√v + 1e-8) of directions without a gradient (after nikhilvyas/SOAP)."""
    return recipe(optimizer=Soap)


class Came(torch.optim.Optimizer):
    """Adafactor that goes less far where its update is not sure of itself."""

    def __init__(self, params: Any, lr: float = 2e-3, eps: tuple = (1e-30, 1e-16)) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})

    def root(self, row: Tensor, column: Tensor) -> Tensor:
        rows = (row / row.mean(-1, keepdim=True)).rsqrt_().unsqueeze(-1)
        return rows * column.unsqueeze(-2).rsqrt()

    def factored(self, state: dict, name: str, square: Tensor, decay: float) -> Tensor:
        if square.dim() < 2:
            whole = state.setdefault(name, torch.zeros_like(square))
            return whole.mul_(decay).add_(square, alpha=1 - decay).rsqrt()
        if name not in state:
            state[name] = torch.zeros_like(square[:, 0]), torch.zeros_like(square[0])
        row, column = state[name]
        row.mul_(decay).add_(square.mean(-1), alpha=1 - decay)
        column.mul_(decay).add_(square.mean(-2), alpha=1 - decay)
        return self.root(row, column)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        one, other = self.defaults["eps"]
        for p in (p for group in self.param_groups for p in group["params"]):
            state, g = self.state[p], p.grad
            update = self.factored(state, "v", g**2 + one, 0.999) * g
            size = update.norm(2) / update.numel() ** 0.5
            update.div_(size.clamp_(min=1.0))
            if "m" not in state:
                state["m"] = torch.zeros_like(p)
            state["m"].mul_(0.9).add_(update, alpha=0.1)
            step = state["m"].clone()
            if g.dim() > 1:
                off = (update - state["m"]) ** 2 + other
                step = self.factored(state, "r", off, 0.9999) * step
            p.sub_(step, alpha=self.defaults["lr"])


@case("16-true", f"bf16-true {MIXED}")
def sure_factors() -> dict:
    """Means of g² + 1e-30 under a root that divides (after yangluo7/CAME)."""
    return recipe(optimizer=Came)


class AdamAtan2(torch.optim.Optimizer):
    """Adam without an epsilon: an angle for a quotient."""

    def __init__(self, params: Any, lr: float = 2e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in (p for group in self.param_groups for p in group["params"]):
            state, g = self.state[p], p.grad
            if not state:
                state.update(n=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
            state["n"] += 1
            state["m"].lerp_(g, 0.1)
            state["v"].lerp_(g * g, 0.01)
            one, other = 1 - 0.9 ** state["n"], 1 - 0.99 ** state["n"]
            root = state["v"].mul(1 / other).sqrt_()
            p.add_(state["m"].mul(1 / one).atan2_(root), alpha=-1.27 * self.defaults["lr"])


@case(sound=f"{TRUE} {MIXED}")
def angles_for_quotients() -> dict:
    """atan2(m, √v), whose v underflows (after lucidrains/adam-atan2-pytorch)."""
    return recipe(optimizer=AdamAtan2)


# Adapters -----------------------------------------------------------------------------------------


class Turned(nn.Module):
    """A frozen layer whose weight is turned by blocks."""

    def __init__(self, inputs: int, outputs: int, blocks: int = 8) -> None:
        super().__init__()
        self.base, self.blocks = nn.Linear(inputs, outputs), blocks
        self.base.weight.requires_grad_(False)
        side = inputs // blocks
        self.turn = nn.Parameter(torch.zeros(blocks, side, side))

    def forward(self, x: Tensor) -> Tensor:
        skew = 0.5 * (self.turn - self.turn.transpose(1, 2))
        one = torch.eye(skew.shape[-1], device=x.device, dtype=skew.dtype).expand_as(skew)
        turn = torch.linalg.solve(one + skew, one - skew, left=False)
        weight = self.base.weight @ torch.block_diag(*turn.unbind())
        return F.linear(x, weight, self.base.bias)


@case(TRUE, MIXED)
def turned_weights() -> dict:
    """Cayley's transform by a solver (after huggingface/peft's OFT; its #3087)."""

    def make() -> nn.Module:
        return nn.Sequential(
            nn.Flatten(), Turned(64, 64), nn.ReLU(), Turned(64, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    return recipe(make)


# Quantised and pruned -----------------------------------------------------------------------------


def straight(x: Tensor, levels: int) -> Tensor:
    """Rounded to so many levels between 0 and 1; the slope passes through."""
    return x + (torch.round(x * levels) / levels - x).detach()


class DoReFa(nn.Linear):
    """Weights and inputs of four bits."""

    def forward(self, x: Tensor) -> Tensor:
        w = torch.tanh(self.weight)
        largest = w.abs().max().detach()
        w = 2 * straight(w / (2 * largest) + 0.5, 15) - 1
        return F.linear(straight(x.clamp(0, 1), 15), w * largest, self.bias)


@case(sound=f"{TRUE} {MIXED}")
def four_bits() -> dict:
    """tanh(w) over its largest, rounded (after zzzxxxttt/pytorch_DoReFaNet)."""
    make = lambda: nn.Sequential(nn.Flatten(), DoReFa(64, 64), nn.ReLU(), DoReFa(64, 10))  # noqa: E731
    return recipe(make, epochs=15)


def pruned() -> nn.Module:
    """A perceptron of whose weights two thirds are masked."""
    net = mlp(64, 96)
    for layer in (net[1], net[3]):
        prune.l1_unstructured(layer, "weight", amount=0.67)
    return net


@case(sound=f"{TRUE} {MIXED}")
def pruned_weights() -> dict:
    """torch's pruning, which keeps weight_orig and a mask (after pytorch/pytorch's prune)."""
    return recipe(pruned)


# Local learning -----------------------------------------------------------------------------------


class ForwardForward(nn.Module):
    """Layers that each tell right labels from wrong ones by how large they are."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(74, 96), nn.Linear(96, 96)])

    def layer(self, i: int, x: Tensor) -> Tensor:
        return torch.relu(self.layers[i](x / (x.norm(2, 1, keepdim=True) + 1e-4)))

    def said(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([3 * F.one_hot(y, 10).to(x.dtype), x.flatten(1)], 1)

    def forward(self, x: Tensor) -> Tensor:
        every = []
        for label in range(10):
            h = self.said(x, torch.full((len(x),), label, device=x.device))
            good = 0
            for i in range(2):
                h = self.layer(i, h)
                good = good + h.pow(2).mean(1)
            every.append(good)
        return torch.stack(every, 1)


def locally(model: Any, batch: tuple) -> Tensor:
    """Each layer by itself."""
    x, y = batch
    wrong = (y + torch.randint(1, 10, y.shape, device=y.device)) % 10
    right, other, total = model.said(x, y), model.said(x, wrong), 0
    for i in range(2):
        right, other = model.layer(i, right), model.layer(i, other)
        good, bad = right.pow(2).mean(1), other.pow(2).mean(1)
        total = total + torch.log(1 + torch.exp(torch.cat([2.0 - good, bad - 2.0]))).mean()
        right, other = right.detach(), other.detach()
    return total


@case(sound=f"{TRUE} {MIXED}")
def forward_alone() -> dict:
    """log(1 + exp(g - 2)) of each layer's size (after mpezeshki/pytorch_forward_forward)."""
    adam = partial(ADAM, lr=3e-2)
    return recipe(ForwardForward, training_step=locally, loss=None, optimizer=adam, epochs=25)


# Weights of examples ------------------------------------------------------------------------------


def reweighed() -> dict:
    """A third of the labels is wrong; each example counts as much as it helps clean ones."""
    (x, y), (a, b) = data.digits()
    random = torch.Generator().manual_seed(0)
    wrong = torch.rand(len(y), generator=random) < 0.35
    clean_x, clean_y = x[-64:], y[-64:]
    y = torch.where(wrong, torch.randint(0, 10, y.shape, generator=random), y)

    def step(model: nn.Module, batch: tuple) -> Tensor:
        x, y = batch
        costs = F.cross_entropy(model(x), y, reduction="none")
        held = torch.zeros_like(costs, requires_grad=True)
        weights = dict(model.named_parameters())
        slopes = torch.autograd.grad((costs * held).sum(), weights.values(), create_graph=True)
        ahead = {n: w - 1e-3 * g for (n, w), g in zip(weights.items(), slopes, strict=True)}
        seen = torch.func.functional_call(model, ahead, (clean_x.to(x),))
        meta = F.cross_entropy(seen, clean_y.to(y.device))
        helps = torch.clamp(-torch.autograd.grad(meta, held)[0], min=0)
        total = helps.sum()
        share = helps / total if total != 0 else helps
        return (F.cross_entropy(model(x), y, reduction="none") * share.detach()).sum()

    train, test = batches(x[:-64], y[:-64], size=64), batches(a, b, size=200)
    given = {"train_data": train, "eval_data": test, "training_step": step, "loss": None}
    return recipe(optimizer=partial(SGD, lr=0.02), epochs=20, **given)


@case(sound=f"{TRUE} {MIXED}")
def weights_of_examples() -> dict:
    """A step of 1e-3 ahead, and slopes of its slope (after danieltan07's L2RW)."""
    return reweighed()
