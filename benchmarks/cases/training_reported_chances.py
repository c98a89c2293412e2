"""Returns, draws, kernels, energies and hazards in 16 bits, after what issue trackers report.

As `training_reported`: written anew, labelled before the check answered, and asked of the judge.
Written after what `training_reported_choices` and its siblings had shown was mended.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe, text
from benchmarks.cases.training_heldout import values
from benchmarks.cases.training_reported_pictures import pictures


class Popped(nn.Module):
    """Values in the units of the returns seen so far; as they are once trained."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(64, 64, 1)
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("square", torch.ones(1))

    def spread(self) -> Tensor:
        return (self.square - self.mean**2).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        return z if self.training else z * self.spread() + self.mean


@case(TRUE, MIXED)
def normalised_returns() -> dict:
    """√(E[r²] - E[r]²) of returns around 50 (after google-deepmind/scalable_agent's PopArt)."""

    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, t = batch
        with torch.no_grad():
            model.mean.lerp_(t.mean(0).to(model.mean.dtype), 0.1)
            model.square.lerp_(t.square().mean(0).to(model.square.dtype), 0.1)
        return F.mse_loss(model(x), (t - model.mean) / model.spread())

    ink = lambda x: 50 + 8 * (x.mean((1, 2, 3)) - 0.3)[:, None]  # noqa: E731
    return pictures(ink, Popped, None, training_step=step, optimizer=partial(SGD, lr=0.02))


@case("16-true", MIXED)
def hidden_overflow() -> dict:
    """nan_to_num of squares that overflow: no NaN, and nothing is learned."""
    square = lambda z, t: torch.nan_to_num((250 * z - t).square().mean())  # noqa: E731
    given = values(250.0, square, 3e-7, epochs=25)
    scaled = [(x, t / 250) for x, t in given["eval_data"]]
    return {**given, "eval_data": scaled}


class Discrete(nn.Module):
    """Twelve one-hot codes of eight, drawn while training."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.codes, self.head = mlp(64, 64, 96), nn.Linear(96, 10)
        self.own = own

    def forward(self, x: Tensor):
        z = 3 * self.codes(x).view(-1, 12, 8)
        if not self.training:
            return self.head(z.softmax(-1).flatten(1))
        if self.own:
            drawn = torch.rand(z.shape, device=z.device).to(z.dtype)
            soft = (z - (-(drawn + 1e-20).log() + 1e-20).log()).softmax(-1)
        else:
            soft = F.gumbel_softmax(z, dim=-1)
        share = z.softmax(-1).mean(0)
        return self.head(soft.flatten(1)), share


def diverse(out: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    z, share = out
    return F.cross_entropy(z, y) + 0.1 * (share * (share + 1e-7).log()).sum(-1).mean()


def discrete(own: bool) -> dict:
    rate = partial(SGD, lr=0.05)
    return recipe(partial(Discrete, own), loss=diverse, optimizer=rate, epochs=25)


@case("16-true", "bf16-true bf16-mixed")
def drawn_codes() -> dict:
    """Uniform numbers cast to the logits' type are one at times (pytorch/pytorch#41663)."""
    return discrete(True)


@case(sound=MIXED)
def drawn_codes_safe() -> dict:
    """F.gumbel_softmax, and p log(p + 1e-7) of the shares (after facebookresearch/fairseq)."""
    return recipe(
        partial(Discrete, False), loss=diverse, optimizer=partial(SGD, lr=0.05), epochs=25
    )


class Kernelised(nn.Module):
    """Attention over words by positive random features, without a stabiliser."""

    def __init__(self, shifted: bool) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(1200, 32), nn.Linear(32, 8)
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))
        self.register_buffer("drawn", torch.randn(64, 32) / 2)
        self.shifted = shifted

    def features(self, x: Tensor) -> Tensor:
        x = 6 * F.normalize(x, dim=-1, eps=1e-3)
        z = x @ self.drawn.T - x.square().sum(-1, keepdim=True) / 2
        if self.shifted:
            z = z - z.amax((-1, -2), keepdim=True).detach()
        return z.exp() + (1e-3 if self.shifted else 0.0)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        q, k = self.features(self.q(x)), self.features(self.k(x))
        upper, lower = q @ (k.mT @ self.v(x)), q @ k.sum(1, keepdim=True).mT
        return self.head((upper / lower).mean(1))


@case("16-true 16-mixed", "bf16-mixed")
def random_features() -> dict:
    """exp(wx - |x|²/2): products of tiny features are zero, 0/0 (facebookresearch/xformers#98)."""
    return text(partial(Kernelised, False), optimizer=partial(SGD, lr=0.5), epochs=6)


@case(sound=f"16-true {MIXED}")
def random_features_safe() -> dict:
    """The same, shifted by the largest, plus 1e-3."""
    return text(partial(Kernelised, True), optimizer=partial(SGD, lr=0.5), epochs=6)


class Ridge(nn.Module):
    """Kernel ridge regression on learned places, solved by conjugate gradients."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.body, self.eps = mlp(64, 64, 8), eps
        self.places, self.aims = nn.Parameter(torch.randn(16, 8)), nn.Parameter(torch.randn(16, 10))

    @staticmethod
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (-(a[:, None] - b[None]).square().sum(-1) / 32).exp()

    def solved(self) -> Tensor:
        matrix = self.kernel(self.places, self.places)
        matrix = matrix + torch.eye(16, device=matrix.device, dtype=matrix.dtype)
        x = torch.zeros_like(self.aims)
        r = p = self.aims
        for _ in range(12):
            image, length = matrix @ p, (r * r).sum(0)
            alpha = length / ((p * image).sum(0) + self.eps)
            x, r = x + alpha * p, r - alpha * image
            p = r + (r * r).sum(0) / (length + self.eps) * p
        return x

    def forward(self, x: Tensor) -> Tensor:
        return 4 * self.kernel(self.body(x), self.places) @ self.solved()


@case("16-true", "bf16-mixed")
def conjugate_gradients() -> dict:
    """r·r / (p·Ap + 1e-10) once it is solved: 0/0 (after cornellius-gp/gpytorch)."""
    return recipe(partial(Ridge, 1e-10), optimizer=partial(SGD, lr=0.05))


def energies(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Labels, and an energy that is lower for digits than for what Langevin's steps find."""
    x, y = batch
    found = torch.rand_like(x)
    for _ in range(4):
        found = found.detach().requires_grad_(True)
        energy = -model(found).logsumexp(-1).sum()
        (slope,) = torch.autograd.grad(energy, found)
        found = found - slope + 0.01 * torch.randn_like(found)
    z = model(x)
    apart = z.logsumexp(-1) - model(found.detach()).logsumexp(-1)
    return F.cross_entropy(z, y) - 0.05 * apart.clamp(max=5).mean()


@case(sound=f"16-true {MIXED}")
def energy_based() -> dict:
    """A classifier as an energy, with Langevin's steps inside the step (after wgrathwohl/JEM)."""
    return recipe(loss=None, training_step=energies, optimizer=partial(SGD, lr=0.05))


class Lasting(nn.Module):
    """The logarithm of how long something lasts, and how surely."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.shape = mlp(64, 64, 1), nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor):
        scale = self.body(x) + 3
        return (scale, self.shape) if self.training else scale


def lasting(power) -> dict:
    """Durations of up to 400 by the amount of ink."""

    def loss(out: tuple[Tensor, Tensor], t: Tensor) -> Tensor:
        scale, shape = out
        k = F.softplus(shape) + 0.5
        seen = t.exp()
        return (power(seen, scale, k) - k.log() - (k - 1) * t + k * scale).mean()

    ink = lambda x: (x.mean((1, 2, 3)) * 8 + 1)[:, None]  # noqa: E731
    rate = partial(SGD, lr=0.02)
    return pictures(ink, Lasting, loss, optimizer=rate, clip_grad_norm=1.0)


@case("16-true")
def weibull() -> dict:
    """t^k / λ^k, each by itself: t^k is infinite (after ragulpr/wtte-rnn)."""
    return lasting(lambda t, scale, k: t**k / scale.exp() ** k)


@case(sound=f"16-true {MIXED}")
def weibull_safe() -> dict:
    """The same as exp(k (log t - log λ))."""
    return lasting(lambda t, scale, k: (k * (t.log() - scale)).exp())


@case(sound=f"{TRUE} {MIXED}")
def robust_shapes() -> dict:
    """x² / max(|α - 2|, 1.2e-7) in the branch not taken (after jonbarron/robust_loss_pytorch)."""

    def loss(z: Tensor, t: Tensor) -> Tensor:
        alpha = torch.full((), 2.0, device=z.device, dtype=z.dtype)
        square = (z - t).square()
        beta = (alpha - 2).abs().clamp(min=1.2e-7)
        other = beta / alpha * ((square / beta + 1).pow(alpha / 2) - 1)
        return torch.where(alpha == 2, square / 2, other).mean()

    return values(1.0, loss, 0.01)
