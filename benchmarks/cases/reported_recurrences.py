"""A held-out Transformer-XL: memories, relative places, tables by how common a word is."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import Built, built, fitted, healthy, planted

CUTS = (100, 400)
VOCABULARY = 1200


class AdaptiveEmbedding(nn.Module):
    """Wide vectors for common words, narrow ones for rare words, all projected to one width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.edges = (0, *CUTS, VOCABULARY)
        sizes = [b - a for a, b in zip(self.edges, self.edges[1:], strict=False)]
        self.tables = nn.ModuleList(nn.Embedding(size, dim // 2**i) for i, size in enumerate(sizes))
        self.projections = nn.ParameterList(
            torch.randn(dim, dim // 2**i) * (dim // 2**i) ** -0.5 for i in range(len(sizes))
        )
        self.dim, self.scale = dim, dim**0.5

    def forward(self, ids: Tensor) -> Tensor:
        flat = ids.flatten()
        out = self.start(flat)
        for i, (table, projection) in enumerate(zip(self.tables, self.projections, strict=True)):
            low, high = self.edges[i : i + 2]
            place = ((flat >= low) & (flat < high)).nonzero().squeeze(1)
            if len(place):
                out[place] = self.typed(F.linear(table(flat[place] - low), projection), out)
        return out.view(*ids.shape, self.dim) * self.scale

    def start(self, flat: Tensor) -> Tensor:
        weight = self.projections[0]
        return torch.zeros(len(flat), self.dim, dtype=weight.dtype, device=weight.device)

    def typed(self, said: Tensor, out: Tensor) -> Tensor:
        return said


class TypedEmbedding(AdaptiveEmbedding):
    """What is written has the type of what it is written into."""

    def typed(self, said: Tensor, out: Tensor) -> Tensor:
        return said.to(out.dtype)


class Relative(nn.Module):
    """Attention to a memory and oneself, by content and by distance, with two learned biases."""

    def __init__(self, dim: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.size = heads, dim // heads
        self.qkv, self.r = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.out, self.norm = nn.Linear(dim, dim, bias=False), nn.LayerNorm(dim)
        self.u, self.v = (nn.Parameter(torch.zeros(heads, dim // heads)) for _ in range(2))

    def shifted(self, x: Tensor) -> Tensor:
        n, h, q, k = x.shape
        return F.pad(x, (1, 0)).view(n, h, k + 1, q)[:, :, 1:].reshape(n, h, q, k)

    def forward(self, x: Tensor, places: Tensor, memory: Tensor) -> Tensor:
        n, t, d = x.shape
        both = torch.cat([memory, x], 1)
        q, k, v = (y.view(n, -1, self.heads, self.size) for y in self.qkv(both).chunk(3, -1))
        q, r = q[:, -t:], self.r(places).view(-1, self.heads, self.size)
        content = torch.einsum("nihd,njhd->nhij", q + self.u, k)
        distance = self.shifted(torch.einsum("nihd,jhd->nhij", q + self.v, r))
        scores = (content + distance) * self.size**-0.5
        later = torch.ones(t, both.shape[1], dtype=torch.bool, device=x.device)
        later = later.triu(1 + memory.shape[1])
        scores = scores.float().masked_fill(later, -1e30).type_as(scores)
        y = torch.einsum("nhij,njhd->nihd", scores.softmax(-1).type_as(v), v)
        return self.norm(x + self.out(y.reshape(n, t, d)))


class Layer(nn.Module):
    """Relative attention and a perceptron, normed behind each."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attention, self.norm = Relative(dim), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, places: Tensor, memory: Tensor) -> Tensor:
        x = self.attention(x, places, memory)
        return self.norm(x + self.mlp(x))


class Places(nn.Module):
    """Sines and cosines of distances."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("rate", 1 / (10000 ** (torch.arange(0.0, dim, 2.0) / dim)))

    def forward(self, distances: Tensor) -> Tensor:
        angle = torch.outer(distances, self.rate)
        return torch.cat([angle.sin(), angle.cos()], -1)


class TransformerXL(nn.Module):
    """Two segments of words, the second with the first as its memory; next words of both."""

    def __init__(self, embed: type[AdaptiveEmbedding], dim: int = 32, segment: int = 12) -> None:
        super().__init__()
        self.embed, self.places, self.segment = embed(dim), Places(dim), segment
        self.layers = nn.ModuleList(Layer(dim) for _ in range(2))
        self.crit = nn.AdaptiveLogSoftmaxWithLoss(dim, VOCABULARY, list(CUTS), div_value=2.0)

    def forward(self, ids: Tensor) -> Tensor:
        memories: list[Tensor] | None = None
        said = []
        for part in ids.split(self.segment, 1):
            x = self.embed(part)
            memories = memories or [x[:, :0]] * len(self.layers)
            length = part.shape[1] + memories[0].shape[1]
            places = self.places(torch.arange(length - 1, -1, -1.0, device=x.device).to(x.dtype))
            kept = []
            for layer, memory in zip(self.layers, memories, strict=True):
                kept.append(torch.cat([memory, x], 1)[:, -self.segment :].detach())
                x = layer(x, places, memory)
            memories = kept
            said.append(x)
        x = torch.cat(said, 1)
        return self.crit.log_prob(x.flatten(0, 1)).view(*ids.shape, -1)


def following(out: Tensor, labels: Tensor) -> Tensor:
    """Likelihood of the next words, padding left out."""
    return F.nll_loss(out.flatten(0, 1), labels.flatten(), ignore_index=-100)


def spoken(embed: type[AdaptiveEmbedding]) -> Built:
    """Sums of two words before, modulo the vocabulary's common part: what a memory can learn."""
    random = torch.Generator().manual_seed(0)

    def chains(count: int) -> tuple[Tensor, Tensor]:
        ids = torch.randint(0, VOCABULARY, (count, 25), generator=random)
        ids[:, 1::2] = (ids[:, 0::2][:, :12] * 7 + 3) % VOCABULARY
        label = ids[:, 1:].clone()
        label[:, 1::2] = -100
        return ids[:, :24].contiguous(), label

    model = fitted(lambda: TransformerXL(embed), chains(3000), loss=following, epochs=12, rate=1e-2)
    return built(model, chains(200), size=50)


@planted(
    "unsupported-op", "embed", "index_put_ index_put", fails=("16-mixed", "bf16-mixed"),
    family="language",
)  # fmt: skip
def rows_of_another_type() -> Built:
    """transformers#19914, pytorch#98814: autocast's half, written into rows of float32."""
    return spoken(AdaptiveEmbedding)


@healthy()
def rows_of_their_own_type() -> Built:
    """transformers#19914: cast to the rows' type; memories, -1e30, adaptive softmax are sound."""
    return spoken(TypedEmbedding)
