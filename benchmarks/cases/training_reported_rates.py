"""Optimizers and averages by hand in 16 bits, after what issue trackers report.

As `training_reported`: written anew, labelled before the check answered, and asked of the judge.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe

# Optimizers ---------------------------------------------------------------------------------------


class AdaBound(torch.optim.Optimizer):
    """Adam whose rates are held within bounds that draw together."""

    def __init__(self, params: Any, lr: float = 1e-3, final: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "final": final})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in (p for group in self.param_groups for p in group["params"]):
            state, g = self.state[p], p.grad
            if not state:
                state.update(n=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
            state["n"] += 1
            state["m"].mul_(0.9).add_(g, alpha=0.1)
            state["v"].mul_(0.999).addcmul_(g, g, value=0.001)
            one, other = 1 - 0.9 ** state["n"], 1 - 0.999 ** state["n"]
            final = self.defaults["final"]
            low = final * (1 - 1 / (1e-3 * state["n"] + 1))
            high = final * (1 + 1 / (1e-3 * state["n"]))
            denominator = state["v"].sqrt().add_(1e-8)
            rate = torch.full_like(denominator, self.defaults["lr"] * other**0.5 / one)
            p.sub_(rate.div_(denominator).clamp_(low, high).mul_(state["m"]))


@case(sound=f"{TRUE} {MIXED}")
def bounded_rates() -> dict:
    """rate / (√v + 1e-8), infinite where v is zero, and clamped (after Luolc/AdaBound)."""
    return recipe(optimizer=partial(AdaBound, lr=5e-3))


class NovoGrad(torch.optim.Optimizer):
    """Momentum over each layer's own length of gradient."""

    def __init__(self, params: Any, lr: float = 0.02, eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in (p for group in self.param_groups for p in group["params"]):
            state, length = self.state[p], p.grad.pow(2).sum()
            if not state:
                state.update(m=torch.zeros_like(p), v=length.clone())
            state["v"].mul_(0.98).add_(length, alpha=0.02)
            state["m"].mul_(0.9).add_(p.grad / (state["v"].sqrt() + self.defaults["eps"]))
            p.sub_(state["m"], alpha=self.defaults["lr"])


def headed() -> nn.Module:
    """A perceptron whose last layer starts at zero."""
    net = mlp()
    nn.init.zeros_(net[3].weight)
    return net


@case("16-true", f"bf16-true {MIXED}")
def lengths_of_layers() -> dict:
    """g / (√v + 1e-8) below a head that starts at zero (after NVIDIA's NovoGrad)."""
    return recipe(headed, optimizer=NovoGrad)


@case(sound=f"{TRUE} {MIXED}")
def lengths_of_layers_safely() -> dict:
    """The same with 1e-4."""
    return recipe(headed, optimizer=partial(NovoGrad, eps=1e-4))


class Apollo(torch.optim.Optimizer):
    """Gradients scaled by column as Adam would scale a random projection of them."""

    def __init__(self, params: Any, lr: float = 5e-3, rank: int = 8) -> None:
        super().__init__(params, {"lr": lr, "rank": rank})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in (p for group in self.param_groups for p in group["params"]):
            state, g = self.state[p], p.grad
            low = p.dim() == 2 and min(p.shape) > self.defaults["rank"]
            if not state:
                random = torch.Generator().manual_seed(p.numel())
                drawn = torch.randn(self.defaults["rank"], len(p), generator=random)
                state["to"] = (drawn / self.defaults["rank"] ** 0.5).to(p)
            seen = state["to"] @ g if low else g
            if "m" not in state:
                state.update(m=torch.zeros_like(seen), v=torch.zeros_like(seen))
            state["m"].mul_(0.9).add_(seen, alpha=0.1)
            state["v"].mul_(0.999).addcmul_(seen, seen, value=0.001)
            scaled = state["m"] / (state["v"].sqrt() + 1e-6)
            if low:
                scaled = g * (scaled.norm(dim=0) / (seen.norm(dim=0) + 1e-8))
            p.sub_(scaled, alpha=self.defaults["lr"])


@case("16-true", f"bf16-true {MIXED}")
def scales_of_columns() -> dict:
    """|update| / (|g| + 1e-8) of pixels that are never lit (after zhuhanqing/APOLLO)."""
    return recipe(optimizer=Apollo)


# Averages -----------------------------------------------------------------------------------------


class LitEma(nn.Module):
    """Is evaluated with an average of its weights, whose decay is a buffer."""

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.body, self.mean = mlp(), mlp().requires_grad_(False)
        self.mean.load_state_dict(self.body.state_dict())
        self.register_buffer("decay", torch.tensor(decay))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.mean(x)
        with torch.no_grad():
            lost = 1.0 - self.decay
            for kept, new in zip(self.mean.parameters(), self.body.parameters(), strict=True):
                kept.sub_(lost * (kept - new))
        return self.body(x)


@case("bf16-true", MIXED)
def decay_in_a_buffer() -> dict:
    """A decay of 0.999 that is one in bfloat16 (after CompVis/latent-diffusion's LitEma)."""
    return recipe(partial(LitEma, 0.999), size=8, epochs=25, optimizer=partial(SGD, lr=0.02))
