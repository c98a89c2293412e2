"""Held-out models that count, index or sort by numbers which 16 bits do not tell apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks import data
from benchmarks.cases.base import TRUE, Built, built, fitted, healthy, planted

BF16 = ("bf16-true", "bf16-mixed")


class YearBins(nn.Module):
    """The year a house was built in, to its bin, to a vector."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.register_buffer("edges", torch.arange(1900.5, 2020.0))
        self.vectors, self.whole = nn.Embedding(121, 8), whole

    def forward(self, year: Tensor) -> Tensor:
        if self.whole:
            return self.vectors(year.long() - 1900)
        return self.vectors(torch.bucketize(year, self.edges))


class House(nn.Module):
    """Is a house dear? By its year and six other numbers."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.year = YearBins(whole)
        self.body = nn.Sequential(nn.Linear(14, 48), nn.ReLU(), nn.Linear(48, 3))

    def forward(self, x: Tensor, year: Tensor) -> Tensor:
        return self.body(torch.cat([x, self.year(year).to(x.dtype)], -1))


def houses(whole: bool) -> Built:
    """Styles follow one another quickly: what a year is worth is known year by year."""
    random = torch.Generator().manual_seed(8)
    x = torch.randn(6000, 6, generator=random)
    year = torch.randint(1900, 2021, (6000,), generator=random)
    style = torch.randint(0, 3, (121,), generator=random)
    y = (style[year - 1900] + (x[:, 0] > 1).long()) % 3
    year = year if whole else year.float()
    model = fitted(lambda: House(whole), (x[:5000], year[:5000], y[:5000]), epochs=25)
    return built(model, (x[5000:], year[5000:], y[5000:]))


@planted("precision-loss", "year", "bucketize", fails=TRUE, also=("absorption",), family="bins")
def years_in_bins() -> Built:
    """pytorch#67077 made it run: 1999.5 is an even whole number in float16, any of 8 in bfloat16.

    Under autocast years and edges stay float32.
    """
    return houses(False)


@healthy()
def years_as_integers() -> Built:
    """The same table looked up by whole numbers."""
    return houses(True)


class OneHot(nn.Module):
    """An embedding as a product with what ids equal, as accelerators like it."""

    def __init__(self, words: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(words, dim))

    def forward(self, ids: Tensor) -> Tensor:
        numbers = torch.arange(len(self.table), dtype=self.table.dtype, device=ids.device)
        same = (ids.unsqueeze(-1) == numbers).to(self.table.dtype)
        return same @ self.table


class Topics(nn.Module):
    """The mean of a text's words, and a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.words = OneHot(1200, 32)
        self.body = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))

    def forward(self, ids: Tensor) -> Tensor:
        kept = (ids != 0).unsqueeze(-1)
        return self.body((self.words(ids) * kept).sum(1) / kept.sum(1).clamp(min=1))


@planted("precision-loss", "words", "eq arange", fails=("bf16-true",), also=("absorption",),
         family="one-hot")  # fmt: skip
def one_hot_by_comparison() -> Built:
    """Mesh TensorFlow's one_hot and its ports: word 1001 and word 1003 are one in bfloat16."""
    train, test = data.text_split()
    return built(fitted(Topics, train, epochs=6), test)


class NearestAtoms(nn.Module):
    """Features of the nearest atoms along a chain: a key per pair, sorted, its end cut off."""

    def __init__(self, exact: bool) -> None:
        super().__init__()
        self.exact = exact

    def forward(self, features: Tensor, x: Tensor) -> Tensor:
        distance = torch.cdist(x, x) if self.exact else self.by_product(x)
        length = x.shape[1]
        kind = torch.float32 if self.exact else distance.dtype
        index = torch.arange(length, dtype=kind, device=x.device).expand_as(distance)
        near = distance.argsort(-1).argsort(-1) < 9
        keys = torch.where(near, index, torch.full_like(index, length)).sort(-1).values
        chosen = keys[..., :9].long().clamp(max=length - 1)  # in the order of the chain
        rows = torch.arange(len(x), device=x.device)[:, None, None]
        return features[rows, chosen].flatten(2)

    def by_product(self, x: Tensor) -> Tensor:
        square = x.square().sum(-1)
        return square[:, :, None] + square[:, None] - 2 * x @ x.transpose(1, 2)


class Chain(nn.Module):
    """Each atom from its neighbours: is there one of the third kind among those behind it?"""

    def __init__(self, exact: bool) -> None:
        super().__init__()
        self.nearest = NearestAtoms(exact)
        self.body = nn.Sequential(nn.Linear(36, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, kinds: Tensor, x: Tensor) -> Tensor:
        return self.body(self.nearest(kinds, x)).transpose(1, 2)


def chains(exact: bool) -> Built:
    """Stretched chains of 500 atoms of four kinds, so that who is near is plain."""
    random = torch.Generator().manual_seed(6)
    kinds = torch.randint(0, 4, (24, 500), generator=random)
    x = torch.arange(500.0)[None, :, None] / 500 * torch.tensor([1.0, 0.5, 0.2])
    x = (x - x.mean(1, keepdim=True)).expand(24, -1, -1) * 100
    third = kinds == 2
    y = torch.stack([third.roll(-i, 1) for i in (1, 2, 3)]).any(0).long()
    parts = (nn.functional.one_hot(kinds, 4).float(), x.contiguous(), y)
    model = fitted(lambda: Chain(True), tuple(p[:16] for p in parts), epochs=60, batch=4)
    model.nearest.exact = exact
    return built(model, tuple(p[16:] for p in parts), 4)


@planted("precision-loss", "nearest", "bmm pow sub add rsub arange where sort mul", fails=BF16,
         also=("absorption", "cancellation"), moot=("16-true", "16-mixed"),
         family="keys")  # fmt: skip
def keys_in_the_distances_type() -> Built:
    """foundry#236: distances and indices of 500 atoms in bfloat16, which counts to 256."""
    return chains(False)
