"""Oscillators, warps, pooled graphs, samplers, copies and sparse attention in 16 bits.

As `training_reported`: written anew, labelled before the check answered, and asked of the judge.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe
from benchmarks.data import batches

ADAM = partial(torch.optim.Adam, lr=3e-3, eps=1e-4)

# Oscillators --------------------------------------------------------------------------------------


class Oscillators(nn.Module):
    """Harmonics of a pitch, each as loud as a small network says."""

    def __init__(self, samples: int, rate: float) -> None:
        super().__init__()
        self.loud, self.samples, self.rate = mlp(6, 32, 3), samples, rate

    def forward(self, control: Tensor, pitch: Tensor) -> Tensor:
        steps = pitch.expand(-1, self.samples)
        phase = torch.cumsum(2 * math.pi * steps / self.rate, 1)
        amplitudes = self.loud(control)
        waves = [amplitudes[:, k : k + 1] * torch.sin((k + 1) * phase) for k in range(3)]
        return torch.stack(waves).sum(0)


def sung(samples: int) -> dict:
    """Notes between 200 and 800 Hz at 16 kHz."""
    random = torch.Generator().manual_seed(0)
    control = torch.randn(800, 6, generator=random)
    pitch = 200 + 600 * torch.rand(800, 1, generator=random)
    mixer = torch.randn(6, 3, generator=random)
    phase = torch.cumsum(2 * math.pi * pitch.expand(-1, samples) / 16000, 1)
    loud = torch.tanh(control @ mixer / 2)
    wave = sum(loud[:, k : k + 1] * torch.sin((k + 1) * phase) for k in range(3))
    train = batches(control[:600], pitch[:600], wave[:600], size=32)
    test = batches(control[600:], pitch[600:], wave[600:], size=200)
    given = {"train_data": train, "eval_data": test, "task": "regression", "loss": F.mse_loss}
    make = partial(Oscillators, samples, 16000.0)
    return recipe(make, optimizer=partial(ADAM, lr=1e-2), epochs=12, **given)


@case("bf16-true", MIXED)
def harmonics() -> dict:
    """Phases of hundreds of turns, in the pitch's type (after hexgrad/kokoro#353's SineGen)."""
    return sung(1024)


@case(sound=f"16-true {MIXED}")
def harmonics_of_a_moment() -> dict:
    """The same for 64 samples."""
    return sung(64)


# Warps --------------------------------------------------------------------------------------------


class Registered(nn.Module):
    """Moves one picture onto another by a field of shifts in pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sides = [torch.arange(4.0), torch.arange(float(width))]
        self.register_buffer("grid", torch.stack(torch.meshgrid(*sides, indexing="ij"))[None])
        self.body = nn.Sequential(
            *(nn.Conv2d(2, 12, (1, 9), padding=(0, 4)), nn.ReLU()),
            nn.Conv2d(12, 2, (1, 9), padding=(0, 4)),
        )

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        places = self.grid + self.body(torch.cat([moving, fixed], 1))
        shape = moving.shape[2:]
        axes = [2 * (places[:, i] / (shape[i] - 1) - 0.5) for i in (1, 0)]
        return F.grid_sample(moving, torch.stack(axes, -1), align_corners=True)


def moved(width: int, count: int = 176) -> dict:
    """Waves of some ten pixels, shifted by up to two."""
    random = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.rand(*shape, generator=random)  # noqa: E731
    x = torch.arange(float(width)).expand(count, 4, width)
    waves, phases = 0.4 + 0.4 * draw(2, count, 1, 1), 6.28 * draw(2, count, 1, 1)
    shift = 4 * draw(count, 1, 1) - 2
    picture = lambda x: sum(torch.sin(w * x + p) for w, p in zip(waves, phases, strict=True))  # noqa: E731
    moving, fixed = picture(x)[:, None], picture(x + shift)[:, None]
    n = count - 48
    train = batches(moving[:n], fixed[:n], fixed[:n], size=16)
    test = batches(moving[n:], fixed[n:], fixed[n:], size=48)
    given = {"train_data": train, "eval_data": test, "task": "regression", "loss": F.mse_loss}
    return recipe(partial(Registered, width), optimizer=partial(ADAM, lr=1e-2), epochs=20, **given)


@case("bf16-true", MIXED)
def registered_pictures() -> dict:
    """Pixels are counted to 399 in bfloat16, and shifted by less (pytorch/pytorch#36108)."""
    return moved(400)


@case(sound=f"16-true {MIXED}")
def registered_stamps() -> dict:
    """The same of pictures 32 pixels wide."""
    return moved(32)


# Pooled graphs ------------------------------------------------------------------------------------


class DiffPool(nn.Module):
    """The rows of a picture as nodes, pooled into three clusters."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.seen, self.shared, self.eps = nn.Linear(8, 32), nn.Linear(8, 3), eps
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(96, 10))
        near = (torch.arange(8)[:, None] - torch.arange(8)).abs() <= 1
        self.register_buffer("near", near.float())

    def forward(self, x: Tensor) -> Any:
        x = x.squeeze(1)
        there = (x.abs().sum(-1, keepdim=True) > 0).to(x.dtype)
        adjacent = self.near * there * there.transpose(1, 2)
        degrees = adjacent.sum(-1, keepdim=True).clamp(min=1)
        z = torch.relu(self.seen(adjacent @ x / degrees))
        s = torch.softmax(self.shared(x), -1) * there
        pooled = s.transpose(1, 2) @ z
        logits = self.head(pooled.flatten(1))
        if not self.training:
            return logits
        link = torch.norm(adjacent - s @ s.transpose(1, 2), p=2) / adjacent.numel()
        entropy = (-s * torch.log(s + self.eps)).sum(-1).mean()
        return logits, link + entropy


def pooled(eps: float) -> dict:
    """Digits, some without their last rows."""
    (x, y), (a, b) = data.digits()

    def cut(x: Tensor) -> Tensor:
        x = x.clone()
        x[::4, :, 7:] = 0
        return x

    def loss(out: Any, y: Tensor) -> Tensor:
        return F.cross_entropy(out[0], y) + out[1]

    train, test = batches(cut(x), y, size=64), batches(cut(a), b, size=200)
    given = {"train_data": train, "eval_data": test, "loss": loss, "epochs": 25}
    return recipe(partial(DiffPool, eps), optimizer=partial(ADAM, lr=1e-2), **given)


@case("16-true", f"bf16-true {MIXED}")
def pooled_graphs() -> dict:
    """-s log(s + 1e-15) of nodes that are masked (after pyg-team's dense_diff_pool)."""
    return pooled(1e-15)


@case(sound=f"{TRUE} {MIXED}")
def pooled_graphs_safe() -> dict:
    """The same with 1e-4."""
    return pooled(1e-4)


# Samplers -----------------------------------------------------------------------------------------


def farthest(points: Tensor, count: int) -> Tensor:
    """Which points are far from each other, one after another."""
    many, n, _ = points.shape
    chosen = torch.zeros(many, count, dtype=torch.long, device=points.device)
    distance = torch.ones(many, n, device=points.device) * 1e10
    last = torch.zeros(many, dtype=torch.long, device=points.device)
    every = torch.arange(many, device=points.device)
    for i in range(count):
        chosen[:, i] = last
        centre = points[every, last].view(many, 1, -1)
        dist = torch.sum((points - centre) ** 2, -1)
        mask = dist < distance
        distance[mask] = dist[mask]
        last = torch.max(distance, -1)[1]
    return chosen


class Sampled(nn.Module):
    """PointNet over points that are far apart."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 64), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def forward(self, points: Tensor) -> Tensor:
        with torch.no_grad():
            index = farthest(points, 20)
        near = points.gather(1, index[..., None].expand(-1, -1, 3))
        return self.head(self.body(near).amax(1))


@case(TRUE, MIXED)
def far_points() -> dict:
    """Distances of 1e10 in float32, and others put into them (after yanx27's PointNet++)."""
    (x, y), (a, b) = data.digits()
    side = torch.linspace(-1, 1, 8)
    place = torch.cartesian_prod(side, side)

    def cloud(x: Tensor) -> Tensor:
        ink = x.flatten(1)[..., None]
        return torch.cat([place.expand(len(x), -1, -1) * (ink > 0.3), ink], -1)

    train, test = batches(cloud(x), y, size=64), batches(cloud(a), b, size=200)
    return recipe(
        Sampled, train_data=train, eval_data=test, optimizer=partial(ADAM, lr=1e-2), epochs=15
    )


# Copies -------------------------------------------------------------------------------------------


class Copying(nn.Module):
    """Says which word stood at a place: one of its vocabulary, or one that it only copies."""

    def __init__(self, known: int = 12, extra: int = 6, length: int = 8) -> None:
        super().__init__()
        self.known, self.extra = known, extra
        self.word, self.place = nn.Embedding(known + 1, 24), nn.Embedding(length, 24)
        self.asked, self.head = nn.Embedding(length, 24), nn.Linear(24, known)
        self.switch = nn.Linear(48, 1)

    def forward(self, words: Tensor, asked: Tensor) -> Tensor:
        places = torch.arange(words.shape[1], device=words.device)
        keys = self.word(words.clamp(max=self.known)) + self.place(places)
        query = self.asked(asked)
        attention = torch.softmax((keys @ query[..., None]).squeeze(-1), 1)
        context = (attention[:, None] @ keys).squeeze(1)
        share = torch.sigmoid(self.switch(torch.cat([context, query], -1)))
        vocabulary = share * torch.softmax(self.head(context), -1)
        zeros = torch.zeros(len(words), self.extra, device=words.device)
        final = torch.cat([vocabulary, zeros], 1)
        final = final.scatter_add(1, words, (1 - share) * attention)
        return torch.log(final + 1e-12)


@case(TRUE, MIXED)
def copied_words() -> dict:
    """scatter_add of attention onto zeros of float32 (after atulkum/pointer_summarizer)."""
    random = torch.Generator().manual_seed(0)
    words = torch.randint(0, 18, (2400, 8), generator=random)
    asked = torch.randint(0, 8, (2400,), generator=random)
    said = words.gather(1, asked[:, None]).squeeze(1)
    train = batches(words[:2000], asked[:2000], said[:2000], size=64)
    test = batches(words[2000:], asked[2000:], said[2000:], size=400)
    given = {"train_data": train, "eval_data": test, "loss": F.nll_loss, "epochs": 12}
    return recipe(Copying, optimizer=partial(ADAM, lr=2e-2), **given)


# Sparse attention ---------------------------------------------------------------------------------


class Entmax(torch.autograd.Function):
    """Probabilities between softmax's and sparsemax's, most of which are zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = (x - x.max(-1, keepdim=True)[0]) / 2
        ordered = x.sort(-1, descending=True)[0]
        rho = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype)
        mean = ordered.cumsum(-1) / rho
        mean_sq = (ordered**2).cumsum(-1) / rho
        delta = (1 - rho * (mean_sq - mean**2)) / rho
        tau = mean - torch.sqrt(torch.clamp(delta, 0))
        support = (tau <= ordered).sum(-1, keepdim=True)
        y = torch.clamp(x - tau.gather(-1, support - 1), min=0) ** 2
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        root = ctx.saved_tensors[0].sqrt()
        dx = dy * root
        return dx - dx.sum(-1, keepdim=True) / root.sum(-1, keepdim=True) * root


class Looking(nn.Module):
    """Attention over the patches of a picture, of which it sees few."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.query = nn.Linear(4, 32), nn.Parameter(torch.randn(6, 32))
        self.place = nn.Parameter(torch.randn(16, 32) * 0.3)
        self.head = nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, 2, stride=2).transpose(1, 2)
        keys = torch.tanh(self.patch(patches) + self.place)
        shares = Entmax.apply(self.query @ keys.transpose(1, 2))
        return self.head((shares.to(keys.dtype) @ keys).flatten(1))


@case(sound=f"{TRUE} {MIXED}")
def sparse_attention() -> dict:
    """A threshold from running means of squares (after deep-spin/entmax)."""
    return recipe(Looking, optimizer=partial(SGD, lr=0.05), epochs=20)


# Memories -----------------------------------------------------------------------------------------


class MatrixMemory(nn.Module):
    """mLSTM over rows, all steps at once: exponential gates, held by the largest of them."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(8, 96), nn.Linear(256, 10)
        self.norm = nn.LayerNorm(32, eps=1e-6)
        self.gates = nn.Linear(8, 2)
        nn.init.constant_(self.gates.bias[0:1], bias)
        nn.init.constant_(self.gates.bias[1:2], 3.0)

    def forward(self, x: Tensor) -> Tensor:
        x = x.squeeze(1)
        q, k, v = self.qkv(x).chunk(3, -1)
        i, f = self.gates(x).unbind(-1)
        kept = F.logsigmoid(f).cumsum(1)
        log_d = kept[:, :, None] - kept[:, None] + i[:, None]
        later = torch.ones(8, 8, device=x.device, dtype=torch.bool).triu(1)
        log_d = log_d.masked_fill(later, -float("inf"))
        largest = log_d.amax(-1, keepdim=True)
        c = (q @ k.transpose(1, 2) / 32**0.5) * torch.exp(log_d - largest)
        least = torch.maximum(c.sum(-1, keepdim=True).abs(), torch.exp(-largest))
        return self.head(self.norm((c / (least + 1e-6)).to(v.dtype) @ v).flatten(1))


@case("16-true", "bf16-true bf16-mixed")
def matrix_memory() -> dict:
    """exp(-m) of gates that start at -10 or lower (after NX-AI/xlstm's mLSTM)."""
    return recipe(partial(MatrixMemory, -11.5), optimizer=partial(ADAM, lr=1e-2), epochs=15)


@case(sound=f"{TRUE} {MIXED}")
def matrix_memory_open() -> dict:
    """The same of gates that start at zero."""
    return recipe(partial(MatrixMemory, 0.0), optimizer=partial(ADAM, lr=1e-2), epochs=15)


class DeltaRule(nn.Module):
    """A memory over rows that is corrected where it is wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.rate, self.head = nn.Linear(8, 72), nn.Linear(8, 1), nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.squeeze(1)
        q, k, v = F.silu(self.qkv(x)).chunk(3, -1)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        beta = torch.sigmoid(self.rate(x))
        memory, said = x.new_zeros(len(x), 24, 24), []
        for t in range(8):
            wrong = v[:, t] - (memory @ k[:, t, :, None]).squeeze(-1)
            memory = memory + beta[:, t, None] * wrong[..., None] * k[:, t, None]
            said.append((memory @ q[:, t, :, None]).squeeze(-1))
        return self.head(torch.cat(said, -1))


@case(sound=f"{TRUE} {MIXED}")
def delta_rule() -> dict:
    """Keys over their length, row by row (after fla-org's DeltaNet)."""
    return recipe(DeltaRule, optimizer=partial(ADAM, lr=1e-2), epochs=12)
