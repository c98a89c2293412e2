"""What a training counts and keeps, before and after a repair for 16 bits.

As `training_reported_mended`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.training import MIXED, TRUE, case, mlp, recipe


class Routed(nn.Module):
    """Every pixel goes to one expert of four."""

    def __init__(self, widened: bool) -> None:
        super().__init__()
        self.first, self.gate = nn.Linear(1, 16), nn.Linear(16, 4)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.head, self.widened = nn.Linear(1024, 10), widened

    def forward(self, x: Tensor):
        h = self.first(x.flatten(1).unsqueeze(-1)).relu()
        scores = self.gate(h)
        p = (scores.float() if self.widened else scores).softmax(-1)
        best, chosen = p.max(-1, keepdim=True)
        parts = [torch.where(chosen == k, e(h), 0) for k, e in enumerate(self.experts)]
        z = self.head((h + best.to(h.dtype) * sum(parts)).flatten(1))
        return (z, p.flatten(0, 1), chosen.flatten()) if self.training else z


def balanced(out: tuple[Tensor, ...], y: Tensor) -> Tensor:
    """transformers' load_balancing_loss_func with an attention mask: shares of all tokens."""
    z, p, chosen = out
    mask = torch.ones(len(p), 1, device=p.device, dtype=p.dtype)
    used = (F.one_hot(chosen, 4).to(p.dtype) * mask).sum(0) / mask.sum(0)
    shares = (p * mask).sum(0) / mask.sum(0)
    return F.cross_entropy(z, y) + 2 * (used * shares).sum()


@case("16-true", "bf16-true bf16-mixed")
def balanced_tokens() -> dict:
    """76608 tokens are counted in the scores' type (huggingface/transformers#43543)."""
    return recipe(partial(Routed, False), loss=balanced, size=1197, epochs=25)


@case(sound=f"{TRUE} {MIXED}")
def balanced_tokens_widened() -> dict:
    """The same of a softmax in float32, as that proposes."""
    return recipe(partial(Routed, True), loss=balanced, size=1197, epochs=25)


class Shadowed(nn.Module):
    """Is evaluated with an average of its weights that it keeps in a list."""

    def __init__(self, widened: bool) -> None:
        super().__init__()
        self.net, self.widened = mlp(), widened
        self.shadow = [p.detach().clone() for p in self.net.parameters()]

    @torch.no_grad()
    def follow(self) -> None:
        for i, p in enumerate(self.net.parameters()):
            kept = torch.float32 if self.widened else p.dtype
            self.shadow[i] = self.shadow[i].to(kept)
            self.shadow[i] -= 5e-4 * (self.shadow[i] - p.to(kept))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.follow()
            return self.net(x)
        names = [name for name, _ in self.net.named_parameters()]
        held = {n: t.to(x.dtype) for n, t in zip(names, self.shadow, strict=True)}
        return torch.func.functional_call(self.net, held, (x,))


@case("bf16-true", MIXED)
def moving_average() -> dict:
    """An average in the weights' type (before OpenNMT/OpenNMT-py@4c3d9d1)."""
    return recipe(partial(Shadowed, False), epochs=80)


@case(sound=f"{TRUE} {MIXED}")
def moving_average_widened() -> dict:
    """The same in float32 (OpenNMT/OpenNMT-py@4c3d9d1)."""
    return recipe(partial(Shadowed, True), epochs=80)
