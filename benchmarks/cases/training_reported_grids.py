"""Trajectories, splines, schedules, clamps and averages in 16 bits, after what trackers report.

As `training_reported`: written anew, labelled before the check answered, and asked of the judge.
Written after what `training_reported_choices` and its siblings had shown was mended.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe
from benchmarks.cases.training_reported_steps import by_hand, zeros
from benchmarks.data import batches


class Simulated(nn.Module):
    """Where a particle is after twenty small steps of a learned velocity."""

    def __init__(self) -> None:
        super().__init__()
        self.velocity = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 2))

    def forward(self, at: Tensor) -> Tensor:
        place = at
        for _ in range(20):
            place = place + 0.005 * self.velocity(place - 20)
        return (place - at) * 10


@case(TRUE, MIXED)
def rollouts() -> dict:
    """Steps of 0.005 v from a place around 20 (after google-deepmind's learned simulators)."""
    random = torch.Generator().manual_seed(0)
    at = 2 * torch.rand(1000, 2, generator=random) - 1
    place = at.clone()
    for _ in range(20):
        turn = torch.stack([-place[:, 1], place[:, 0]], -1)
        place = place + 0.005 * (3 * turn - place**3)
    aim, at = (place - at) * 10, at + 20
    given = {"train_data": batches(at[:800], aim[:800], size=50), "task": "regression"}
    given["eval_data"] = batches(at[800:], aim[800:], size=200)
    given["optimizer"] = partial(SGD, lr=0.05)
    return recipe(Simulated, loss=F.mse_loss, **given)


class Splines(nn.Module):
    """A layer of learned functions: cubic splines on a grid, by the recursion."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        grid = torch.arange(-3, 9) * 0.4 - 1
        self.register_buffer("grid", grid.expand(inputs, -1).contiguous())
        self.plain = nn.Linear(inputs, outputs)
        self.weight = nn.Parameter(0.05 * torch.randn(outputs, inputs * 8))

    def bases(self, x: Tensor) -> Tensor:
        x, grid = x[..., None], self.grid
        bases = ((x >= grid[:, :-1]) & (x < grid[:, 1:])).to(x.dtype)
        for k in range(1, 4):
            left = (x - grid[:, : -k - 1]) / (grid[:, k:-1] - grid[:, : -k - 1])
            right = (grid[:, k + 1 :] - x) / (grid[:, k + 1 :] - grid[:, 1:-k])
            bases = left * bases[..., :-1] + right * bases[..., 1:]
        return bases

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(F.silu(x)) + F.linear(self.bases(x).flatten(1), self.weight)


@case(sound=f"{TRUE} {MIXED}")
def learned_functions() -> dict:
    """A network of splines (after Blealtan/efficient-kan)."""
    make = lambda: nn.Sequential(nn.Flatten(), Splines(64, 24), Splines(24, 10))  # noqa: E731
    return recipe(make, optimizer=partial(SGD, lr=0.05), epochs=8)


def inside_root(p: Tensor, g: Tensor, state: dict, group: dict) -> None:
    if "v" not in state:
        state["v"] = torch.ones_like(p)
    state["v"].mul_(0.99).addcmul_(g, g, value=0.01)
    p.sub_(group["lr"] * g / (state["v"] + group["eps"]).sqrt())


@case(sound=f"16-true {MIXED}")
def root_with_epsilon() -> dict:
    """TensorFlow's RMSprop: √(v + 1e-5), v = 1 at first (after DLR-RM/stable-baselines3)."""
    return by_hand(inside_root, 5e-2, 1e-5, epochs=15)


def dual_averages(p: Tensor, g: Tensor, state: dict, group: dict) -> None:
    if "k" not in state:
        state["start"], state["k"] = p.detach().clone(), 0
    s, v = zeros(state, p, "s", "v")
    rate = group["lr"] * (state["k"] + 1) ** 0.5
    state["k"] += 1
    s.add_(g, alpha=rate)
    v.addcmul_(g, g, value=rate)
    aim = state["start"] - s / (v.pow(1 / 3) + group["eps"])
    p.mul_(0.9).add_(aim, alpha=0.1)


@case(sound=f"16-true {MIXED}")
def cube_roots() -> dict:
    """MADGRAD: squares that are zero, under a cube root (after facebookresearch/madgrad)."""
    return by_hand(dual_averages, 1e-2, 1e-6)


class Denoised(nn.Module):
    """The noise in a picture, from a prediction of the picture itself."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(65, 128, 64)
        beta = torch.linspace(1e-4, 0.05, 50)
        self.register_buffer("kept", (1 - beta).cumprod(0))

    def forward(self, noised: Tensor, at: Tensor) -> Tensor:
        return self.body(torch.cat([noised, at[:, None].to(noised.dtype) / 50], -1))


@case(TRUE, MIXED)
def first_noise() -> dict:
    """(x - √ā x₀) / √(1 - ā) where ā = 0.9999 is one (after openai/guided-diffusion)."""

    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        (clean, _), _ = batch
        at = torch.randint(0, 50, (len(clean),), device=clean.device)
        noise, kept = torch.randn_like(clean), model.kept[at][:, None]
        noised = kept.sqrt() * clean + (1 - kept).sqrt() * noise
        found = model(noised, at)
        guess = (noised - kept.sqrt() * found) / (1 - kept).sqrt()
        return F.mse_loss(found, clean) + 1e-3 * (guess - noise).square().clamp(max=9).mean()

    (x, _), (a, _) = data.digits()
    x, a = x.flatten(1), a.flatten(1)
    half = torch.full((len(a),), 10)
    noised = a * 0.972 + 0.237 * torch.randn(a.shape, generator=torch.Generator().manual_seed(0))
    given = {"train_data": batches(x, torch.zeros(len(x)).long(), x, size=64), "epochs": 25}
    given["eval_data"] = batches(noised, half, a, size=200)
    given["optimizer"] = partial(SGD, lr=0.1)
    return recipe(Denoised, loss=None, training_step=step, task="regression", **given)


class Clamped(nn.Module):
    """A block whose values are clamped where float16 has lost them, and a norm in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.down(self.up(3000 * x.flatten(1)).relu())
        if h.dtype == torch.float16 and torch.isinf(h).any():
            most = torch.finfo(h.dtype).max - 1000
            h = h.clamp(min=-most, max=most)
        wide = h.float()
        norm = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
        return self.head(norm.to(h.dtype))


@case(sound=f"16-true bf16-true {MIXED}")
def clamped_activations() -> dict:
    """T5's clamp of what is infinite (huggingface/transformers#4586)."""
    return recipe(Clamped, optimizer=partial(SGD, lr=0.02))


class Generated(nn.Module):
    """Weights of the last layer, made by a network from the input's own summary."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.made = nn.Linear(64, 24), nn.Linear(64, 24 * 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return torch.einsum("bi,bio->bo", self.body(x).relu(), self.made(x).view(-1, 24, 10))


@case(sound=f"{TRUE} {MIXED}")
def generated_weights() -> dict:
    """A hypernetwork (after g1910/HyperNetworks)."""
    return recipe(Generated, optimizer=partial(SGD, lr=0.05))


class Slow(torch.optim.SGD):
    """Adds what has not changed about the gradients lately, twice."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in (p for g in self.param_groups for p in g["params"] if p.grad is not None):
            state = self.state[p]
            state["slow"] = p.grad.clone() if "slow" not in state else state["slow"]
            state["slow"].mul_(0.98).add_(p.grad, alpha=0.02)
            p.grad.add_(state["slow"], alpha=2.0)
        super().step()


@case(sound=f"16-true {MIXED}")
def slow_gradients() -> dict:
    """Grokfast's average of gradients (after ironjr/grokfast)."""
    return recipe(optimizer=partial(Slow, lr=0.1))
