"""Held-out sums and products that run along a sequence: gates, decays, rays, hazards."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import ALL, FP16, Built, built, fitted, healthy, planted


class ExponentialGates(nn.Module):
    """xLSTM's scalar cell: exponential gates, a state, and the sum of weights to divide it by."""

    def __init__(self, inputs: int, width: int, stabilised: bool) -> None:
        super().__init__()
        self.gates, self.width = nn.Linear(inputs + width, 4 * width), width
        self.stabilised = stabilised

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), self.width)
        n, m = torch.zeros_like(c), torch.full_like(c, -30.0)
        for step in x.unbind(1):
            z, i, f, o = self.gates(torch.cat([step, h], -1)).chunk(4, -1)
            f = F.logsigmoid(f)
            if self.stabilised:
                before, m = m, torch.maximum(f + m, i)
                keep, write = torch.exp(f + before - m), torch.exp(i - m)
            else:
                keep, write = torch.exp(f), torch.exp(i)
            c = keep * c + write * torch.tanh(z)
            n = keep * n + write
            h = (torch.sigmoid(o) * c / n).to(x.dtype)
        return h


class RowReader(nn.Module):
    """The rows of a digit through the cell, and a head."""

    def __init__(self, stabilised: bool) -> None:
        super().__init__()
        self.cell, self.head = ExponentialGates(8, 32, stabilised), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x.flatten(1, 2)))


def gated(stabilised: bool) -> Built:
    """A common part of 12 in all input gates cancels between state and weights."""
    train, test = data.digits()
    model = fitted(lambda: RowReader(False), train, epochs=30)
    with torch.no_grad():
        model.cell.gates.bias[32:64] += 12
    model.cell.stabilised = stabilised
    return built(model, test)


@planted("overflow", "cell", "exp", fails=("16-true",), fails_cpu=("16-mixed",),
         moot=("bf16-true", "bf16-mixed"), family="gates")  # fmt: skip
def exponential_gates() -> Built:
    """PyxLSTM#15: an sLSTM without its stabilizer state; exp(12) is no float16."""
    return gated(False)


@healthy(precisions=FP16)
def exponential_gates_stabilised() -> Built:
    """PyxLSTM#15's mend: the largest exponent so far is taken off."""
    return gated(True)


class Retention(nn.Module):
    """RetNet's mixing: keys fade by a factor a place."""

    def __init__(self, dim: int, length: int, separate: bool) -> None:
        super().__init__()
        self.qkv, self.separate = nn.Linear(dim, 3 * dim), separate
        self.fade = nn.Parameter(torch.tensor(0.8), requires_grad=False)
        self.register_buffer("places", torch.arange(length), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        distance = self.places[:, None] - self.places
        if self.separate:  # linear in the length: each side carries its own power
            q = q * (self.fade**self.places)[:, None]
            k = k * (self.fade**-self.places)[:, None]
            scores = q @ k.transpose(1, 2) * (distance >= 0)
        else:
            scores = q @ k.transpose(1, 2)
            scores = scores * (self.fade ** distance.clamp(min=0) * (distance >= 0))
        return scores.to(v.dtype) @ v / 8


class PixelSequence(nn.Module):
    """The pixels of a digit one by one, retention over them, a head on the mean."""

    def __init__(self, separate: bool) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(1, 24), nn.Parameter(torch.randn(64, 24) * 0.3)
        self.mix, self.norm = Retention(24, 64, separate), nn.LayerNorm(24)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1).unsqueeze(-1)) + self.place
        return self.head(self.norm(x + self.mix(x)).flatten(1, 1).mean(1))


def retained(separate: bool) -> Built:
    """Trained as it is meant, then written either way."""
    train, test = data.digits()
    model = fitted(lambda: PixelSequence(False), train, epochs=40)
    model.mix.separate = separate
    return built(model, test)


@planted("overflow", "mix", "pow mul bmm matmul _to_copy", fails=FP16, family="decays")
def decays_on_either_side() -> Built:
    """torchscale and fla: 0.8 to the -63 is beyond a million, its partner next to nothing."""
    return retained(True)


@healthy()
def decays_by_distance() -> Built:
    """The same retention with one matrix of powers, none above one."""
    return retained(False)


class Rays(nn.Module):
    """Rows of a digit as rays, pixels as samples: densities, colours, what is seen of them."""

    def __init__(self) -> None:
        super().__init__()
        self.density, self.colour = nn.Linear(1, 1), nn.Linear(9, 8)
        with torch.no_grad():
            self.density.weight.fill_(15.0)
            self.density.bias.fill_(-2.0)
        self.register_buffer("place", torch.eye(8))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1, 2).unsqueeze(-1)
        optical = torch.exp(self.density(x)).squeeze(-1) * 0.125
        before = optical.cumsum(-1) - optical  # of the samples before this one
        weight = torch.exp(-before) * (1 - torch.exp(-optical))
        colour = self.colour(torch.cat([x, self.place.expand(*x.shape[:3], 8)], -1)).sigmoid()
        return (weight.unsqueeze(-1) * colour).sum(2)


class Rendered(nn.Module):
    """Rendered rays from two sides, a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.rays = Rays()
        self.body = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.cat([self.rays(x), self.rays(x.flip(-1))], 1).flatten(1)
        return self.body(seen.to(self.body[0].weight.dtype))


@planted("overflow", "rays", "exp mul cumsum sub", fails=("16-true",), fails_cpu=("16-mixed",),
         moot=("bf16-true", "bf16-mixed"), family="rays")  # fmt: skip
def light_before_a_sample() -> Built:
    """nerfstudio#104 is of its kin: a density of exp(13), and an exclusive sum by a difference."""
    train, test = data.digits()
    return built(fitted(Rendered, train, epochs=30), test)


class Survival(nn.Module):
    """Daily hazards over two years, and the chance to outlive them."""

    def __init__(self, by_product: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 16))
        self.hazards, self.by_product = nn.Linear(16, 720), by_product
        with torch.no_grad():
            self.hazards.bias.fill_(-7.5)

    def forward(self, x: Tensor) -> Tensor:
        z = self.hazards(self.body(x))
        if self.by_product:
            return (1 - torch.sigmoid(z)).cumprod(-1)[:, -1]
        return torch.exp(-F.softplus(z).sum(-1))


def patients(by_product: bool) -> Built:
    """Twelve measurements of 1200 people and how likely each is alive after two years."""
    x = torch.randn(1200, 12, generator=torch.Generator().manual_seed(5))
    y = torch.exp(-torch.exp(0.8 * x[:, 0] - 0.5 * x[:, 1] * x[:, 2] - 0.5))
    model = fitted(lambda: Survival(False), (x[:800], y[:800]), loss=F.mse_loss, epochs=60)
    model.by_product = by_product
    return built(model, (x[800:], y[800:]))


@planted("absorption", "", "rsub cumprod", fails=ALL, task="regression",
         also=("precision-loss", "cancellation"), family="hazards")  # fmt: skip
def survival_by_a_product() -> Built:
    """pycox and discrete-time models: a day's hazard of 0.0005 is lost beside one."""
    return patients(True)


@healthy("regression")
def survival_by_a_sum() -> Built:
    """The same from log(1 - sigmoid(z)) = -softplus(z), summed in one go."""
    return patients(False)
