"""Held-out programs: functions with a gradient of their own, compiled, mapped and shared parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from benchmarks import data
from benchmarks.cases.base import TRUE, Built, built, fitted, healthy, planted


class NormFunction(torch.autograd.Function):
    """Layer norm over channels, with its gradient by hand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        var = (x - mean).pow(2).mean(1, keepdim=True)
        y = (x - mean) / (var + 1e-6).sqrt()
        ctx.save_for_backward(y, var, weight)
        return weight.view(1, -1, 1, 1) * y + bias.view(1, -1, 1, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, var, weight = ctx.saved_tensors
        g = grad * weight.view(1, -1, 1, 1)
        inner = g - y * (g * y).mean(1, keepdim=True) - g.mean(1, keepdim=True)
        return inner / (var + 1e-6).sqrt(), (grad * y).sum((0, 2, 3)), grad.sum((0, 2, 3))


class Norm2d(nn.Module):
    """NAFNet's LayerNorm2d."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.ones(channels)),
            nn.Parameter(torch.zeros(channels)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return NormFunction.apply(x, self.weight, self.bias)


class SquaredNorm(nn.Module):
    """The same as an ordinary module."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        var = (x - mean).pow(2).mean(1, keepdim=True)
        return (x - mean) / (var + 1e-6).sqrt()


class Restore(nn.Module):
    """A convolution on pixels of 0 to 4000, a norm, a head."""

    def __init__(self, norm: nn.Module, recompute: bool = False) -> None:
        super().__init__()
        self.conv, self.norm, self.recompute = nn.Conv2d(1, 16, 3, padding=1), norm, recompute
        self.head = nn.Linear(256, 10)

    def body(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(F.gelu(self.norm(self.conv(x))), 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 4000
        x = checkpoint(self.body, x, use_reentrant=False) if self.recompute else self.body(x)
        return self.head(x.flatten(1))


@planted("overflow", "norm", "pow", fails=("16-true",), family="restoration")
def norm_with_its_own_gradient() -> Built:
    """spandrel#332: (x - mean)² of NAFNet's norm, inside an autograd.Function."""
    train, test = data.digits()
    return built(fitted(lambda: Restore(Norm2d(16)), train), test)


@planted("overflow", "norm", "pow", fails=("16-true",), family="restoration")
def norm_that_is_compiled() -> Built:
    """The same by a module that was compiled in place (spandrel#332)."""
    train, test = data.digits()
    model = fitted(lambda: Restore(SquaredNorm()), train)
    model.norm.compile(backend="eager")
    return built(model, test)


@healthy()
def group_norm_of_large_values() -> Built:
    """brainchop-cli#56: torch's kernel squares in float32; under checkpointing, too."""
    train, test = data.digits()
    return built(fitted(lambda: Restore(nn.GroupNorm(4, 16), recompute=True), train), test)


class Survival(nn.Module):
    """Chance that any word of a text is of a kind: one minus the product of the others."""

    def forward(self, chance: Tensor, text: Tensor, count: Tensor) -> Tensor:
        lost = torch.log1p(-chance.clamp(max=1.0 - 1e-6)).float()
        total = torch.zeros(len(count), lost.shape[-1], device=lost.device)
        total = total.scatter_add(0, text[:, None].expand_as(lost), lost)
        return 1 - torch.exp(total)


class AnyWord(nn.Module):
    """Words by their own chances, all texts of a batch in one row."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.survival = nn.Embedding(1200, 12), Survival()
        self.head = nn.Linear(12, 8)

    def forward(self, ids: Tensor) -> Tensor:
        text = torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids).flatten()
        chance = (self.embed(ids) * 5 - 4 * (1 + (ids == 0)[..., None])).sigmoid().flatten(0, 1)
        any_word = self.survival(chance, text, ids[:, 0])
        return self.head(any_word.to(self.head.weight.dtype))


@healthy()
def logarithm_of_no_survival() -> Built:
    """GLiNER2#155: 1 - 1e-6 is one, the logarithm infinite; forwards, exp makes it zero again."""
    train, test = data.text_split()
    return built(fitted(AnyWord, train, epochs=12), test)


class Hyper(nn.Module):
    """Weights of a small layer for each input, by functional_call under vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.write = nn.Linear(8, 16), nn.Linear(64, 8 * 16)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        own = self.write(x.flatten(1)).view(-1, 16, 8) / 8

        def one(change: Tensor, rows: Tensor) -> Tensor:
            weight = self.layer.weight + change.to(self.layer.weight.dtype)
            return functional_call(self.layer, {"weight": weight, "bias": self.layer.bias}, (rows,))

        return self.head(F.relu(vmap(one)(own, x.squeeze(1))).flatten(1))


@healthy()
def weights_written_per_input() -> Built:
    """A hypernetwork by torch.func, as hypernetworks and MAML are written."""
    train, test = data.digits()
    return built(fitted(Hyper, train), test)


class Growing(nn.Module):
    """One block, used again and again, whose stream doubles at every use."""

    def __init__(self, uses: int) -> None:
        super().__init__()
        self.enter, self.norm, self.uses = nn.Linear(64, 32), nn.LayerNorm(32), uses
        self.block = nn.Sequential(
            nn.LayerNorm(32), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32)
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x.flatten(1)) * 40
        for use in range(self.uses):
            x = x * 2 + self.block(x) * 40 * 2**use
        return self.head(self.norm(x))


@planted("overflow", "", "mul add", fails=("16-true", "16-mixed"), family="recurrent depth")
def block_used_too_often() -> Built:
    """Looped transformers: nine uses are within the range, the tenth and later are not."""
    train, test = data.digits()
    return built(fitted(lambda: Growing(12), train), test)


@healthy()
def block_used_four_times() -> Built:
    """The same four times."""
    train, test = data.digits()
    return built(fitted(lambda: Growing(4), train), test)


class Moments(nn.Module):
    """PNA's aggregation: mean and spread over neighbours, the spread by E[x²] - E[x]²."""

    def forward(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        mean, square = self.mean(x[source], target, x), self.mean(x[source] ** 2, target, x)
        return torch.cat([mean, (F.relu(square - mean * mean) + 1e-5).sqrt()], -1)

    def mean(self, messages: Tensor, target: Tensor, like: Tensor) -> Tensor:
        total = torch.zeros_like(messages[: len(like)]).index_add(0, target, messages)
        count = torch.bincount(target, minlength=len(like)).to(messages.dtype)
        return total / count.view(-1, *[1] * (total.dim() - 1))


class CentredMoments(Moments):
    """The same by what is left after the mean is taken off."""

    def forward(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        mean = self.mean(x[source], target, x)
        square = self.mean((x[source] - mean[target]) ** 2, target, x)
        return torch.cat([mean, (square + 1e-5).sqrt()], -1)


class Aggregated(nn.Module):
    """Pixels as nodes of a grid, with values round 30 that differ by one; read by their spread."""

    def __init__(self, moments: type[Moments]) -> None:
        super().__init__()
        self.moments = moments()
        self.body = nn.Sequential(
            nn.LayerNorm(128), nn.Linear(128, 48), nn.ReLU(), nn.Linear(48, 10)
        )
        place = torch.cartesian_prod(torch.arange(8), torch.arange(8)).float()
        edges = (torch.cdist(place, place) < 1.5).nonzero().T
        self.register_buffer("source", edges[0], persistent=False)
        self.register_buffer("target", edges[1], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        nodes = (x.flatten(1).T + 30).contiguous()
        mean, spread = self.moments(nodes, self.source, self.target).chunk(2, -1)
        return self.body(torch.cat([(mean - 30).T, spread.T], -1))


@planted(
    "cancellation", "moments", "sub index_add", fails=TRUE, also=("precision-loss", "absorption"),
    family="graph",
)  # fmt: skip
def spread_of_neighbours() -> Built:
    """pytorch_geometric's PNA: the difference of two numbers near 900 whose digits are gone.

    In bfloat16 the sums they come from, added one after another, have lost as many.
    """
    train, test = data.digits()
    return built(fitted(lambda: Aggregated(Moments), train), test)
