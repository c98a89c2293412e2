"""Optimizers, associations, memories, trees, codes, fields, adapters and fused losses in 16 bits.

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
from benchmarks.cases.training import MIXED, TRUE, case, mlp, recipe
from benchmarks.data import batches

ADAM = partial(torch.optim.Adam, lr=3e-3, eps=1e-4)

# Optimizers ---------------------------------------------------------------------------------------


@case("16-true", f"bf16-true {MIXED}")
def rectified_steps() -> dict:
    """torch.optim.RAdam and its 1e-8, of pixels that are never lit (after LiyuanLucasLiu/RAdam)."""
    return recipe(optimizer=partial(torch.optim.RAdam, lr=1e-2))


@case(sound=f"{TRUE} {MIXED}")
def rectified_steps_wide() -> dict:
    """The same with 1e-3."""
    return recipe(optimizer=partial(torch.optim.RAdam, lr=1e-2, eps=1e-3))


class Learnt(torch.optim.Optimizer):
    """SGD whose rate follows the product of two gradients in a row."""

    def __init__(self, params: Any, lr: float = 0.05, hyper: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr, "hyper": hyper})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            slope = torch.cat([p.grad.reshape(-1) for p in params])
            last = self.state["last"] if "last" in self.state else torch.zeros_like(slope)
            group["lr"] += group["hyper"] * torch.dot(slope, last).item()
            self.state["last"] = slope.clone()
            for p in params:
                p.add_(p.grad, alpha=-group["lr"])


@case(sound=f"{TRUE} {MIXED}")
def learnt_rates() -> dict:
    """A rate plus 1e-2 of the gradients' product (after gbaydin/hypergradient-descent)."""
    return recipe(optimizer=Learnt)


# Associations and memories ------------------------------------------------------------------------


class Associated(nn.Module):
    """Attention over rows, beside a Gaussian around each row whose width is learned."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Linear(8, width), nn.Linear(width, 3 * width)
        self.sigma, self.head = nn.Linear(width, 1), nn.Linear(8 * width, 10)
        places = torch.arange(8.0)
        self.register_buffer("apart", (places.unsqueeze(0) - places.unsqueeze(1)).abs())

    def forward(self, x: Tensor) -> Any:
        h = self.embed(x.squeeze(1))
        q, k, v = self.qkv(h).chunk(3, -1)
        series = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), -1)
        z = self.head((h + series @ v).flatten(1))
        if not self.training:
            return z
        sigma = torch.sigmoid(self.sigma(h) * 5) + 1e-5
        sigma = torch.pow(3, sigma) - 1
        prior = 1.0 / (math.sqrt(2 * math.pi) * sigma) * torch.exp(-(self.apart**2) / 2 / sigma**2)
        return z, series, prior / prior.sum(-1, keepdim=True)


@case("16-true", "bf16-true 16-mixed bf16-mixed")
def association_prior() -> dict:
    """3^σ - 1 of a σ near 1e-5 is zero, and divides (after thuml/Anomaly-Transformer)."""

    def loss(out: Any, y: Tensor) -> Tensor:
        z, series, prior = out
        apart = series * (torch.log(series + 1e-4) - torch.log(prior + 1e-4))
        return F.cross_entropy(z, y) + 0.3 * apart.sum(-1).mean()

    return recipe(Associated, loss=loss, optimizer=ADAM, epochs=15)


class Turing(nn.Module):
    """Reads and writes sixteen places of a memory, row by row."""

    def __init__(self, places: int = 16, width: int = 12) -> None:
        super().__init__()
        self.cell = nn.GRUCell(8 + width, 48)
        self.ask, self.change = nn.Linear(48, width + 6), nn.Linear(48, 2 * width)
        self.head, self.shape = nn.Linear(48 + width, 10), (places, width)

    def address(self, memory: Tensor, h: Tensor, last: Tensor) -> Tensor:
        k, b, g, s, y = self.ask(h).split([self.shape[1], 1, 1, 3, 1], 1)
        near = F.cosine_similarity(memory + 1e-16, k.unsqueeze(1) + 1e-16, dim=-1)
        w = torch.softmax(F.softplus(b) * near, 1)
        g, s = torch.sigmoid(g), torch.softmax(s, 1)
        w = g * w + (1 - g) * last
        w = w.roll(1, 1) * s[:, :1] + w * s[:, 1:2] + w.roll(-1, 1) * s[:, 2:]
        w = w ** (1 + F.softplus(y))
        return w / (w.sum(1, keepdim=True) + 1e-16)

    def forward(self, x: Tensor) -> Tensor:
        x = x.squeeze(1)
        h, w = x.new_zeros(len(x), 48), x.new_zeros(len(x), self.shape[0])
        memory = x.new_full((len(x), *self.shape), 1e-6)
        read = x.new_zeros(len(x), self.shape[1])
        for row in x.unbind(1):
            h = self.cell(torch.cat([row, read], 1), h)
            w = self.address(memory, h, w).unsqueeze(-1)
            erase, add = self.change(h).chunk(2, 1)
            memory = memory * (1 - w * torch.sigmoid(erase).unsqueeze(1)) + w * add.unsqueeze(1)
            read, w = (w * memory).sum(1), w.squeeze(-1)
        return self.head(torch.cat([h, read], 1))


@case(sound=f"{TRUE} {MIXED}")
def turing_memory() -> dict:
    """w^γ / (Σ w^γ + 1e-16), one w of which is large (after loudinthecloud/pytorch-ntm)."""
    return recipe(Turing, optimizer=partial(ADAM, lr=1e-2), epochs=10, size=128)


class Tree(nn.Module):
    """A soft tree of depth four, and in training how evenly its branches are used."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 2**depth - 1)
        self.leaves, self.depth = nn.Linear(2**depth, 10, bias=False), depth

    def forward(self, x: Tensor) -> Any:
        p = torch.sigmoid(4 * self.inner(x.flatten(1)))
        both = torch.stack((p, 1 - p), 2)
        way, penalty, at = x.new_ones(len(x), 1), x.new_zeros(()), 0
        for layer in range(self.depth):
            here = both[:, at : at + 2**layer]
            alpha = (here[:, :, 0] * way).sum(0) / way.sum(0)
            even = 0.5 * (torch.log(alpha) + torch.log(1 - alpha))
            penalty = penalty - 0.1 * 2.0**-layer * even.sum()
            way, at = (way.unsqueeze(2) * here).flatten(1), at + 2**layer
        z = self.leaves(way)
        return (z, penalty) if self.training else z


@case("16-true bf16-true", "16-mixed bf16-mixed")
def even_branches() -> dict:
    """log α + log(1 - α) of shares that the loss keeps even (after xuyxu/Soft-Decision-Tree)."""
    loss = lambda out, y: F.cross_entropy(out[0], y) + 0.1 * out[1]  # noqa: E731
    return recipe(Tree, loss=loss, optimizer=partial(ADAM, lr=2e-2), epochs=15)


# Codes and densities ------------------------------------------------------------------------------


class Turned(nn.Module):
    """Patches as the nearest of 32 codes; the slope turns with them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 16, 3, 1, 1))
        self.codes, self.head = nn.Embedding(32, 16), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Any:
        e = self.body(x).permute(0, 2, 3, 1).reshape(-1, 16)
        apart = e.pow(2).sum(1, True) - 2 * e @ self.codes.weight.t()
        apart = apart + self.codes.weight.pow(2).sum(1)
        q = self.codes(apart.argmin(1))
        by, to = e.norm(dim=-1, keepdim=True), q.norm(dim=-1, keepdim=True)
        u, v = (e / by.clamp(min=1e-6)).detach(), (q / to.clamp(min=1e-6)).detach()
        w = F.normalize(u + v, dim=1, eps=1e-6).detach()
        turned = e - 2 * (e * w).sum(1, True) * w + 2 * (e * u).sum(1, True) * v
        turned = turned * (to / by.clamp(min=1e-6)).detach()
        z = self.head(turned.reshape(len(x), -1))
        if not self.training:
            return z
        return z, F.mse_loss(q, e.detach()) + 0.25 * F.mse_loss(e, q.detach())


@case("16-true", "bf16-true 16-mixed bf16-mixed")
def turned_codes() -> dict:
    """Lengths of at least 1e-6 (after lucidrains/vector-quantize-pytorch)."""
    loss = lambda out, y: F.cross_entropy(out[0], y) + out[1]  # noqa: E731
    return recipe(Turned, loss=loss, optimizer=ADAM)


@case("16-true bf16-true", "16-mixed bf16-mixed")
def bits_of_pixels() -> dict:
    """log(max(ΔΦ, 1e-12)) by tanh of a cubic (after openai/guided-diffusion's likelihood)."""
    (x, _), (a, _) = data.digits()
    clear, clear_a = (2 * v.flatten(1) - 1 for v in (x, a))
    random = torch.Generator().manual_seed(0)
    noisy, noisy_a = (v + 0.3 * torch.randn(v.shape, generator=random) for v in (clear, clear_a))

    def cdf(x: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))

    def loss(out: Tensor, x: Tensor) -> Tensor:
        mean, scale = out.chunk(2, 1)
        inverse = torch.exp(-scale)
        over = cdf(inverse * (x - mean + 1 / 16))
        under = cdf(inverse * (x - mean - 1 / 16))
        first, last = torch.log(over.clamp(min=1e-12)), torch.log((1 - under).clamp(min=1e-12))
        inside = torch.log((over - under).clamp(min=1e-12))
        return -torch.where(x < -0.999, first, torch.where(x > 0.999, last, inside)).mean()

    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(64, 128, 128)

        def forward(self, x: Tensor) -> Tensor:
            out = self.body(x)
            return out if self.training else out[:, :64].clamp(-1, 1)

    given = {"task": "regression", "loss": loss, "optimizer": ADAM}
    train, test = batches(noisy, clear, size=64), batches(noisy_a, clear_a, size=200)
    return recipe(Levels, train_data=train, eval_data=test, epochs=15, **given)


class Factors(nn.Module):
    """A factorization machine over 64 fields of five levels."""

    def __init__(self) -> None:
        super().__init__()
        self.factors, self.linear = nn.Embedding(320, 16), nn.Embedding(320, 1)
        nn.init.normal_(self.factors.weight, std=0.05)
        nn.init.zeros_(self.linear.weight)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, fields: Tensor) -> Tensor:
        v = self.factors(fields)
        pairs = 0.5 * (v.sum(1) ** 2 - (v**2).sum(1)).sum(1, keepdim=True)
        s = self.linear(fields).sum(1) + pairs + self.bias
        return torch.cat([-s, s], 1)


@case("16-true", "bf16-true 16-mixed bf16-mixed")
def factored_pairs() -> dict:
    """((Σv)² - Σv²) / 2 of 64 fields (after rixwew/pytorch-fm)."""
    (x, y), (a, b) = data.digits()
    fields = lambda x: (x.flatten(1) * 4).round().long() + 5 * torch.arange(64)  # noqa: E731
    train = batches(fields(x), (y >= 5).long(), size=64)
    test = batches(fields(a), (b >= 5).long(), size=200)
    given = {"train_data": train, "eval_data": test, "optimizer": partial(ADAM, lr=1e-2)}
    return recipe(Factors, epochs=15, **given)


@case(sound=f"{TRUE} {MIXED}")
def mapped_neighbours() -> dict:
    """1 / (1 + a d^2b), and log of at least 1e-4, of like and unlike (after lmcinnes/umap)."""

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = mlp(64, 64, 2), mlp(2, 32, 10)

        def forward(self, x: Tensor) -> Any:
            place = self.body(x)
            z = self.head(place)
            return (z, place) if self.training else z

    def loss(out: Any, y: Tensor) -> Tensor:
        z, place = out
        i, j = torch.triu_indices(len(y), len(y), 1, device=y.device)
        d = (place[i] - place[j]).norm(dim=1)
        p = 1.0 / (1.0 + 1.577 * d ** (2 * 0.8951))
        like = (y[i] == y[j]).to(p.dtype)
        pull = -like * torch.log(torch.clip(p, 1e-4, 1.0))
        push = -(1 - like) * torch.log(torch.clip(1 - p, 1e-4, 1.0))
        return F.cross_entropy(z, y) + (pull + push).mean()

    return recipe(Flat, loss=loss, optimizer=partial(ADAM, lr=1e-2), epochs=15)


# Activations, adapters, fused losses --------------------------------------------------------------


class Clipped(nn.Module):
    """(|x| - |x - α| + α) / 2, in sixteen steps, with an α that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(10.0))

    def forward(self, x: Tensor) -> Tensor:
        x = 0.5 * (x.abs() - (x - self.alpha).abs() + self.alpha)
        step = (self.alpha / 15).detach()
        return x + ((x / step).round() * step - x).detach()


@case(sound=f"{TRUE} {MIXED}")
def learnt_clipping() -> dict:
    """A small x beside α = 10, subtracted again (PACT, after KwangHoonAn/PACT)."""

    def make() -> nn.Module:
        return nn.Sequential(
            *(nn.Flatten(), nn.Linear(64, 64), Clipped()),
            *(nn.Linear(64, 64), Clipped(), nn.Linear(64, 10)),
        )

    decay = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=5e-4)
    return recipe(make, optimizer=decay, epochs=15)


class Dora(nn.Module):
    """A frozen layer, an adapter of low rank, and a length for each row of their sum."""

    def __init__(self, inputs: int, outputs: int, rank: int = 8) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, inputs) / math.sqrt(inputs))
        self.b = nn.Parameter(torch.zeros(outputs, rank))
        self.size = nn.Parameter(self.base.weight.norm(dim=1, keepdim=True).clone())

    def forward(self, x: Tensor) -> Tensor:
        weight = self.base.weight + self.b @ self.a
        length = weight.norm(dim=1, keepdim=True).detach()
        return F.linear(x, self.size / length * weight, self.base.bias)


@case(sound=f"{TRUE} {MIXED}")
def lengths_and_directions() -> dict:
    """Weights over their length, which is held fixed backwards (after huggingface/peft's DoRA)."""

    def make() -> nn.Module:
        return nn.Sequential(
            *(nn.Flatten(), Dora(64, 64), nn.ReLU(), Dora(64, 64), nn.ReLU(), nn.Linear(64, 10))
        )

    return recipe(make, optimizer=ADAM, epochs=15)


class Fused(torch.autograd.Function):
    """Cross entropy of a linear layer in chunks, whose slopes are made on the way forwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, y: Tensor) -> Tensor:
        total, dx, dw = x.new_zeros((), dtype=torch.float32), torch.zeros_like(x), 0.0
        for i in range(0, len(x), 1024):
            part, right = x[i : i + 1024], y[i : i + 1024]
            z = part @ weight.t()
            total += F.cross_entropy(z.float(), right, reduction="sum")
            p = torch.softmax(z.float(), 1)
            p[torch.arange(len(right), device=p.device), right] -= 1
            p = (p / len(x)).to(z.dtype)
            dx[i : i + 1024] = p @ weight
            dw = dw + (p.t() @ part).float()
        ctx.save_for_backward(dx, dw.to(weight.dtype))
        return total / len(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        dx, dw = ctx.saved_tensors
        return dx * grad.to(dx.dtype), dw * grad.to(dw.dtype), None


class Pixels(nn.Module):
    """Which of four levels every pixel of a noisy picture had."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU())
        self.more = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(32, 4, bias=False)

    def forward(self, x: Tensor) -> Any:
        h = self.more(self.body(x)).permute(0, 2, 3, 1)
        return h if self.training else self.head(h).permute(0, 3, 1, 2)


@case(sound=f"{TRUE} {MIXED}")
def fused_entropy() -> dict:
    """Slopes over 16384 pixels, made before they are scaled (after linkedin/Liger-Kernel)."""
    x, _ = data.fashion()
    x = x[:400]
    level = torch.bucketize(x.squeeze(1), torch.tensor([-0.7, 0.2, 0.9]))
    random = torch.Generator().manual_seed(0)
    noisy = x + 0.5 * torch.randn(x.shape, generator=random)

    def step(model: Any, batch: tuple) -> Tensor:
        x, y = batch
        h = model(x).reshape(-1, 32)
        return Fused.apply(h, model.head.weight, y.reshape(-1))

    train = batches(noisy[:320], level[:320], size=32)
    test = batches(noisy[320:], level[320:], size=80)
    given = {"training_step": step, "loss": None, "optimizer": partial(ADAM, lr=1e-2)}
    return recipe(Pixels, train_data=train, eval_data=test, epochs=3, **given)


class Responses(nn.Module):
    """Channels over the root of their mean square, and the larger of that and a threshold."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        shape = (1, channels, 1, 1)
        self.gamma, self.beta = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
        self.tau = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        square = torch.mean(x**2, dim=(2, 3), keepdim=True)
        x = x * torch.rsqrt(square + abs(1e-6))
        return torch.max(self.gamma * x + self.beta, self.tau)


@case(sound=f"{TRUE} {MIXED}")
def filter_responses() -> dict:
    """A mean square + 1e-6 of channels that are not silent (after joe-siyuan-qiao's FRN)."""

    def make() -> nn.Module:
        return nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), Responses(8)),
            *(nn.Conv2d(8, 16, 3, 2, 1), Responses(16), nn.Flatten(), nn.Linear(256, 10)),
        )

    return recipe(make, optimizer=partial(torch.optim.SGD, lr=0.03, momentum=0.9), epochs=6)
