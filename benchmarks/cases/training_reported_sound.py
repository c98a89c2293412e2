"""Sound recipes that look like what public issue trackers report of 16-bit training.

As `training_reported`: written anew, and labelled by the judge before the gradient check answered.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe
from benchmarks.data import batches


@case(sound=f"{TRUE} {MIXED}")
def variational() -> dict:
    """A variational autoencoder: reparametrised, with its divergence to the standard normal."""
    (x, _), (a, _) = data.digits()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = mlp(64, 64, 32), mlp(16, 64, 64)

        def forward(self, x: Tensor):
            mean, log_var = self.inner(x).chunk(2, -1)
            if not self.training:
                return self.outer(mean)
            z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
            return self.outer(z), mean, log_var

    def loss(out: tuple[Tensor, Tensor, Tensor], t: Tensor) -> Tensor:
        made, mean, log_var = out
        kl = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(-1).mean()
        return (made - t).square().sum(-1).mean() + 0.02 * kl

    train, test = batches(x, x.flatten(1), size=64), batches(a, a.flatten(1), size=200)
    given = {"task": "regression", "loss": loss, "epochs": 30, "optimizer": partial(SGD, lr=0.01)}
    return recipe(Net, train_data=train, eval_data=test, **given)


class Rates(nn.Module):
    """Logarithms of rates while training, rates after."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(64, 48, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if self.training else self.body(x).exp()


@case(sound=f"16-true {MIXED}")
def poisson() -> dict:
    """Counts of ink: exp(z) - t z."""
    (x, _), (a, _) = data.digits()
    count = lambda x: x.flatten(1) * 16  # noqa: E731
    train, test = batches(x, count(x), size=64), batches(a, count(a), size=200)
    given = {"loss": F.poisson_nll_loss, "optimizer": partial(SGD, lr=0.005), "epochs": 15}
    return recipe(Rates, task="regression", train_data=train, eval_data=test, **given)


@case(sound=f"{TRUE} {MIXED}")
def gradient_penalty() -> dict:
    """R1: the squared gradient of the right logits with respect to the input is added."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x: Tensor):
            if not self.training:
                return self.body(x)
            x = x.detach().requires_grad_(True)
            return self.body(x), x

    def loss(out: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
        z, x = out
        right = z.gather(-1, y[:, None]).sum()
        (slope,) = torch.autograd.grad(right, x, create_graph=True)
        return F.cross_entropy(z, y) + 0.005 * slope.flatten(1).square().sum(-1).mean()

    return recipe(Net, loss=loss)


@case(sound=f"{TRUE} {MIXED}")
def mixture_of_experts() -> dict:
    """Top-1 routing with a balance loss and a z-loss on the router."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(64, 4)
            self.experts = nn.ModuleList(mlp(64, 32, 10) for _ in range(4))

        def forward(self, x: Tensor):
            x = x.flatten(1)
            scores = self.router(x)
            gate, choice = scores.softmax(-1).max(-1)
            every = torch.stack([e(x) for e in self.experts], 1)
            z = every[torch.arange(len(x)), choice] * (0.5 + gate[:, None])
            if not self.training:
                return z
            share = F.one_hot(choice, 4).to(scores.dtype).mean(0)
            balance = 4 * (share * scores.softmax(-1).mean(0)).sum()
            return z, balance, scores.logsumexp(-1).square().mean()

    def loss(out: tuple[Tensor, Tensor, Tensor], y: Tensor) -> Tensor:
        return F.cross_entropy(out[0], y) + 0.01 * out[1] + 0.001 * out[2]

    return recipe(Net, loss=loss, epochs=12, optimizer=partial(SGD, lr=0.05))


class Adapted(nn.Module):
    """A frozen layer with an adapter of low rank that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(64, 64).requires_grad_(False)
        self.down, self.up = nn.Linear(64, 8, bias=False), nn.Linear(8, 64, bias=False)
        nn.init.zeros_(self.up.weight)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.head(torch.relu(self.base(x) + 2 * self.up(self.down(x))))


@case(sound=f"{TRUE} {MIXED}")
def low_rank_adapter() -> dict:
    """LoRA: the first gradient of one factor is exactly zero."""
    return recipe(Adapted, optimizer=partial(SGD, lr=0.05))


class Gated(nn.Module):
    """A residual block whose gate starts at zero, and rounded activations passed straight."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.gate = mlp(64, 64, 64), nn.Parameter(torch.zeros(()))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        h = (x + self.gate * self.body(x)).clamp(0, 1)
        return self.head(h + ((h * 15).round() / 15 - h).detach())


@case(sound=f"{TRUE} {MIXED}")
def straight_through() -> dict:
    """Quantisation-aware: activations are rounded to sixteen steps."""
    return recipe(Gated, optimizer=partial(SGD, lr=0.05))


@case(sound=f"{TRUE} {MIXED}")
def contrastive() -> dict:
    """Cosine logits at a learned temperature that starts at 0.07 and is held below 100."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.kinds = mlp(64, 64, 32), nn.Parameter(torch.randn(10, 32))
            self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

        def forward(self, x: Tensor) -> Tensor:
            a, b = F.normalize(self.body(x), dim=-1), F.normalize(self.kinds, dim=-1)
            return self.scale.exp().clamp(max=100) * a @ b.T

    return recipe(Net, optimizer=partial(SGD, lr=0.01))


@case(sound=f"{TRUE} {MIXED}")
def lovasz() -> dict:
    """A Lovász hinge over the sorted errors of each image."""
    (x, _), (a, _) = data.digits()
    ink = lambda x: (x.flatten(1) > 0.5).float()  # noqa: E731

    def loss(z: Tensor, t: Tensor) -> Tensor:
        error, order = (1 - z * (2 * t - 1)).sort(-1, descending=True)
        t = t.gather(-1, order)
        whole = t.sum(-1, keepdim=True)
        jaccard = 1 - (whole - t.cumsum(-1)) / (whole + (1 - t).cumsum(-1))
        step = torch.cat([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], -1)
        return (error.relu() * step.detach()).sum(-1).mean()

    train, test = batches(x, ink(x), size=64), batches(a, ink(a), size=200)
    given = {"task": "multilabel", "loss": loss, "optimizer": partial(SGD, lr=0.05)}
    return recipe(lambda: mlp(64, 32, 64), train_data=train, eval_data=test, **given)


@case(sound=f"{TRUE} {MIXED}")
def spectral() -> dict:
    """Spectral and weight normalisation, and clipping."""

    def make() -> nn.Module:
        first = nn.utils.parametrizations.spectral_norm(nn.Linear(64, 64))
        last = nn.utils.parametrizations.weight_norm(nn.Linear(64, 10))
        return nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)

    return recipe(make, clip_grad_norm=1.0)


@case(sound=f"{TRUE} {MIXED}")
def recurrent() -> dict:
    """A GRU over the rows of the image."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.GRU(8, 48, batch_first=True), nn.Linear(48, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x.squeeze(1))[0][:, -1])

    return recipe(Net, clip_grad_norm=1.0, epochs=12)
