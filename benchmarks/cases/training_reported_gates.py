"""Gates, keys, drawn and modulated weights in 16 bits, after what issue trackers report.

As `training_reported`: written anew, labelled before the check answered, and asked of the judge.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe
from benchmarks.data import batches

ADAM = partial(torch.optim.Adam, lr=1e-2, eps=1e-4)

# Recurrences --------------------------------------------------------------------------------------


class RealGates(nn.Module):
    """A gated linear recurrence over the rows of a picture; what is kept and added has length 1."""

    def __init__(self, added: Callable[[Tensor], Tensor], width: int = 32) -> None:
        super().__init__()
        self.row, self.gates = nn.Linear(8, width), nn.Linear(8, 2 * width)
        kept = torch.rand(width) * 0.099 + 0.9
        self.rate = nn.Parameter(torch.log(torch.expm1(-kept.log() / 8)))
        self.head, self.added = nn.Linear(width, 10), added

    def forward(self, x: Tensor) -> Tensor:
        state: Any = 0.0
        for row in x.squeeze(1).unbind(1):
            keep, take = self.gates(4 * row).sigmoid().chunk(2, -1)
            log_a = -8 * F.softplus(self.rate) * keep
            state = log_a.exp() * state + self.added(log_a) * take * self.row(4 * row)
        return self.head(state)


@case(TRUE, MIXED)
def real_gates() -> dict:
    """√(1 - a²) of an a that is one (after google-deepmind/recurrentgemma's RG-LRU)."""
    return recipe(partial(RealGates, lambda a: (1 - a.exp().square()).sqrt()), optimizer=ADAM)


class BoundedRoot(torch.autograd.Function):
    """A root whose slope is at most a thousand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sqrt()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad / (4 * x).clamp(min=1e-6).sqrt()


@case("bf16-true", f"16-true {MIXED}")
def real_gates_bounded() -> dict:
    """The same with a root of bounded slope, as that repository has it."""
    added = lambda a: BoundedRoot.apply(1 - a.exp().square())  # noqa: E731
    return recipe(partial(RealGates, added), optimizer=ADAM)


class WeightedKeys(nn.Module):
    """RWKV's mixing of values by keys that fade, over the rows of a picture."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.key, self.value, self.taken = (nn.Linear(8, width) for _ in range(3))
        self.decay, self.first = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        k, v = (part(4 * x.squeeze(1)) for part in (self.key, self.value))
        fade = -self.decay.exp()
        above, below = torch.zeros_like(k[:, 0]), torch.zeros_like(k[:, 0])
        most = torch.zeros_like(k[:, 0]) - 1e38
        for key, value in zip(k.unbind(1), v.unbind(1), strict=True):
            top = torch.maximum(most, self.first + key)
            old, new = (most - top).exp(), (self.first + key - top).exp()
            out = (old * above + new * value) / (old * below + new)
            top = torch.maximum(most + fade, key)
            old, new = (most + fade - top).exp(), (key - top).exp()
            above, below, most = old * above + new * value, old * below + new, top
        return self.head(self.taken(x.squeeze(1)[:, -1]).sigmoid() * out)


@case(sound=f"{TRUE} {MIXED}")
def weighted_keys() -> dict:
    """A largest exponent of -1e38 at first, which is -inf (after BlinkDL/RWKV-LM)."""
    return recipe(WeightedKeys, optimizer=ADAM)


# Drawn weights ------------------------------------------------------------------------------------


class Sparse(nn.Module):
    """A layer whose weights are noisy, so much the more where they count for nothing."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.randn(outputs, inputs) * 0.05)
        self.log_sigma = nn.Parameter(torch.full((outputs, inputs), -5.0))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.linear(x, self.mean, self.bias)
        mean = F.linear(x, self.mean, self.bias)
        spread = torch.sqrt(1e-4 + F.linear(x * x, torch.exp(2 * self.log_sigma)))
        return mean + spread * torch.randn_like(mean)

    def divergence(self) -> Tensor:
        """From a prior that is flat in the logarithm, nearly."""
        log_alpha = 2 * self.log_sigma - torch.log(self.mean * self.mean + 1e-8)
        near = 0.63576 * torch.sigmoid(1.8732 + 1.48695 * log_alpha)
        return 0.63576 - (near - 0.5 * torch.log1p(torch.exp(-log_alpha))).mean()


@case("16-true", f"bf16-true {MIXED}")
def sparse_weights() -> dict:
    """log(w² + 1e-8) of weights near zero (after senya-ashukha/sparse-vd-pytorch)."""

    def step(model: nn.Module, batch: tuple) -> Tensor:
        x, y = batch
        penalty = sum(m.divergence() for m in model if isinstance(m, Sparse))
        return F.cross_entropy(model(x), y) + 0.05 * penalty

    def make() -> nn.Module:
        return nn.Sequential(nn.Flatten(), Sparse(64, 64), nn.ReLU(), Sparse(64, 10))

    return recipe(make, training_step=step, loss=None)


class Concrete(nn.Module):
    """Dropout whose share is learned: a relaxed coin for every value."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor([-2.0]))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        p, u, eps = self.logit.sigmoid(), torch.rand_like(x), 1e-7
        odds = torch.log(p + eps) - torch.log(1 - p + eps) + torch.log(u + eps)
        dropped = ((odds - torch.log(1 - u + eps)) / 0.1).sigmoid()
        return x * (1 - dropped) / (1 - p)


@case(sound=f"{TRUE} {MIXED}")
def learned_dropout() -> dict:
    """log(u + 1e-7) of drawn numbers that may be zero (after yaringal/ConcreteDropout)."""

    def step(model: nn.Module, batch: tuple) -> Tensor:
        x, y = batch
        p = model[2].logit.sigmoid()
        surprise = p * torch.log(p) + (1 - p) * torch.log(1 - p)
        return F.cross_entropy(model(x), y) + 0.1 * surprise.sum()

    def make() -> nn.Module:
        return nn.Sequential(mlp(64, 96, 64), nn.ReLU(), Concrete(), nn.Linear(64, 10))

    return recipe(make, training_step=step, loss=None)


# Modulated weights --------------------------------------------------------------------------------


class Modulated(nn.Module):
    """A convolution whose weights are scaled by a style for each picture, and unscaled by size."""

    def __init__(self, prepared: bool, channels: int = 96) -> None:
        super().__init__()
        self.first, self.style = nn.Conv2d(1, channels, 3, padding=1), nn.Linear(1, channels)
        self.weight = nn.Parameter(torch.randn(4, channels, 3, 3))
        self.last, self.prepared = nn.Conv2d(4, 1, 3, padding=1), prepared
        nn.init.normal_(self.style.weight, std=10)

    def forward(self, x: Tensor, ink: Tensor) -> Tensor:
        h, style, w = self.first(x).relu(), self.style(ink) + 1, self.weight
        if self.prepared:
            w = w / (w[0].numel() ** 0.5 * w.detach().abs().amax((1, 2, 3), keepdim=True))
            style = style / style.detach().abs().amax(1, keepdim=True).clamp(min=1e-2)
        w = w[None] * style[:, None, :, None, None]
        w = w * (w.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        n, out, *rest = w.shape
        h = F.conv2d(h.reshape(1, -1, 8, 8), w.reshape(-1, *rest), padding=1, groups=n)
        return self.last(h.view(n, out, 8, 8).relu()).squeeze(1)


def modulated(prepared: bool) -> dict:
    """Pictures that are to become brighter or darker as a number says."""
    (x, _), (a, _) = data.digits()
    random = torch.Generator().manual_seed(0)
    more, other = (torch.rand(len(v), 1, generator=random) + 0.5 for v in (x, a))
    train = batches(x[:600], more[:600], (x * more[..., None, None]).squeeze(1)[:600], size=50)
    test = batches(a[:300], other[:300], (a * other[..., None, None]).squeeze(1)[:300])
    given = {"train_data": train, "eval_data": test, "loss": F.mse_loss, "task": "regression"}
    sgd = partial(SGD, lr=0.05)
    return recipe(partial(Modulated, prepared), epochs=8, optimizer=sgd, **given)


@case("16-true", f"bf16-true {MIXED}")
def modulated_weights() -> dict:
    """√(Σw² + 1e-8) of 864 styled weights (after NVlabs/stylegan2-ada-pytorch without its care)."""
    return modulated(False)


@case(sound=f"{TRUE} {MIXED}")
def modulated_weights_prepared() -> dict:
    """The same over the largest weight and style first, as that repository does in float16."""
    return modulated(True)
