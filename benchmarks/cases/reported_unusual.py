"""Held-out models that are written, or handed over, in an unusual way; some sound, some not.

Four were mended after they had been seen: `static_key_cache`, `packed_tagger` and
`sparse_adjacency` had a wrong forecast or none, `scripted_unit_vector` its parent as culprit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import rnn

from benchmarks import data
from benchmarks.cases.base import TRUE, Built, built, fitted, healthy, planted
from benchmarks.cases.planted_other import per_token


class StaticCache(nn.Module):
    """Causal attention row by row, keys and values written into a buffer made beforehand."""

    def __init__(self, dim: int = 32, inputs: int = 256) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Linear(8, dim), nn.Linear(dim, 3 * dim)
        self.head = nn.Linear(dim, 10)
        self.register_buffer("cache", torch.zeros(2, inputs, 8, dim), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n, x = len(x), self.embed(x.flatten(1, 2))
        seen = torch.zeros_like(self.cache) if self.training else self.cache
        said = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            q, k, v = self.qkv(x[:, t]).chunk(3, -1)
            seen[:, :n, t] = torch.stack([k, v])
            keys, values = seen[:, :n, : t + 1].clone()
            weight = ((q[:, None] * keys).sum(-1) / q.shape[-1] ** 0.5).softmax(-1)
            said = (weight[..., None] * values).sum(1)
        return self.head(said + x.mean(1))


@healthy()
def static_key_cache() -> Built:
    """A cache of keys and values that lives in a buffer, as servers of language models have it."""
    train, test = data.digits()
    return built(fitted(StaticCache, train), test)


class PackedTagger(nn.Module):
    """A tagger of texts of different length, packed for its recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(1200, 24, padding_idx=0)
        self.cell = nn.GRU(24, 24, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, 3)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        x = rnn.pack_padded_sequence(self.embed(ids), lengths, True, enforce_sorted=False)
        y, _ = rnn.pad_packed_sequence(self.cell(x)[0], batch_first=True, total_length=24)
        return self.head(y)


@healthy()
def packed_tagger() -> Built:
    """Packed sequences, padding ignored: each word's own number modulo three."""
    (ids, _), (test, _) = data.text_split()
    length = lambda t: (t != 0).sum(1).clamp(min=1)  # noqa: E731
    label = lambda t: torch.where(t != 0, t % 3, -100)  # noqa: E731
    train = (ids[:1500], length(ids[:1500]), label(ids[:1500]))
    model = fitted(PackedTagger, train, loss=per_token, epochs=5)
    return built(model, (test[:300], length(test[:300]), label(test[:300])))


class SparseGraph(nn.Module):
    """Message passing with a sparse adjacency, multiplied in float32."""

    def __init__(self) -> None:
        super().__init__()
        place = torch.cartesian_prod(torch.arange(8), torch.arange(8)).float()
        near = (torch.cdist(place, place) < 1.5).float()
        near = near / near.sum(1, keepdim=True)
        self.register_buffer("adjacency", near.to_sparse(), persistent=False)
        self.enter, self.head = nn.Linear(1, 16), nn.Linear(1024, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x.flatten(1).unsqueeze(-1))
        n, t, d = x.shape
        with torch.autocast(x.device.type, enabled=False):
            flat = x.float().transpose(0, 1).reshape(t, -1)
            y = torch.sparse.mm(self.adjacency.float(), flat).view(t, n, d).transpose(0, 1)
        return self.head(F.relu(y.to(x.dtype)).flatten(1))


@healthy()
def sparse_adjacency() -> Built:
    """A graph network whose sparse product is a float32 island."""
    train, test = data.digits()
    return built(fitted(SparseGraph, train), test)


class UnitVector(nn.Module):
    """A vector in large units, divided by its length."""

    def forward(self, x: Tensor) -> Tensor:
        z = x * 2000.0
        return z / (z.pow(2).sum(1, keepdim=True).sqrt() + 1.0)


class ScriptedPart(nn.Module):
    """A scripted part between ordinary ones."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = torch.jit.script(UnitVector())
        self.body = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.unit(x.flatten(1)) * 8)


@planted("overflow", "unit", "pow sum", fails=("16-true",), family="scripted")
def scripted_unit_vector() -> Built:
    """The overflow happens in a part that TorchScript runs."""
    train, test = data.digits()
    return built(fitted(ScriptedPart, train), test)


class Hash(nn.Module):
    """A multiplicative hash of ids that came as floats."""

    def forward(self, ids: Tensor) -> Tensor:
        return (ids * 31 + 7) % 1009


class Hashed(nn.Module):
    """Embeddings of hashed ids, averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.hash, self.embed = Hash(), nn.Embedding(1009, 16)
        self.head = nn.Linear(16, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(self.hash(ids).long()).mean(1))


@planted(
    "precision-loss", "hash", "mul add remainder _to_copy", fails=TRUE, also=("absorption",),
    family="recommender",
)  # fmt: skip
def hashed_ids() -> Built:
    """Recommenders: an id times 31 has more digits than float16 or bfloat16."""
    (ids, y), (test, v) = data.text_split()
    model = fitted(Hashed, (ids.float(), y), epochs=12)
    return built(model, (test.float(), v))


class Difference(nn.Module):
    """What changed between two pictures, made visible."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return (second - first) * 400


class Motion(nn.Module):
    """Features of a difference of pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.delta = Difference()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.body(self.delta(first, second))


@planted(
    "cancellation", "delta", "sub _to_copy", fails=TRUE, also=("precision-loss",), family="video"
)
def faint_motion() -> Built:
    """Two bright frames that differ by a faint digit: 16 bits hold the frames, not the digit."""
    random = torch.Generator().manual_seed(0)

    def frames(x: Tensor) -> tuple[Tensor, Tensor]:
        scene = torch.rand(x.shape, generator=random) + 3
        return scene, scene + x / 400

    (x, y), (u, v) = data.digits()
    return built(fitted(Motion, (*frames(x), y)), (*frames(u), v))
