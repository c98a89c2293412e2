"""Losses in 16 bits once more, after what issue trackers report.

As `training_reported`: written anew, labelled before the check answered, and asked of the judge.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, SGD, TRUE, By, case, mlp, recipe
from benchmarks.cases.training_reported_pictures import pictures
from benchmarks.data import batches


def bright(x: Tensor) -> Tensor:
    return (x.flatten(1) > 0.5).float()


def asymmetric(z: Tensor, t: Tensor) -> Tensor:
    p = z.sigmoid()
    right = t * p.clamp(min=1e-8).log() + (1 - t) * (1 - p).clamp(min=1e-8).log()
    focus = (1 - p * t - (1 - p) * (1 - t)) ** (t + 4 * (1 - t))
    return -(focus.detach() * right).mean()


def loud(loss) -> dict:
    make = lambda: nn.Sequential(mlp(64, 64, 64), By(lambda z: 30 * z))  # noqa: E731
    rate = partial(SGD, lr=0.002)
    return pictures(bright, make, loss, task="multilabel", optimizer=rate)


@case("16-true 16-mixed", "bf16-true bf16-mixed")
def asymmetric_loss() -> dict:
    """log(max(1 - p, 1e-8)) of logits of up to 80 (Alibaba-MIIL/ASL#53)."""
    return loud(asymmetric)


@case(sound=f"{TRUE} {MIXED}")
def asymmetric_loss_safe() -> dict:
    """The same in float32 (Alibaba-MIIL/ASL#53)."""
    return loud(lambda z, t: asymmetric(z.float(), t.float()))


@case("16-true", f"bf16-true {MIXED}")
def generalized_dice() -> dict:
    """Classes weighed by one over their squared size (cwerner/deadtrees#82)."""

    def loss(z: Tensor, t: Tensor) -> Tensor:
        p = z.sigmoid()
        p, t = torch.stack([p, 1 - p]), torch.stack([t, 1 - t])
        weights = 1 / t.sum((1, 2)) ** 2
        both = (weights * (p * t).sum((1, 2))).sum()
        return 1 - 2 * both / (weights * (p + t).sum((1, 2))).sum()

    given = {"task": "multilabel", "optimizer": partial(SGD, lr=0.2)}
    return pictures(bright, lambda: mlp(64, 48, 64), loss, **given)


@case("16-true", f"bf16-true {MIXED}")
def count_as_a_tensor() -> dict:
    """A mean over 76672 values, whose number is a tensor of theirs (chelsea0x3b/dfdx#748)."""
    (x, _), (a, _) = data.digits()
    both = lambda x: torch.cat([x.flatten(1), 1 - x.flatten(1)], 1)  # noqa: E731
    mean = lambda e: (e / e.new_tensor(float(e.numel()))).sum()  # noqa: E731
    return recipe(
        partial(mlp, 64, 64, 128),
        loss=lambda z, t: 20 * mean((z - t).square()),
        train_data=batches(x, both(x), size=599),
        eval_data=batches(a, both(a), size=180),
        epochs=60,
        task="regression",
    )


class Featured(nn.Module):
    """What a picture is, and the wide features that say so."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(64, 1024), nn.Linear(1024, 10)

    def forward(self, x: Tensor):
        h = self.body(x.flatten(1)).relu()
        return (self.head(h), h) if self.training else self.head(h)


@case("16-true", "bf16-mixed")
def sum_of_zeros() -> dict:
    """Zero times the sum of all features (ultralytics/ultralytics#25097)."""
    loss = lambda out, y: F.cross_entropy(out[0], y) + 0 * out[1].sum()  # noqa: E731
    return recipe(Featured, scale=16.0, loss=loss, optimizer=partial(SGD, lr=1e-4))


class Centred(nn.Module):
    """Features with a centre for each class."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = mlp(64, 64, 16), nn.Linear(16, 10)
        self.centers = nn.Parameter(torch.randn(10, 16))

    def forward(self, x: Tensor):
        h = self.body(x)
        if not self.training:
            return self.head(h)
        far = h.pow(2).sum(1, keepdim=True) + self.centers.pow(2).sum(1)
        far.addmm_(h, self.centers.t(), beta=1, alpha=-2)
        return self.head(h), far


@case(MIXED, TRUE)
def center_loss() -> dict:
    """addmm_ in place is not autocast (NVIDIA-TAO/tao-pytorch#57)."""

    def loss(out: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
        return F.cross_entropy(out[0], y) + 0.005 * out[1].gather(1, y[:, None]).mean()

    return recipe(Centred, loss=loss, optimizer=partial(SGD, lr=0.02))


@case(TRUE, MIXED)
def uncertain_half() -> dict:
    """Only what is less sure than the median; no quantile in 16 bits (huggingface/trl#3666)."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        logs = F.log_softmax(z, -1)
        entropy = -(logs.exp() * logs).sum(-1).detach()
        kept = (entropy >= torch.quantile(entropy, 0.3)).to(z.dtype)
        return (F.cross_entropy(z, y, reduction="none") * kept).sum() / kept.sum()

    return recipe(loss=loss)


def similarity(p: Tensor, t: Tensor, most: float) -> Tensor:
    p, t = p.view(-1, 1, 8, 8), t.view(-1, 1, 8, 8)
    w = torch.exp(-((torch.arange(5.0, device=p.device) - 2) ** 2) / 4.5)
    window = (w[:, None] * w / w.sum() ** 2)[None, None].to(p.dtype)
    mean = lambda x: F.conv2d(x, window)  # noqa: E731
    a, b = mean(p), mean(t)
    va, vb, cross = mean(p * p) - a * a, mean(t * t) - b * b, mean(p * t) - a * b
    one, two = (0.01 * most) ** 2, (0.03 * most) ** 2
    return (
        ((2 * a * b + one) * (2 * cross + two)) / ((a * a + b * b + one) * (va + vb + two))
    ).mean()


def alike(most: float) -> dict:
    make = lambda: nn.Sequential(mlp(64, 64, 64), By(lambda z: z.sigmoid() * most))  # noqa: E731
    loss = lambda z, t: 1 - similarity(z, t, most)  # noqa: E731
    return pictures(lambda x: x.flatten(1) * most, make, loss, optimizer=partial(SGD, lr=0.5))


@case("16-true 16-mixed")
def structure_of_bytes() -> dict:
    """SSIM of pixels up to 255: squares leave the range (VainF/pytorch-msssim#17)."""
    return alike(255.0)


@case(sound="16-true 16-mixed")
def structure_of_units() -> dict:
    """SSIM of pixels up to 1 (Lightning-AI/torchmetrics#1290)."""
    return alike(1.0)


def discretized(out: Tensor, t: Tensor) -> Tensor:
    """One logistic per pixel of 17 levels between -1 and 1."""
    m, s = out.chunk(2, -1)
    s = s.clamp(min=-7)
    off, inverse = t - m, torch.exp(-s)
    plus, minus = inverse * (off + 1 / 16), inverse * (off - 1 / 16)
    inside = plus.sigmoid() - minus.sigmoid()
    middle = inverse * off - s - 2 * F.softplus(inverse * off)
    found = torch.where(inside > 1e-5, inside.clamp(min=1e-12).log(), middle - math.log(8))
    found = torch.where(t > 0.99, -F.softplus(minus), found)
    return -torch.where(t < -0.99, plus - F.softplus(plus), found).mean()


class Logistic(nn.Module):
    """Means and logarithms of widths; means once trained."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(64, 64, 128)

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        return out if self.training else out[:, :64].clamp(-1, 1)


@case("16-true", MIXED)
def logistic_levels() -> dict:
    """log(max(inside, 1e-12)) in the branch not taken (r9r9/wavenet_vocoder#23)."""
    levels = lambda x: x.flatten(1) * 2 - 1  # noqa: E731
    return pictures(levels, Logistic, discretized, optimizer=partial(SGD, lr=0.05))


@case("16-true", "bf16-mixed")
def magnitudes() -> dict:
    """√(re² + im² + 1e-9) of columns that are silent (after jik876/hifi-gan)."""
    angle = torch.arange(8)[:, None] * torch.arange(5) * (2 * math.pi / 8)
    cos, sin = angle.cos().T.contiguous(), angle.sin().T.contiguous()

    def spectrum(x: Tensor) -> Tensor:
        columns = x.view(-1, 8, 8).mT
        re, im = (F.linear(columns, m.to(x)) for m in (cos, sin))
        return torch.sqrt(re * re + im * im + 1e-9)

    def loss(z: Tensor, t: Tensor) -> Tensor:
        return F.l1_loss(spectrum(z), spectrum(t)) + F.mse_loss(z, t)

    make = lambda: mlp(64, 64, 64, nn.ReLU())  # noqa: E731
    return pictures(lambda x: x.flatten(1), make, loss, optimizer=partial(SGD, lr=0.1))


@case("16-true", f"bf16-true {MIXED}")
def truncated_entropy() -> dict:
    """(1 - p^0.7) / 0.7 of probabilities that underflow (after AlanChou/Truncated-Loss)."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        p = z.softmax(-1).gather(1, y[:, None])
        return ((1 - p**0.7) / 0.7).mean()

    return recipe(scale=16.0, loss=loss, optimizer=partial(SGD, lr=0.02))


@case(sound=f"16-true {MIXED}")
def chained_tags() -> dict:
    """A chain of tags that forbids by -10000 (after kmkurn/pytorch-crf)."""
    forbidden = torch.zeros(3, 3)
    forbidden[0, 2] = -10000.0
    (x, _), (a, _) = data.digits()

    def tags(x: Tensor) -> Tensor:
        ink = x.squeeze(1).mean(1)
        level = (ink > 0.15).long() + (ink > 0.45).long()
        jump = (level[:, 1:] == 2) & (level[:, :-1] == 0)
        level[:, 1:][jump] = 1
        return level

    def loss(out: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
        z, moves = out
        moves, rows = moves + forbidden.to(moves), torch.arange(len(y), device=y.device)
        alpha, score = z[:, :, 0], z[rows, y[:, 0], 0]
        for i in range(1, 8):
            alpha = (alpha[:, :, None] + moves).logsumexp(1) + z[:, :, i]
            score = score + moves[y[:, i - 1], y[:, i]] + z[rows, y[:, i], i]
        return (alpha.logsumexp(-1) - score).mean()

    train, test = batches(x, tags(x), size=64), batches(a, tags(a), size=200)
    given = {"optimizer": partial(SGD, lr=0.02), "epochs": 15, "loss": loss}
    return recipe(Chain, train_data=train, eval_data=test, **given)


class Chain(nn.Module):
    """Scores of three tags for each of eight columns, and of every move from tag to tag."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.moves = mlp(64, 64, 24), nn.Parameter(torch.empty(3, 3).uniform_(-0.1, 0.1))

    def forward(self, x: Tensor):
        z = self.body(x).view(-1, 3, 8)
        return (z, self.moves) if self.training else z


@case("16-true", "bf16-true bf16-mixed")
def consistent_dropout() -> dict:
    """R-Drop's divergence: an underflow has log(0) for a slope (after dropreg/R-Drop)."""

    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        one, two = model(x).log_softmax(-1), model(x).log_softmax(-1)
        apart = F.kl_div(one, two.exp(), reduction="batchmean")
        apart = apart + F.kl_div(two, one.exp(), reduction="batchmean")
        return (F.nll_loss(one, y) + F.nll_loss(two, y) + apart) / 2

    make = lambda: nn.Sequential(mlp(64, 64, 64), nn.Dropout(0.2), nn.Linear(64, 10))  # noqa: E731
    return recipe(make, loss=None, training_step=step, optimizer=partial(SGD, lr=0.05))
