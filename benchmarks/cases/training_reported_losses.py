"""More losses after what public issue trackers report of 16-bit training, with sound twins.

As `training_reported`: written anew, and labelled by the judge before the gradient check answered.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe
from benchmarks.cases.training_heldout import values


@case("16-true", "bf16-true bf16-mixed")
def js_distillation() -> dict:
    """Jensen-Shannon to a sharp teacher, its mixture over 1e-12 (MakazhanAlpamys/Soup#719)."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        p = z.softmax(-1)
        q = (25.0 * F.one_hot(y, 10)).to(z.dtype).softmax(-1)
        middle = (0.5 * (p + q)).clamp(min=1e-12).log()
        far = partial(F.kl_div, middle, reduction="batchmean")
        return 0.5 * (far(p) + far(q))

    return recipe(loss=loss, epochs=40, optimizer=partial(SGD, lr=0.5))


class Student(nn.Module):
    """A student beside a wider teacher that never learns."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.teacher = mlp(), mlp(64, 128).requires_grad_(False)

    def forward(self, x: Tensor):
        return (self.body(x), self.teacher(x)) if self.training else self.body(x)


@case(sound=f"{TRUE} {MIXED}")
def distilled() -> dict:
    """Distillation at temperature 4 (haitongli/knowledge-distillation-pytorch#48)."""

    def loss(out: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
        z, t = (part / 4 for part in out)
        soft = F.kl_div(
            z.log_softmax(-1), t.log_softmax(-1), log_target=True, reduction="batchmean"
        )
        return F.cross_entropy(out[0], y) + 0.1 * 16 * soft

    return recipe(Student, loss=loss)


@case(sound=f"{TRUE} {MIXED}")
def preferences() -> dict:
    """DPO: log-ratios of right and wrong to a frozen reference (huggingface/trl#7084)."""

    def loss(out: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
        wrong = (y + 1 + torch.arange(len(y), device=y.device) % 9) % 10
        new, old = (part.log_softmax(-1) for part in out)
        ratio = new - old
        gain = ratio.gather(-1, y[:, None]) - ratio.gather(-1, wrong[:, None])
        return -F.logsigmoid(0.5 * gain).mean()

    return recipe(Student, loss=loss, epochs=15)


class Spelled(nn.Module):
    """Says eight times a digit or nothing."""

    def __init__(self, upcast: bool) -> None:
        super().__init__()
        self.body = mlp(64, 64, 8 * 11)
        self.upcast = upcast

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x).view(-1, 8, 11)
        if not self.training:
            return z.log_softmax(-1)[..., 1:].logsumexp(1)
        return z.float() if self.upcast else z


def spelled(upcast: bool) -> dict:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        log_p = z.log_softmax(-1).transpose(0, 1)
        rows, ones = torch.full((len(y),), 8), torch.ones(len(y), dtype=torch.long)
        return F.ctc_loss(log_p, y[:, None] + 1, rows, ones)

    make = lambda: Spelled(upcast)  # noqa: E731
    return recipe(make, loss=loss, optimizer=partial(SGD, lr=0.05), clip_grad_norm=5.0)


@case(TRUE)
def ctc() -> dict:
    """CTC has no kernel in 16 bits (espnet/espnet#1751)."""
    return spelled(False)


@case(sound=f"{TRUE} {MIXED}")
def ctc_in_float32() -> dict:
    """CTC of logits cast to float32 (espnet/espnet#1777)."""
    return spelled(True)


@case(sound=f"{TRUE} {MIXED}")
def two_views() -> dict:
    """InfoNCE of two noisy views, own scores at -inf (KevinMusgrave/pytorch-metric-learning#6)."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = mlp(64, 64, 32), nn.Linear(32, 10)

        def forward(self, x: Tensor):
            if not self.training:
                return self.head(self.body(x))
            a, b = (self.body(x + 0.1 * torch.randn_like(x)) for _ in range(2))
            return self.head(a), F.normalize(torch.cat([a, b]), dim=-1)

    def loss(out: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
        z, both = out
        score = (both @ both.T / 0.1).fill_diagonal_(-torch.inf)
        pair = torch.arange(len(both), device=y.device).roll(len(y))
        return F.cross_entropy(z, y) + 0.2 * F.cross_entropy(score, pair)

    return recipe(Net, loss=loss)


@case(sound=f"{TRUE} {MIXED}")
def triplets() -> dict:
    """A triplet margin beside the labels (Nanne/pytorch-NetVlad#57)."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        order = y.argsort()
        one, same = order[:-1], order[1:]
        kept = y[one] == y[same]
        one, same = one[kept], same[kept]
        other = order.roll(len(y) // 2)[:-1][kept]
        return F.cross_entropy(z, y) + 0.1 * F.triplet_margin_loss(z[one], z[same], z[other])

    return recipe(loss=loss, optimizer=partial(SGD, lr=0.05))


class Critic(nn.Module):
    """A score per class whose last layer starts at zero, and where it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()
        nn.init.zeros_(self.body[-1].weight)

    def forward(self, x: Tensor):
        if not self.training:
            return self.body(x)
        x = x.detach().requires_grad_(True)
        return self.body(x), x


def penalised(eps: float) -> dict:
    def loss(out: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
        z, x = out
        (slope,) = torch.autograd.grad(z.sum(), x, create_graph=True)
        norm = (slope.flatten(1).square().sum(-1) + eps).sqrt()
        return F.cross_entropy(z, y) + 0.1 * (norm - 1).square().mean()

    return recipe(Critic, loss=loss, optimizer=partial(SGD, lr=0.05))


@case("16-true", f"bf16-true {MIXED}")
def lipschitz_penalty() -> dict:
    """WGAN-GP's root of 1e-12 where the slope is zero at first (NVIDIA/apex#654)."""
    return penalised(1e-12)


@case(sound=f"{TRUE} {MIXED}")
def lipschitz_penalty_safe() -> dict:
    """The same with 1e-4."""
    return penalised(1e-4)


class Margin(nn.Module):
    """Cosines to ten directions."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.kinds = mlp(64, 64, 8), nn.Parameter(torch.randn(10, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(self.body(x), dim=-1), F.normalize(self.kinds, dim=-1))


def angular(clamp: float) -> dict:
    def loss(cosine: Tensor, y: Tensor) -> Tensor:
        sine = (1 - cosine.square()).clamp(min=clamp).sqrt()
        turned = cosine * math.cos(0.3) - sine * math.sin(0.3)
        return F.cross_entropy(16 * torch.where(F.one_hot(y, 10) > 0, turned, cosine), y)

    return recipe(Margin, loss=loss, epochs=25, optimizer=partial(SGD, lr=0.01))


@case("bf16-true bf16-mixed")
def arc_margin() -> dict:
    """ArcFace: the root of 1 - cos² where cos has rounded to 1 (deepinsight/insightface#2200)."""
    return angular(0.0)


@case(sound=f"{TRUE} {MIXED}")
def arc_margin_safe() -> dict:
    """The same of at least 1e-2 (ronghuaiyang/arcface-pytorch#32)."""
    return angular(1e-2)


def uncertain(entropy) -> dict:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z, y) - 0.01 * entropy(z).mean()

    return recipe(loss=loss, epochs=25, optimizer=partial(SGD, lr=0.3))


@case("16-true", "bf16-true bf16-mixed")
def entropy_by_hand() -> dict:
    """-p log p of probabilities that underflow in float16 (huggingface/trl#7263)."""
    return uncertain(lambda z: -(z.softmax(-1) * z.softmax(-1).log()).sum(-1))


@case(sound=f"{TRUE} {MIXED}")
def entropy_of_logits() -> dict:
    """The same by log-softmax."""
    return uncertain(lambda z: -(z.softmax(-1) * z.log_softmax(-1)).sum(-1))


@case(sound=f"{TRUE} {MIXED}")
def quantiles() -> dict:
    """The median by the pinball loss."""
    return values(1.0, lambda z, t: (0.5 * (t - z).abs()).mean(), 0.02, epochs=25)
