"""More trainings, written after the gradient check was mended on those of `training`.

They were labelled and committed before it had seen any of them, so its answers here are those it
would give on a stranger's training.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import (
    MIXED,
    SGD,
    TRUE,
    Averaged,
    before,
    case,
    cnn,
    mlp,
    recipe,
    text,
)
from benchmarks.data import batches


@case("16-true", "16-mixed bf16-mixed")
def nadam_epsilon() -> dict:
    """NAdam's eps of 1e-8 in float16."""
    return recipe(optimizer=partial(torch.optim.NAdam, lr=2e-3))


@case("16-true", "bf16-true bf16-mixed")
def adamax_epsilon() -> dict:
    """Adamax's eps of 1e-8 in float16."""
    return recipe(optimizer=partial(torch.optim.Adamax, lr=2e-3))


def values(scale: float, loss, rate: float, **changes) -> dict:
    """Regression on the digit's value."""
    (x, y), (a, b) = data.digits()
    target = lambda y: (y.float().unsqueeze(1) - 4.5) * scale  # noqa: E731
    train, test = batches(x, target(y), size=64), batches(a, target(b), size=200)
    given = {"task": "regression", "loss": loss, "optimizer": partial(SGD, lr=rate), **changes}
    return recipe(lambda: mlp(64, 64, 1), train_data=train, eval_data=test, **given)


@case("16-true", "bf16-true bf16-mixed 16-mixed")
def log_cosh_overflow() -> dict:
    """A log-cosh loss by hand: cosh(12) is infinite in float16."""
    return values(5.0, lambda z, t: torch.log(torch.cosh(z - t)).mean(), 0.05)


@case(sound="16-true bf16-mixed")
def focal_epsilon() -> dict:
    """A focal loss with 1e-8 inside its logarithm, which these probabilities never need."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        p = torch.softmax(3 * z, -1).gather(-1, y[:, None]).squeeze(-1)
        return (-((1 - p) ** 2) * torch.log(p + 1e-8)).mean()

    return recipe(loss=loss, optimizer=partial(SGD, lr=0.05))


@case("16-true", "bf16-mixed")
def pair_distance() -> dict:
    """Distances between all pairs of a batch: the root of 1e-12 has no slope in float16."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        square = (z[:, None] - z[None]).square().sum(-1)
        distance = (square + 1e-12).sqrt()
        other = (y[:, None] != y[None]).to(z.dtype)
        return F.cross_entropy(z, y) + 0.05 * (other * (4 - distance).relu()).mean()

    return recipe(loss=loss)


@case("bf16-true", "bf16-mixed 16-mixed")
def adam_small_rate() -> dict:
    """Adam at a rate below half an ulp of most weights in bfloat16."""
    return recipe(optimizer=partial(torch.optim.Adam, lr=1e-4), size=32, epochs=25)


@case("16-true", "bf16-true bf16-mixed")
def softplus_by_hand() -> dict:
    """log(1 + exp(x)) of activations around 20."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.log(1 + torch.exp(self.first(x.flatten(1)))) / 8)

    return recipe(Net, scale=12.0, optimizer=partial(SGD, lr=0.01))


@case("16-true", "bf16-true bf16-mixed")
def variance_by_sum() -> dict:
    """A variance from a sum of squares over a batch of bright pixels."""

    def standard(x: Tensor) -> Tensor:
        spread = (x * x).sum(0) / len(x)
        return x / (spread + 1).sqrt()

    return recipe(before(standard), scale=255.0)


@case(sound=f"{TRUE} {MIXED}")
def group_norm() -> dict:
    """Convolutions with GroupNorm."""
    make = lambda: nn.Sequential(  # noqa: E731
        *(nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.GroupNorm(2, 16), nn.SiLU()),
        *(nn.Flatten(), nn.Linear(256, 10)),
    )
    return recipe(make, epochs=6, optimizer=partial(SGD, lr=0.05))


@case(sound=f"{TRUE} {MIXED}")
def tanh_network() -> dict:
    """A tanh network with Nesterov momentum and weight decay."""
    make = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))  # noqa: E731
    return recipe(make, optimizer=partial(SGD, nesterov=True, weight_decay=1e-4))


@case(sound=f"{TRUE} {MIXED}")
def rmsprop_safe() -> dict:
    """RMSprop with an epsilon that float16 holds."""
    return recipe(optimizer=partial(torch.optim.RMSprop, lr=1e-3, eps=1e-3))


@case(sound=f"{TRUE} {MIXED}")
def huber() -> dict:
    """A Huber loss."""
    return values(0.35, F.huber_loss, 0.1)


@case(sound="bf16-true bf16-mixed 16-mixed")
def adagrad_default() -> dict:
    """Adagrad where its epsilon is no problem."""
    return recipe(optimizer=partial(torch.optim.Adagrad, lr=1e-2))


@case(sound=f"{TRUE} {MIXED}")
def one_cycle() -> dict:
    """A one-cycle schedule, stepped per step, over a small batch."""
    cycle = lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=600)  # noqa: E731
    return recipe(size=32, scheduler=cycle, scheduler_step="step")


@case(sound="16-true 16-mixed bf16-mixed")
def slow_statistics() -> dict:
    """BatchNorm with a momentum of 0.02, which float16 can follow."""
    return recipe(lambda: cnn(0.02), epochs=10)


@case(sound=f"{TRUE} {MIXED}")
def fast_average() -> dict:
    """An average of weights with decay 0.9."""
    return recipe(lambda: Averaged(0.9))


@case(sound=f"{TRUE} {MIXED}")
def mean_of_words() -> dict:
    """An embedding bag."""

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(1200, 32), nn.Linear(32, 8)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.words(ids).mean(1))

    return text(Bag, optimizer=partial(torch.optim.SGD, lr=0.5, momentum=0.9))
