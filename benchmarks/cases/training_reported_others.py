"""More recipes after what public issue trackers report of 16-bit training, with sound twins.

As `training_reported`: written anew, and labelled by the judge before the gradient check answered.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, SGD, TRUE, By, case, mlp, recipe
from benchmarks.data import batches


def quotient(z: Tensor, t: Tensor, eps: float) -> Tensor:
    noise = (z - t).square().sum(-1)
    return -torch.log10(t.square().sum(-1) / (noise + eps) + eps).mean()


def difference(z: Tensor, t: Tensor, eps: float) -> Tensor:
    signal, noise = t.square().sum(-1), (z - t).square().sum(-1)
    return (torch.log10(noise + eps) - torch.log10(signal + eps)).mean()


def silent(loss, eps: float) -> dict:
    (x, _), (a, _) = data.digits()
    rows = lambda x: x.reshape(-1, 8)  # noqa: E731
    train, test = batches(rows(x), rows(x), size=256), batches(rows(a), rows(a), size=800)
    given = {"task": "regression", "loss": partial(loss, eps=eps), "epochs": 15}
    given |= {"train_data": train, "eval_data": test, "clip_grad_norm": 1.0}
    return recipe(lambda: mlp(8, 32, 8), optimizer=partial(SGD, lr=0.02), **given)


@case("16-true", f"bf16-true {MIXED}")
def signal_to_noise() -> dict:
    """A signal-to-noise ratio over 1e-8 of rows that are silent (csteinmetz1/auraloss#25)."""
    return silent(quotient, 1e-8)


@case("16-true", f"bf16-true {MIXED}")
def signal_over_noise() -> dict:
    """The same over 1e-3: the slope of the quotient is as large as one over its square."""
    return silent(quotient, 1e-3)


@case(sound=f"{TRUE} {MIXED}")
def signal_to_noise_safe() -> dict:
    """The same over 1e-3, as a difference of logarithms."""
    return silent(difference, 1e-3)


@case("bf16-true")
def spectrum() -> dict:
    """A loss on the spectrum: no Fourier transform in bfloat16 (pytorch/pytorch#117844)."""
    (x, _), (a, _) = data.digits()
    loss = lambda z, t: (torch.fft.rfft(z) - torch.fft.rfft(t)).abs().mean()  # noqa: E731
    train, test = batches(x, x.flatten(1), size=64), batches(a, a.flatten(1), size=200)
    given = {"task": "regression", "loss": loss, "train_data": train, "eval_data": test}
    return recipe(lambda: mlp(64, 48, 64), optimizer=partial(SGD, lr=0.02), epochs=40, **given)


@case(sound=f"16-true {MIXED}")
def own_weights() -> dict:
    """Two tasks weighed by learned log-variances: exp(-s) loss + s."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.spread = mlp(64, 64, 11), nn.Parameter(torch.zeros(2))

        def forward(self, x: Tensor):
            z = self.body(x)
            return (z, self.spread, x) if self.training else z[:, :10]

    def loss(out: tuple[Tensor, Tensor, Tensor], y: Tensor) -> Tensor:
        z, s, x = out
        s = s.clamp(min=-2)
        ink = F.mse_loss(z[:, 10], x.flatten(1).mean(-1))
        return (-s[0]).exp() * F.cross_entropy(z[:, :10], y) + (-s[1]).exp() * ink + s.sum()

    return recipe(Net, loss=loss, optimizer=partial(SGD, lr=0.005), epochs=25)


@case(sound=f"{TRUE} {MIXED}")
def levels() -> dict:
    """Ordinal regression: one logistic per level."""
    (x, y), (a, b) = data.digits()
    above = lambda y: (y[:, None] > torch.arange(9)).float()  # noqa: E731
    train, test = batches(x, above(y), size=64), batches(a, above(b), size=200)
    given = {"task": "multilabel", "loss": F.binary_cross_entropy_with_logits}
    make = lambda: nn.Sequential(mlp(64, 48, 9), By(torch.clone))  # noqa: E731
    return recipe(make, train_data=train, eval_data=test, **given)


class Whitened(nn.Module):
    """Features times the inverse root of their covariance."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = mlp(64, 64, 16), nn.Linear(16, 10)
        self.register_buffer("root", torch.eye(16))
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        if self.training:
            mean = h.mean(0)
            h = h - mean
            root = torch.linalg.cholesky(h.T @ h / len(h) + 0.1 * torch.eye(16).to(h))
            self.root.lerp_(root.detach().to(self.root), 0.1)
            self.mean.lerp_(mean.detach().to(self.mean), 0.1)
        else:
            h, root = h - self.mean, self.root
        return self.head(torch.linalg.solve_triangular(root, h.T, upper=False).T)


@case(TRUE)
def whitened() -> dict:
    """Decorrelated features: no Cholesky in 16 bits (desy-ml/cheetah#484)."""
    return recipe(Whitened, optimizer=partial(SGD, lr=0.05), epochs=20)


class Still(nn.Module):
    """A layer repeated until it moves no more, or twelve times."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.inject, self.head = nn.Linear(32, 32), nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        inject = self.inject(x.flatten(1))
        h = torch.zeros_like(inject)
        for _ in range(12):
            new = torch.tanh(0.5 * self.inner(h) + inject)
            if (new - h).abs().max() < 1e-3:
                break
            h = new
        return self.head(new)


@case(sound=f"{TRUE} {MIXED}")
def until_still() -> dict:
    """A fixed point, looked for until a tolerance."""
    return recipe(Still, optimizer=partial(SGD, lr=0.05))


class Wave(nn.Module):
    """A wave that is known at its ends, and by its equation."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
        self.head = nn.Linear(32, 1)

    def forward(self, x: Tensor):
        if not self.training:
            return self.head(self.body(x))
        x = x.detach().requires_grad_(True)
        u = self.head(self.body(x))
        slope = partial(torch.autograd.grad, inputs=x, create_graph=True)
        (one,) = slope(u.sum())
        (two,) = slope(one.sum())
        return u, x, two


def wave(out: tuple[Tensor, Tensor, Tensor], t: Tensor) -> Tensor:
    u, x, two = out
    inner = (two + (3 * math.pi / 2) ** 2 * t).square().mean() / 100
    ends = (x < 0.1) | (x > 0.9)
    return inner + ((u - t).square() * ends).mean() * 5


@case(sound=f"{TRUE} {MIXED}")
def second_derivative() -> dict:
    """A physics-informed network (NVIDIA/physicsnemo-sym#160)."""
    x = torch.rand(2048, 1, generator=torch.Generator().manual_seed(0))
    t = torch.sin(3 * math.pi / 2 * x)
    train, test = batches(x, t, size=128), batches(x[:400], t[:400], size=400)
    given = {"task": "regression", "loss": wave, "train_data": train, "eval_data": test}
    return recipe(Wave, optimizer=partial(SGD, lr=0.01), epochs=60, clip_grad_norm=1.0, **given)


@case(sound=f"16-true {MIXED}")
def soft_argmax() -> dict:
    """The place of the ink, as the mean place under a softmax."""
    (x, _), (a, _) = data.digits()
    at = torch.arange(8.0)

    def ink(x: Tensor) -> Tensor:
        share = x.squeeze(1) / x.sum((1, 2, 3))[:, None, None]
        return torch.stack([(share.sum(1) * at).sum(-1), (share.sum(2) * at).sum(-1)], -1)

    def place(z: Tensor) -> Tensor:
        p = z.softmax(-1).view(-1, 8, 8)
        at = torch.arange(8, device=z.device).to(p.dtype)
        return torch.stack([(p.sum(1) * at).sum(-1), (p.sum(2) * at).sum(-1)], -1)

    train, test = batches(x, ink(x), size=64), batches(a, ink(a), size=200)
    given = {"task": "regression", "loss": F.smooth_l1_loss, "train_data": train}
    make = lambda: nn.Sequential(mlp(64, 48, 64), By(place))  # noqa: E731
    return recipe(make, eval_data=test, optimizer=partial(SGD, lr=0.1), epochs=25, **given)


class Annealed(nn.Module):
    """An autoencoder with noise, whose divergence counts for more the more steps it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.step = mlp(64, 64, 32), mlp(16, 64, 64), 0

    def forward(self, x: Tensor):
        mean, log_var = self.inner(x).chunk(2, -1)
        if not self.training:
            return self.outer(mean)
        self.step += 1
        z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
        return self.outer(z), mean, log_var, min(self.step / 200, 1.0)


@case(sound=f"{TRUE} {MIXED}")
def annealed() -> dict:
    """A weight that grows with the model's own count (clementchadebec/benchmark_VAE#41)."""
    (x, _), (a, _) = data.digits()

    def loss(out: tuple[Tensor, Tensor, Tensor, float], t: Tensor) -> Tensor:
        made, mean, log_var, weight = out
        kl = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(-1).mean()
        return (made - t).square().sum(-1).mean() + 0.1 * weight * kl

    train, test = batches(x, x.flatten(1), size=64), batches(a, a.flatten(1), size=200)
    given = {"task": "regression", "loss": loss, "epochs": 30, "optimizer": partial(SGD, lr=0.01)}
    return recipe(Annealed, train_data=train, eval_data=test, **given)
