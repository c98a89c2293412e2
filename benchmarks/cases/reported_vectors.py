"""Held-out cases whose answer is a vector, a set of tags, or a value per token: no single class."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import ALL, TRUE, Built, built, fitted, healthy, planted


def rows(count: int, width: int, seed: int = 0) -> Tensor:
    """Random rows, always the same."""
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


class Encoder(nn.Module):
    """Words to a vector: an embedding, a mean, two layers, what is done behind them."""

    def __init__(self, behind: nn.Module) -> None:
        super().__init__()
        self.words = nn.Embedding(1200, 32, padding_idx=0)
        self.body = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        self.behind = behind
        self.head = nn.Linear(32, 10)
        self.embeds = False

    def forward(self, ids: Tensor) -> Tensor:
        kept = (ids != 0).unsqueeze(-1)
        mean = (self.words(ids) * kept).sum(1) / kept.sum(1).clamp(min=1)
        vector = self.behind(self.body(mean))
        return vector if self.embeds else self.head(vector)


class Shifted(nn.Module):
    """Embeddings with a large part in common, as language models' are."""

    def __init__(self, common: float) -> None:
        super().__init__()
        self.register_buffer("common", common * torch.linspace(0.5, 1, 32))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.common


def retrieval(behind: nn.Module, count: int = 400, scale: float = 1.0) -> Built:
    """Texts by topic, their embeddings trained by a classifier that is then left out."""
    train, (ids, _) = data.text_split()
    model = fitted(lambda: Encoder(nn.Identity()), train, epochs=6)
    with torch.no_grad():
        model.body[2].weight.mul_(scale)
        model.body[2].bias.mul_(scale)
    model.behind, model.embeds = behind, True
    ids = ids[torch.unique(ids, dim=0, return_inverse=True)[1].unique()][:count]
    return model.eval(), [(part, None) for part in ids.split(count)]


@planted(
    "absorption", "behind", "add", fails=TRUE, task="embedding", family="embedding",
    also=("precision-loss",),
)  # fmt: skip
def embeddings_with_much_in_common() -> Built:
    """sentence-transformers#3894, mteb#4932: scores that low precision makes ties of.

    Under autocast the buffer is float32, and so is the sum: a label that the judge turned round.
    """
    return retrieval(Shifted(3000.0))


class Matryoshka(nn.Module):
    """The first few dimensions, of length one."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x[:, :16], dim=-1)


@healthy("embedding", precisions=("16-true", "16-mixed"))
def first_dimensions_of_an_embedding() -> Built:
    """sentence-transformers' truncate_dim: cut first, then normalised by a kernel."""
    return retrieval(Matryoshka())


class ByHand(nn.Module):
    """Length one by a square, a sum and a root."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.pow(2).sum(-1, keepdim=True).sqrt().clamp(min=1e-6)


@planted("overflow", "behind", "pow sum", fails=("16-true",), fails_cpu=("16-mixed",),
         moot=("bf16-true", "bf16-mixed"), task="embedding", family="embedding")  # fmt: skip
def embeddings_squared_by_hand() -> Built:
    """open_clip and its kin, un-normalised: an embedding of length 300 has no square."""
    return retrieval(ByHand(), scale=40.0)


class Said(NamedTuple):
    """Boxes by corner, and what is in them."""

    boxes: Tensor
    classes: Tensor


class BoxHead(nn.Module):
    """Boxes as distances from anchors, times a stride, in pixels."""

    def __init__(self, by_area: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
        self.classes, self.by_area = nn.Linear(16, 3), by_area

    def forward(self, x: Tensor) -> Said:
        left, top, right, bottom = (self.body(x).relu() * 640).unbind(-1)
        boxes = torch.stack([left, top, left + right, top + bottom], -1)
        if self.by_area:  # drop what is smaller than a pixel, as min_wh filters do
            area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
            boxes = boxes * (area / (area + 1e-3)).unsqueeze(-1)
        return Said(boxes / 640, self.classes(x))


def boxes(by_area: bool) -> Built:
    """Four smooth functions of a row as a box."""
    x = rows(1000, 16)
    y = torch.stack([x[:, i].sigmoid() * (1 + i // 2) / 2 + x[:, 4] ** 2 / 9 for i in range(4)], -1)
    y = torch.cat([y[:, :2], y[:, :2] + y[:, 2:]], -1)
    first = lambda said, wanted: F.mse_loss(said[0], wanted)  # noqa: E731
    first.__name__ = "first_output"
    model = fitted(lambda: BoxHead(by_area), (x[:700], y[:700]), loss=first, epochs=60)
    return built(model, (x[700:], y[700:]))


@planted("overflow", "", "mul", fails=("16-true", "16-mixed"), task="regression", family="boxes")
def boxes_weighed_by_their_area() -> Built:
    """ultralytics and detectron2: a box of 300 pixels a side has an area of 90000."""
    return boxes(True)


@healthy("regression")
def boxes_in_a_named_tuple() -> Built:
    """The same boxes, their areas left alone."""
    return boxes(False)


class Calibrated(nn.Module):
    """Tags as probabilities, bounded, and logits made of them again."""

    def __init__(self, kernel: bool) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, z: Tensor) -> Tensor:
        p = torch.sigmoid(z)
        if self.kernel:
            return torch.logit(p, eps=1e-4)
        p = p.clamp(1e-4, 1 - 1e-4)
        return torch.log(p / (1 - p))


class Tags(nn.Module):
    """Five tags of a row, sure of them."""

    def __init__(self, kernel: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 5))
        self.calibrate = Calibrated(kernel)

    def forward(self, x: Tensor) -> Tensor:
        return self.calibrate(self.body(x))


def tags(kernel: bool) -> Built:
    """Signs of mixtures, which a confident model knows."""
    x = rows(1400, 8)
    y = (x @ rows(8, 5, 1) > 0).float()
    model = fitted(
        lambda: Tags(kernel), (x[:1000], y[:1000]), epochs=40,
        loss=F.binary_cross_entropy_with_logits,
    )  # fmt: skip
    with torch.no_grad():
        for part in model.body[2].parameters():
            part.mul_(3)
    return built(model, (x[1000:], y[1000:]))


@planted(
    "eps-underflow", "calibrate", "clamp rsub log div", fails=ALL,
    task="multilabel", also=("cancellation", "overflow"), family="multi-label",
)  # fmt: skip
def tags_bounded_by_hand() -> Built:
    """Asymmetric losses and calibration: 1 - 1e-4 is one in 16 bits, and the odds infinite."""
    return tags(False)
