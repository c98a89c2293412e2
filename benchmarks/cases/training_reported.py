"""Losses and models after what public issue trackers report of 16-bit training, with sound twins.

Written anew from the mechanism alone, small, and labelled by `benchmarks.cases.training_judge`
before the gradient check had answered; where the judge was near the edge no label is claimed. The
kinds of report: `F.normalize` of zeros, advantages over their spread, scores over their range, a
clamp or an exponent beyond the format, times cast to the model's type; in
`training_reported_steps` optimizers written by hand and averages, in `training_reported_sound`
recipes that are sound.

The gradient check's first look at the 147 pairs was right on 137: eight failures were missed and
two pairs flagged for nothing. Its answers to seven of the eight were mended after they were seen:
the copy of an optimizer by hand had lost its attributes (four), and what fails late was not looked
for (three). Left as they were: `slow_target` at 16-true, whose average stalls late, and
`straight_through` at both true precisions, flagged for the gradient of one gate.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe, text
from benchmarks.cases.training_heldout import values
from benchmarks.data import batches

# Guards that round to zero ------------------------------------------------------------------------


class UnitWords(nn.Module):
    """Words of unit length, averaged; padding is a row of zeros."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(1200, 32, padding_idx=0), nn.Linear(32, 8)
        self.eps = eps

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(F.normalize(self.words(ids), dim=-1, eps=self.eps).sum(1))


@case("16-true", "16-mixed bf16-mixed")
def normalised_padding() -> dict:
    """F.normalize of a row of zeros at its default eps of 1e-12."""
    rate = partial(torch.optim.SGD, lr=0.5, momentum=0.9)
    return text(lambda: UnitWords(1e-12), optimizer=rate)


@case(sound=f"16-true {MIXED}")
def normalised_padding_safe() -> dict:
    """The same at an eps that float16 holds."""
    rate = partial(torch.optim.SGD, lr=0.5, momentum=0.9)
    return text(lambda: UnitWords(1e-3), optimizer=rate)


def advantages(reward, eps: float = 1e-8, epochs: int = 15) -> dict:
    """Policy gradient: log-probabilities weighted with rewards normalised over the batch."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        chosen = F.log_softmax(z, -1).gather(-1, y[:, None]).squeeze(-1)
        r = reward(z.detach(), y)
        advantage = (r - r.mean()) / (r.std() + eps)
        return -(chosen + 0.1 * advantage * chosen).mean()

    return recipe(loss=loss, epochs=epochs)


def right(z: Tensor, y: Tensor) -> Tensor:
    return (z.argmax(-1) == y).to(z.dtype)


@case("16-true", "bf16-true bf16-mixed")
def advantage_of_the_solved() -> dict:
    """Advantages over std + 1e-8, of a reward that becomes the same for all once they are right."""
    return advantages(right)


@case(sound=f"{TRUE} {MIXED}")
def advantage_safe() -> dict:
    """The same over std + 1e-4."""
    return advantages(right, 1e-3)


@case(sound=f"{TRUE} {MIXED}")
def advantage_alive() -> dict:
    """Advantages over std + 1e-8 of a reward that always varies."""
    return advantages(lambda z, y: z.gather(-1, y[:, None]).squeeze(-1))


@case("16-true", "bf16-true 16-mixed bf16-mixed")
def tied_scores() -> dict:
    """Patches over (max - min + 1e-8): blank ones are 0/0 in float16."""
    (x, y), (a, b) = data.digits()

    def patches(x: Tensor) -> Tensor:
        return F.unfold(x, 4, stride=4).transpose(1, 2)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, p: Tensor) -> Tensor:
            low, high = p.amin(1, keepdim=True), p.amax(1, keepdim=True)
            return self.body((p - low) / (high - low + 1e-8))

    train, test = batches(patches(x), y, size=64), batches(patches(a), b, size=200)
    return recipe(Net, train_data=train, eval_data=test)


@case("16-true bf16-true bf16-mixed")
def clamped_survival() -> dict:
    """log1p(-p) of p clamped to 1 - 1e-6, which is 1 in 16 bits."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        p, t = torch.sigmoid(4 * z), F.one_hot(y, 10).to(z.dtype)
        off = torch.log1p(-p.clamp(max=1 - 1e-6))
        return -(t * p.clamp(min=1e-6).log() + (1 - t) * off).mean()

    return recipe(loss=loss, epochs=15)


@case(sound=f"{TRUE} {MIXED}")
def clamped_survival_safe() -> dict:
    """The same clamped to 1 - 2^-8."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        p, t = torch.sigmoid(z), F.one_hot(y, 10).to(z.dtype)
        off = torch.log1p(-p.clamp(max=1 - 2**-8))
        return -(t * p.clamp(min=2**-8).log() + (1 - t) * off).mean()

    return recipe(loss=loss)


@case("16-true", "bf16-mixed")
def shrinking_variance() -> dict:
    """A Gaussian likelihood with var + 1e-8 of pixels that never vary: var goes to zero."""
    (x, _), (a, _) = data.digits()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.log_var = mlp(64, 32, 64), nn.Parameter(torch.zeros(64))

        def forward(self, x: Tensor):
            mean = self.body(x)
            return (mean, self.log_var) if self.training else mean

    def loss(out: tuple[Tensor, Tensor], t: Tensor) -> Tensor:
        mean, log_var = out
        var = log_var.exp() + 1e-8
        return 0.5 * ((t - mean).square() / var + var.log()).mean()

    train, test = batches(x, x.flatten(1), size=64), batches(a, a.flatten(1), size=200)
    adam = partial(torch.optim.Adamax, lr=0.02, eps=1e-4)
    given = {"task": "regression", "loss": loss, "optimizer": adam, "epochs": 60}
    return recipe(Net, train_data=train, eval_data=test, **given)


@case("16-true bf16-true")
def focal_root() -> dict:
    """A focal loss with gamma 0.5: the root of 1 - p has no slope where p has rounded to 1."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        p = torch.softmax(z, -1).gather(-1, y[:, None]).squeeze(-1)
        return (-((1 - p) ** 0.5) * torch.log(p + 1e-4)).mean()

    return recipe(loss=loss, epochs=20)


# Range --------------------------------------------------------------------------------------------


@case("16-true", "bf16-true bf16-mixed")
def policy_divergence() -> dict:
    """exp(r) - r - 1 of log-ratios clamped to 20: exp(20) is infinite in float16."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        r = (-math.log(10) - F.log_softmax(z, -1)).clamp(-20, 20)
        return F.cross_entropy(z, y) + 1e-6 * (r.exp() - r - 1).mean()

    return recipe(loss=loss, scale=8.0, optimizer=partial(SGD, lr=0.02))


@case("16-true", "bf16-true bf16-mixed")
def clamp_after_exp() -> dict:
    """log(1 + clamp(exp(z), max=1e8)): the exponential overflows before it is clamped."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            soft = torch.log(1 + self.first(x.flatten(1)).exp().clamp(max=1e8))
            return self.last(soft / 8)

    return recipe(Net, scale=12.0, optimizer=partial(SGD, lr=0.01))


class Priced(nn.Module):
    """Prices in their own units."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(64, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * 3e4


@case("16-true 16-mixed", "bf16-true bf16-mixed")
def prices() -> dict:
    """Targets of up to 270 000, which float16 does not have."""
    loss = lambda z, t: F.smooth_l1_loss(z / 3e4, t / 3e4)  # noqa: E731
    return {**values(3e4, loss, 0.05), "model": Priced}


@case("bf16-true", "16-true 16-mixed bf16-mixed")
def time_in_the_models_type() -> dict:
    """Steps of 0 to 1000 cast to the model's type before their sinusoids."""
    random = torch.Generator().manual_seed(0)
    steps = torch.randint(0, 1000, (3000,), generator=random)
    label = ((steps // 2) % 2).long()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("rates", math.pi * torch.tensor([0.25, 0.5, 1.0, 0.125]))
            self.body = mlp(8, 64, 2)

        def forward(self, t: Tensor) -> Tensor:
            angle = t.to(self.body[1].weight.dtype)[:, None].remainder(16) * self.rates
            return self.body(torch.cat([angle.sin(), angle.cos()], -1))

    train = batches(steps[:2400], label[:2400], size=64)
    test = batches(steps[2400:], label[2400:], size=200)
    return recipe(Net, train_data=train, eval_data=test)
