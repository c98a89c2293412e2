"""More models after what public issue trackers report of 16-bit training, with sound twins.

As `training_reported`: written anew, and labelled by the judge before the gradient check answered.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe, text


class Reader(nn.Module):
    """A transformer over words that leaves out padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.place = nn.Embedding(1200, 32), nn.Parameter(torch.zeros(512, 32))
        self.block = nn.TransformerEncoderLayer(32, 2, 64, 0.1, batch_first=True, norm_first=True)
        self.head = nn.Linear(32, 8)

    def forward(self, ids: Tensor) -> Tensor:
        blank = ids == 0
        x = self.block(self.words(ids) + self.place[: ids.shape[1]], src_key_padding_mask=blank)
        kept = (~blank).to(x.dtype).unsqueeze(-1)
        return self.head((x * kept).sum(1) / kept.sum(1).clamp(min=1))


@case(sound=f"{TRUE} {MIXED}")
def masked_transformer() -> dict:
    """A transformer layer with a padding mask and dropout."""
    return text(Reader, optimizer=partial(SGD, lr=0.1), epochs=15, clip_grad_norm=1.0)


class Linear(nn.Module):
    """Attention by the features elu + 1, over a sum plus 1e-6."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.mix = nn.Embedding(1200, 32), nn.Linear(32, 96)
        self.head = nn.Linear(32, 8)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        q, k, v = self.mix(x).chunk(3, -1)
        q, k = F.elu(q) + 1, (F.elu(k) + 1) * (ids > 0).to(x.dtype).unsqueeze(-1)
        above = torch.einsum("bld,bdm->blm", q, torch.einsum("bld,blm->bdm", k, v))
        below = torch.einsum("bld,bd->bl", q, k.sum(1)) + 1e-6
        return self.head((x + above / below.unsqueeze(-1)).mean(1))


@case(sound=f"16-true {MIXED}")
def linear_attention() -> dict:
    """Linear attention (idiap/fast-transformers#32)."""
    return text(Linear, optimizer=partial(SGD, lr=0.3), epochs=15)


class Fading(nn.Module):
    """A state that fades: exp of a running sum, divided out again by its inverse."""

    def __init__(self, safe: bool) -> None:
        super().__init__()
        self.inner, self.rate, self.head = nn.Linear(8, 16), nn.Linear(8, 16), mlp(16, 32)
        nn.init.uniform_(self.rate.bias, -3, 3)
        self.safe = safe

    def forward(self, x: Tensor) -> Tensor:
        x = x.squeeze(1)
        sums = -F.softplus(self.rate(x)).cumsum(1)
        if self.safe:
            return self.head(((sums[:, -1:] - sums).exp() * self.inner(x)).sum(1))
        return self.head(sums[:, -1].exp() * ((-sums).exp() * self.inner(x)).sum(1))


def fading(safe: bool) -> dict:
    given = {"optimizer": partial(SGD, lr=0.1), "epochs": 30, "clip_grad_norm": 1.0}
    return recipe(lambda: Fading(safe), **given)


@case("16-true")
def fading_memory() -> dict:
    """A scan by exp(-cumsum), which leaves float16 (fla-org/flash-linear-attention#649)."""
    return recipe(
        lambda: Fading(False), optimizer=partial(SGD, lr=0.1), epochs=30, clip_grad_norm=1.0
    )


@case(sound=f"16-true {MIXED}")
def fading_memory_safe() -> dict:
    """The same by differences, which are below zero (vllm-project/vllm#37501)."""
    return recipe(
        lambda: Fading(True), optimizer=partial(SGD, lr=0.1), epochs=30, clip_grad_norm=1.0
    )


class Grid(nn.Module):
    """Messages between neighbouring pixels, over the roots of both degrees."""

    def __init__(self) -> None:
        super().__init__()
        at = torch.arange(64).view(8, 8)
        pairs = [(at[:, 1:], at[:, :-1]), (at[1:], at[:-1])]
        one, two = (torch.cat([p[i].flatten() for p in pairs]) for i in (0, 1))
        self.register_buffer("aim", torch.cat([one, two]))
        self.register_buffer("source", torch.cat([two, one]))
        self.layers = nn.ModuleList([nn.Linear(1, 16), nn.Linear(16, 16)])
        self.head = nn.Linear(16 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1).unsqueeze(-1)
        count = x.new_zeros(64).index_add(0, self.aim, x.new_ones(len(self.aim)))
        scale = count.pow(-0.5).masked_fill(count == 0, 0)
        weight = (scale[self.aim] * scale[self.source]).unsqueeze(-1)
        for layer in self.layers:
            h = layer(x)
            sent = h[:, self.source] * weight.to(h.dtype)
            x = torch.relu(h + torch.zeros_like(h).index_add(1, self.aim, sent))
        return self.head(x.flatten(1))


@case(sound=f"{TRUE} {MIXED}")
def graph_convolution() -> dict:
    """A graph network that adds its messages up (pyg-team/pytorch_geometric#61)."""
    return recipe(Grid, optimizer=partial(SGD, lr=0.02), epochs=6)


def small(size: int, momentum: float | None = 0.1, **changes) -> dict:
    make = lambda: nn.Sequential(  # noqa: E731
        nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64, momentum=momentum), nn.ReLU(), mlp()
    )
    return recipe(make, size=size, optimizer=partial(SGD, lr=0.01), epochs=6, **changes)


@case(sound=f"{TRUE} {MIXED}")
def tiny_batches() -> dict:
    """BatchNorm over batches of seven (zengarden/momentum2-teacher#2)."""
    return small(7)


@case(sound=f"{TRUE} {MIXED}")
def plain_statistics() -> dict:
    """BatchNorm that keeps the plain mean of all it has seen (taoyang1122/MutualNet#12)."""
    return small(32, None)


class Folded(nn.Module):
    """Blocks that are computed again on the way back."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 10)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.SiLU(), nn.Dropout(0.1))
            for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=False)
        return self.last(x)


@case(sound=f"{TRUE} {MIXED}")
def checkpointed() -> dict:
    """Gradient checkpointing with dropout inside (huggingface/transformers#24247)."""
    return recipe(Folded, optimizer=partial(SGD, lr=0.05))


class Reversed(torch.autograd.Function):
    """The identity, whose gradient turns round."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return -0.1 * grad


@case(sound=f"{TRUE} {MIXED}")
def reversed_gradient() -> dict:
    """A domain is told apart behind a gradient that is reversed."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head, self.domain = mlp(64, 64, 32), nn.Linear(32, 10), mlp(32, 16, 2)

        def forward(self, x: Tensor):
            h = torch.relu(self.body(x))
            return (self.head(h), self.domain(Reversed.apply(h))) if self.training else self.head(h)

    def loss(out: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
        return F.cross_entropy(out[0], y) + 0.3 * F.cross_entropy(out[1], y % 2)

    return recipe(Net, loss=loss, optimizer=partial(SGD, lr=0.05))


class Gumbel(nn.Module):
    """A hard choice among eight rows, drawn anew while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.rows = mlp(64, 32, 4 * 8), nn.Linear(4 * 8, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        z = self.score(x).view(-1, 4, 8)
        if self.training:
            pick = F.gumbel_softmax(z, 1.0, hard=True)
        else:
            pick = F.one_hot(z.argmax(-1), 8).to(z.dtype)
        rows = pick @ x.squeeze(1).to(pick.dtype)
        return self.head(torch.relu(self.rows(rows.flatten(1))))


@case(sound=f"16-true {MIXED}")
def gumbel() -> dict:
    """A straight-through Gumbel softmax (pytorch/pytorch#41663)."""
    return recipe(Gumbel, optimizer=partial(SGD, lr=0.02), epochs=20)


class Codes(nn.Module):
    """Features replaced by the nearest of sixteen codes, which follow their own mean."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = mlp(64, 64, 8), nn.Linear(8, 10)
        self.register_buffer("codes", torch.randn(32, 8))
        self.register_buffer("count", torch.ones(32))
        self.register_buffer("total", self.codes.clone())

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        near = (h[:, None] - self.codes.to(h.dtype)).square().sum(-1).argmin(-1)
        if self.training:
            with torch.no_grad():
                hot = F.one_hot(near, 32).to(self.count.dtype)
                self.count.lerp_(hot.sum(0), 0.05)
                self.total.lerp_((hot.T @ h.to(hot.dtype)).to(hot.dtype), 0.05)
                whole = self.count.sum()
                smooth = (self.count + 1e-5) / (whole + 32e-5) * whole
                self.codes.copy_(self.total / smooth.clamp(min=1e-2)[:, None])
        q = self.codes.to(h.dtype)[near]
        return self.head(h + (q - h).detach())


@case(sound="16-true")
def codebook() -> dict:
    """A codebook of running means (zalandoresearch/pytorch-vq-vae#5)."""
    return recipe(Codes, optimizer=partial(SGD, lr=0.05), epochs=25)
