"""Held-out embeddings, tags, maps of pixels and tables: what is not one class for each input."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import ALL, FP16, TRUE, Built, built, fitted, healthy, planted
from benchmarks.cases.reported_quantities import perceptron, taught


class Unit(nn.Module):
    """A vector over its length, which torch keeps above 1e-12."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)


class Towers(nn.Module):
    """Attributes of a user, made unit vectors block by block; blocks may be blank."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.unit = perceptron(12, 16), Unit()

    def forward(self, x: Tensor) -> Tensor:
        parts = F.relu(self.blocks(x)) * (x.amax(-1, keepdim=True) > 0)
        return self.unit(parts).flatten(1)


def users() -> tuple[Tensor, ...]:
    """Four blocks of attributes of 300 users; some blocks are not filled in."""
    random = torch.Generator().manual_seed(0)
    x = torch.rand(300, 4, 12, generator=random) * 2
    x[torch.rand(300, 4, generator=random) < 0.05] = 0
    x[:, 0, 0] += 1
    return x, torch.zeros(300)


@planted(
    "eps-underflow", "unit", "div linalg_vector_norm clamp_min", fails=("16-true",),
    fails_cpu=("16-mixed",), moot=("bf16-true", "bf16-mixed"), family="embedding", task="embedding",
)  # fmt: skip
def blank_block_of_an_embedding() -> Built:
    """sentence-transformers, open_clip: F.normalize of zeros is 0 / 1e-12, in float16 0 / 0."""
    torch.manual_seed(0)
    return built(Towers(), users())


class Nested(nn.Module):
    """Matryoshka: a layer norm over the first sixteen of 64 numbers, not of unit length."""

    def __init__(self) -> None:
        super().__init__()
        self.body = perceptron(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(self.body(x.flatten(1)), (64,))[:, :16]


@healthy(task="embedding", precisions=FP16)
def first_numbers_of_an_embedding() -> Built:
    """nomic-embed: norm, then cut; neighbours in bfloat16 are not claimed."""
    torch.manual_seed(0)
    return built(Nested(), data.digits()[1])


class Hubness(nn.Module):
    """An embedding whose mean is a hundred times its spread, as those of BERT's [CLS] are."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.body, self.offset = perceptron(64, 24), offset

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x.flatten(1))) + self.offset


@planted(
    "absorption", "", "add", fails=ALL, also=("precision-loss",), family="embedding",
    task="embedding",
)  # fmt: skip
def embedding_with_a_common_part() -> Built:
    """Anisotropic embeddings: what tells texts apart is lost beside what all of them share."""
    torch.manual_seed(0)
    return built(Hubness(120.0), data.digits()[1])


class Tags(nn.Module):
    """Tags as probabilities, and their logits again for a loss that takes those."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.again = perceptron(64, 10), Again()

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.body(x.flatten(1)) * 36)


class Again(nn.Module):
    """log(p / (1 − p)) of a probability."""

    def forward(self, x: Tensor) -> Tensor:
        p = torch.sigmoid(x)
        return torch.log(p / (1 - p))


class Clamped(Again):
    """The logits as they are, within what float32 could have said."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(-15, 15)


class TagsKept(Tags):
    """Tags as logits throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.again = Clamped()


def tagged(make: type[nn.Module]) -> Built:
    """Digits, and which of ten random questions a network says yes to."""
    model, batches = taught(make, (data.digits()[1][0],), noise=0.0)
    return model, [(x, (y > 0).float()) for x, y in batches]


@planted(
    "absorption", "again", "rsub sub div log sigmoid", fails=ALL,
    also=("cancellation", "precision-loss", "overflow", "underflow"), family="multilabel",
    task="multilabel",
)  # fmt: skip
def logits_of_probabilities() -> Built:
    """ultralytics' inverse of a sigmoid: 0.9999 is one in 16 bits, and its logit infinite."""
    return tagged(Tags)


@healthy(task="multilabel")
def logits_throughout() -> Built:
    """The same with logits kept."""
    return tagged(TagsKept)


class Contrast(nn.Module):
    """Local contrast: mean of squares less square of the mean, in a window of five."""

    def forward(self, x: Tensor) -> Tensor:
        pool = lambda t: F.avg_pool2d(t, 5, 1, 2, count_include_pad=False)  # noqa: E731
        mean = pool(x)
        spread = pool(x * x) - mean * mean
        return (x - mean) / (spread + 4.0).sqrt()


class CentredContrast(nn.Module):
    """The same from deviations."""

    def forward(self, x: Tensor) -> Tensor:
        pool = lambda t: F.avg_pool2d(t, 5, 1, 2, count_include_pad=False)  # noqa: E731
        off = x - pool(x)
        return off / (pool(off * off) + 4.0).sqrt()


class Edges(nn.Module):
    """A class for every pixel, from local contrast."""

    contrast_type: type[nn.Module] = Contrast

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Identity()
        self.contrast = self.contrast_type()
        self.body = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.contrast(x))


class CentredEdges(Edges):
    """The same with contrast by deviations."""

    contrast_type = CentredContrast


def pixels(kind: type[nn.Module]) -> Built:
    """Bright pictures of faint digits; is a pixel ink? The outermost are ignored."""

    def task(x: Tensor) -> tuple[Tensor, Tensor]:
        ink = (x[:, 0] > 0.5).long()
        ink[:, 0], ink[:, :, 0] = -100, -100
        return (180 + 30 * x).round(), ink

    (x, _), (u, _) = data.digits()
    return built(fitted(kind, task(x), epochs=12), task(u))


@planted(
    "cancellation", "contrast", "sub mul avg_pool2d sqrt add div", fails=TRUE,
    also=("absorption", "precision-loss"), family="pixels",
)  # fmt: skip
def contrast_by_mean_square() -> Built:
    """kornia, torchvision: 36 000 less 36 000 in a float16 that counts them by 32."""
    return pixels(Edges)


@healthy(precisions=FP16)
def contrast_by_deviations() -> Built:
    """The same from deviations of whole numbers."""
    return pixels(CentredEdges)


class Hubs(nn.Module):
    """Messages summed at their goal, over the number of them, counted by adding ones."""

    def forward(self, x: Tensor, goal: Tensor) -> Tensor:
        total = x.new_zeros(8, x.shape[-1]).index_add(0, goal, x)
        count = x.new_zeros(8).index_add(0, goal, x.new_ones(len(goal)))
        return total / count.clamp(min=1)[:, None]


class Bincount(Hubs):
    """The same mean, whose messages are divided first by a count in whole numbers."""

    def forward(self, x: Tensor, goal: Tensor) -> Tensor:
        count = torch.bincount(goal, minlength=8).clamp(min=1)
        share = (x.float() / count[goal][:, None]).to(torch.float32)
        return share.new_zeros(8, x.shape[-1]).index_add(0, goal, share).to(x.dtype)


class Graphs(nn.Module):
    """A graph of eight hubs with six thousand leaves for each input."""

    hubs_type: type[nn.Module] = Hubs

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(5)
        self.register_buffer("goal", torch.randint(0, 8, (48_000,), generator=random))
        self.register_buffer("leaf", torch.randn(48_000, 4, generator=random))
        self.enter, self.hubs = nn.Linear(4, 4), self.hubs_type()
        self.out = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(row) for row in x])

    def one(self, row: Tensor) -> Tensor:
        message = F.relu(self.enter(self.leaf * row))
        return self.out(self.hubs(message, self.goal).flatten()[None])


class CountedGraphs(Graphs):
    """The same with counts in whole numbers."""

    hubs_type = Bincount


def leaves() -> tuple[Tensor, ...]:
    """Forty inputs, each of which scales the leaves."""
    return (torch.rand(40, 4, generator=torch.Generator().manual_seed(6)) + 0.5,)


@planted(
    "absorption", "hubs", "index_add", fails=ALL, also=("precision-loss",), family="regression",
    task="regression",
)  # fmt: skip
def hubs_counted_by_ones() -> Built:
    """PyG, DGL: a sum of ones in float16 stops at 2048, in bfloat16 at 256."""
    return taught(Graphs, leaves())


@healthy(task="regression")
def hubs_counted_in_integers() -> Built:
    """The mend of it: torch.bincount, and a sum in float32."""
    return taught(CountedGraphs, leaves())
