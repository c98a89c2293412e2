"""Policies, adversaries, inner loops and lookups in 16 bits, after what issue trackers report.

As `training_reported`: written anew, and labelled by the judge before the gradient check answered.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe, text
from benchmarks.cases.training_reported_pictures import pictures
from benchmarks.data import batches


class Masked(nn.Module):
    """A policy that may not choose the last two of twelve actions."""

    def __init__(self, never: float) -> None:
        super().__init__()
        self.body = mlp(64, 64, 12)
        self.register_buffer("allowed", torch.arange(12) < 10)
        self.never = never

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        never = torch.tensor(self.never, dtype=z.dtype, device=z.device)
        z = torch.where(self.allowed, z, never)
        return z if self.training else z[:, :10]


def rewarded(z: Tensor, y: Tensor) -> Tensor:
    log = F.log_softmax(z, -1)
    entropy = -(log.exp() * log).sum(-1).mean()
    return F.nll_loss(log, y) - 0.01 * entropy


@case("16-true 16-mixed", "bf16-true bf16-mixed")
def masked_actions() -> dict:
    """Entropy of logits masked with -1e8 (Farama-Foundation/MicroRTS-Py#32)."""
    return recipe(partial(Masked, -1e8), loss=rewarded)


@case(sound=f"{TRUE} {MIXED}")
def masked_actions_safe() -> dict:
    """The same with -1e4 (Stable-Baselines-Team/stable-baselines3-contrib#81)."""
    return recipe(partial(Masked, -1e4), loss=rewarded)


@case(TRUE)
def simplex() -> dict:
    """Categorical checks that its probabilities sum to one within 1e-6 (pytorch/pytorch#110366)."""
    return recipe(loss=lambda z, y: -Categorical(probs=z.softmax(-1)).log_prob(y).mean())


@case(sound=f"{TRUE} {MIXED}")
def simplex_logits() -> dict:
    """The same of logits (DLR-RM/stable-baselines3#344)."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        policy = Categorical(logits=z)
        return -(policy.log_prob(y) + 0.01 * policy.entropy()).mean()

    return recipe(loss=loss)


class Squashed(nn.Module):
    """Actions drawn from a normal and squashed by tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(64, 64, 128)

    def forward(self, x: Tensor):
        mean, width = self.body(x).chunk(2, -1)
        if not self.training:
            return torch.tanh(3 * mean)
        width = width.clamp(-3, 0) - 2
        u = mean + torch.randn_like(mean) * width.exp()
        return u, -0.5 * ((u - mean) / width.exp()).square() - width


def squashed(out: tuple[Tensor, Tensor], t: Tensor, eps: float) -> Tensor:
    u, log = out
    action = torch.tanh(3 * u)
    log = log - torch.log(1 - action.square() + eps)
    return F.mse_loss(action, t) * 4 + 0.01 * log.mean()


def squashed_softly(out: tuple[Tensor, Tensor], t: Tensor) -> Tensor:
    u, log = out
    log = log - 2 * (0.6931 - 3 * u - F.softplus(-6 * u))
    return F.mse_loss(torch.tanh(3 * u), t) * 4 + 0.01 * log.mean()


def acting(loss) -> dict:
    sign = lambda x: (x.flatten(1) > 0.5).float() * 2 - 1  # noqa: E731
    return pictures(sign, Squashed, loss, optimizer=partial(SGD, lr=0.1))


@case("16-true")
def squashed_actions() -> dict:
    """log(1 - tanh² + 1e-8) (nilsjohanbjorck/low-precision-rl#2)."""
    return acting(partial(squashed, eps=1e-8))


@case(sound=f"16-true {MIXED}")
def squashed_actions_safe() -> dict:
    """The same by softplus (ray-project/ray#65036)."""
    return acting(squashed_softly)


def ahead(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The loss on one half of a batch before and after a step on the other."""
    (x, other), (y, truth) = (part.chunk(2) for part in batch)
    weights = dict(model.named_parameters())
    loss = F.cross_entropy(functional_call(model, weights, (x,)), y)
    slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    quick = {n: w - 0.1 * s for (n, w), s in zip(weights.items(), slopes, strict=True)}
    before = F.cross_entropy(functional_call(model, weights, (other,)), truth)
    return 0.5 * (before + F.cross_entropy(functional_call(model, quick, (other,)), truth))


@case(sound=f"{TRUE} {MIXED}")
def inner_step() -> dict:
    """MAML: a step inside the step (facebookresearch/higher#127)."""
    return recipe(loss=None, training_step=ahead)


def against(model: nn.Module, batch: tuple[Tensor, Tensor], soft: bool) -> Tensor:
    """Also right where the input goes a little where it hurts most."""
    x, y = batch
    x = x.detach().requires_grad_(True)
    plain = F.cross_entropy(model(x), y)
    (slope,) = torch.autograd.grad(plain, x, retain_graph=True)
    if soft:
        slope = slope / slope.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-5)
    size = slope.square().sum((1, 2, 3), keepdim=True).sqrt()
    return 0.5 * (plain + F.cross_entropy(model((x + 0.3 * slope / (size + 1e-12)).detach()), y))


@case("16-true", "bf16-true bf16-mixed")
def adversarial_rows() -> dict:
    """A slope over its own length, by hand: squares are zero in float16 (zhuchen03/FreeLB#8)."""
    return recipe(loss=None, training_step=partial(against, soft=False))


@case(sound=f"bf16-true {MIXED}")
def adversarial_rows_safe() -> dict:
    """The same, divided by its largest first (chs20/RobustVLM#20)."""
    return recipe(loss=None, training_step=partial(against, soft=True))


def private(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """A loss whose slope is the mean of every sample's, clipped."""
    x, y = batch
    weights = dict(model.named_parameters())
    held = {n: w.detach() for n, w in weights.items()}

    def one(held: dict, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, held, (x[None],)), y[None])

    slopes = vmap(grad(one), (None, 0, 0))(held, x, y)
    size = sum(s.flatten(1).float().square().sum(-1) for s in slopes.values()).sqrt()
    part = (1 / (size + 1e-6)).clamp(max=1) / len(x)
    mean = {n: torch.einsum("b,b...->...", part.to(s.dtype), s) for n, s in slopes.items()}
    return sum((w * mean[n].detach()).sum() for n, w in weights.items())


@case(sound=f"16-true {MIXED}")
def per_sample_clipping() -> dict:
    """Every sample's slope is clipped, by vmap (meta-pytorch/opacus#377)."""
    return recipe(loss=None, training_step=private, epochs=6)


class Integrated(nn.Module):
    """An ordinary differential equation in steps as long as a tolerance allows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.field, self.head = mlp(64, 64, 32), nn.Linear(32, 32), nn.Linear(32, 10)

    def speed(self, h: Tensor) -> Tensor:
        return torch.tanh(self.field(h))

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        t, step = h.new_zeros(()), h.new_full((), 0.25)
        while t < 1:
            step = torch.minimum(step, 1 - t)
            assert t + step > t, f"underflow in dt {step.item()}"
            slope = self.speed(h)
            whole = h + step * slope
            half = h + step / 2 * slope
            half = half + step / 2 * self.speed(half)
            if (half - whole).abs().max() > 1e-4 + 1e-2 * step:
                step = step / 2
                continue
            h, t = half, t + step
            step = step * 1.5
        return self.head(h)


@case("bf16-true 16-mixed")
def adaptive_steps() -> dict:
    """A tolerance that rounding never meets: dt underflows (rtqichen/torchdiffeq#27)."""
    return recipe(Integrated, optimizer=partial(SGD, lr=0.05), epochs=6)


class Stepped(nn.Module):
    """Noise of a step of a thousand, looked up by its number."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(64, 64, 10)
        self.register_buffer("noise", torch.linspace(0, 0.3, 1000))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        noise = self.noise[t.long()][:, None, None, None]
        return self.body(x + noise * torch.randn_like(x))


@case("bf16-true", f"16-true {MIXED}")
def timesteps() -> dict:
    """Step 999 is 1000 in bfloat16, and out of the table (modelscope/DiffSynth-Studio#1499)."""
    (x, y), (a, b) = data.digits()

    def with_steps(x: Tensor, y: Tensor, size: int) -> list:
        return batches(x, (torch.arange(len(x)) * 37 % 1000).float(), y, size=size)

    return recipe(Stepped, train_data=with_steps(x, y, 64), eval_data=with_steps(a, b, 200))


class Loud(nn.Module):
    """Logarithms of how loud each pixel is."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.body, self.floor = mlp(), floor

    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.log(x.clamp(min=self.floor)) / 4)


@case("16-true", f"bf16-true {MIXED}")
def log_features() -> dict:
    """log(max(x, 1e-10)) of silence (qiuqiangkong/audioset_tagging_cnn#17)."""
    return recipe(partial(Loud, 1e-10), optimizer=partial(SGD, lr=0.02))


@case(sound=f"{TRUE} {MIXED}")
def log_features_safe() -> dict:
    """The same with a floor of 1e-5 (tdrussell/qlora-pipe#23)."""
    return recipe(partial(Loud, 1e-5), optimizer=partial(SGD, lr=0.02))


class Added(nn.Module):
    """Attention pooling whose mask is added: zero, or float32's lowest."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.score, self.head = (
            nn.Embedding(1200, 32),
            nn.Linear(32, 1),
            nn.Linear(32, 8),
        )

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        mask = (1 - (ids != 0).to(x.dtype)) * torch.finfo(torch.float32).min
        score = self.score(x).squeeze(-1) + mask
        return self.head((score.softmax(-1).unsqueeze(-1) * x).sum(1))


@case(sound=f"16-true {MIXED}")
def additive_mask() -> dict:
    """float32's lowest value is -inf, which softmax bears (huggingface/transformers#17306)."""
    return text(Added)
