"""Held-out scores: memories, triples, crossed features, tables, rerankers, blanks.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import TRUE, Built, planted
from benchmarks.cases.reported_quantities import perceptron, taught
from benchmarks.cases.reported_tongues import decided, drawn

BF16 = ("bf16-true", "bf16-mixed")


class Memory(nn.Module):
    """A neural Turing machine's memory and how it is addressed."""

    def __init__(self, slots: int, dim: int) -> None:
        super().__init__()
        self.memory = nn.Parameter(drawn(slots, dim, seed=30) * 0.3)

    def address(self, k: Tensor, beta: Tensor, shift: Tensor, gamma: Tensor) -> Tensor:
        w = self._similarity(k, beta)
        w = self._shift(w, shift)
        return self._sharpen(w, gamma)

    def _similarity(self, k: Tensor, beta: Tensor) -> Tensor:
        return F.softmax(beta * F.cosine_similarity(self.memory, k.unsqueeze(1), dim=-1), dim=1)

    def _shift(self, w: Tensor, shift: Tensor) -> Tensor:
        around = torch.cat([w[:, -1:], w, w[:, :1]], dim=1)
        return sum(shift[:, i : i + 1] * around[:, i : i + w.shape[1]] for i in range(3))

    def _sharpen(self, w: Tensor, gamma: Tensor) -> Tensor:
        w = w**gamma
        return torch.div(w, torch.sum(w, dim=1).view(-1, 1) + 1e-16)

    def read(self, w: Tensor) -> Tensor:
        return torch.matmul(w.unsqueeze(1), self.memory.to(w.dtype)).squeeze(1)


class Machine(nn.Module):
    """A controller, a read, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.controller, self.memory = nn.Linear(8, 21), Memory(48, 16)
        self.head = perceptron(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        k, beta, shift, gamma = self.controller(x).split([16, 1, 3, 1], dim=1)
        w = self.memory.address(
            torch.tanh(k), F.softplus(beta), F.softmax(shift, dim=1), 8 + F.softplus(gamma)
        )
        return self.head(6 * self.memory.read(w))


@planted(
    "underflow", "", "pow add", fails=("16-true",), moot=BF16, also=("eps-underflow",),
    family="range",
)  # fmt: skip
def attention_that_is_sharpened() -> Built:
    """pytorch-ntm: a fiftieth to the eighth power is zero, and so is what keeps from 0 / 0."""
    return decided(Machine, (drawn(384, 8),))


class RotatE(nn.Module):
    """Triples scored by a sum of distances of complex numbers."""

    def __init__(self, entities: int = 80, dim: int = 400) -> None:
        super().__init__()
        self.gamma = 900.0
        self.entity = nn.Parameter(drawn(entities, 2 * dim, seed=31))
        self.relation = nn.Parameter(drawn(6, dim, seed=32))

    def score(self, head: Tensor, relation: Tensor, tail: Tensor) -> Tensor:
        re_head, im_head = torch.chunk(head, 2, dim=2)
        re_tail, im_tail = torch.chunk(tail, 2, dim=2)
        re_relation, im_relation = torch.cos(relation), torch.sin(relation)
        re_score = re_head * re_relation - im_head * im_relation - re_tail
        im_score = re_head * im_relation + im_head * re_relation - im_tail
        score = torch.stack([re_score, im_score], dim=0)
        score = score.norm(dim=0)
        return self.gamma - score.sum(dim=2)

    def forward(self, head: Tensor, relation: Tensor) -> Tensor:
        one = self.entity[head].unsqueeze(1)
        return self.score(one, self.relation[relation].unsqueeze(1), self.entity[:10].unsqueeze(0))


class Triples(nn.Module):
    """Which of ten entities a relation leads to."""

    def __init__(self) -> None:
        super().__init__()
        self.model = RotatE()

    def forward(self, head: Tensor, relation: Tensor) -> Tensor:
        return self.model(head, relation)


def pairs() -> tuple[Tensor, Tensor]:
    """Entities and relations."""
    random = torch.Generator().manual_seed(9)
    return tuple(torch.randint(0, n, (256,), generator=random) for n in (80, 6))


@planted(
    "precision-loss", "model", "sum sub rsub norm linalg_vector_norm", fails=("bf16-true",),
    moot=("bf16-mixed",), also=("absorption", "cancellation"), family="sums",
)  # fmt: skip
def triples_scored_by_long_sums() -> Built:
    """KnowledgeGraphEmbedding: sums of 400 distances near 750, told apart by fours."""
    return decided(Triples, pairs())


class FM(nn.Module):
    """Second-order crossings: half the square of a sum, less the sum of squares."""

    def forward(self, fm_input: Tensor) -> Tensor:
        square_of_sum = torch.pow(torch.sum(fm_input, dim=1, keepdim=True), 2)
        sum_of_square = torch.sum(fm_input * fm_input, dim=1, keepdim=True)
        cross_term = square_of_sum - sum_of_square
        return 0.5 * torch.sum(cross_term, dim=2, keepdim=False)


class DeepFM(nn.Module):
    """Fields of ids, crossed and read, in the containers of DeepCTR."""

    def __init__(self, fields: int = 20, dim: int = 8) -> None:
        super().__init__()
        self.embedding_dict = nn.ModuleDict({f"C{i}": nn.Embedding(30, dim) for i in range(fields)})
        with torch.no_grad():
            for table in self.embedding_dict.values():
                table.weight.mul_(4).add_(14)
        self.fm, self.dnn = FM(), perceptron(fields * dim, 1)

    def forward(self, ids: Tensor) -> Tensor:
        looked = [table(ids[:, i]) for i, table in enumerate(self.embedding_dict.values())]
        crossed = self.fm(torch.stack(looked, dim=1)) / 1000
        return crossed + 3 * self.dnn(torch.cat(looked, dim=1) / 14 - 1)


@planted("overflow", "fm", "pow", fails=("16-true",), moot=BF16, family="range",
         task="regression")  # fmt: skip
def crossings_of_twenty_fields() -> Built:
    """DeepCTR-Torch: the square of a sum of twenty embeddings is more than 65504."""
    ids = torch.randint(0, 30, (384, 20), generator=torch.Generator().manual_seed(10))
    return taught(DeepFM, (ids,))


def torch_nanmean(x: Tensor, axis: int = 0) -> Tensor:
    """The mean of what is there."""
    num = torch.where(torch.isnan(x), torch.full_like(x, 0), torch.full_like(x, 1)).sum(axis)
    value = torch.where(torch.isnan(x), torch.full_like(x, 0), x).sum(axis)
    return value / num.clip(min=1.0)


def torch_nanstd(x: Tensor, axis: int = 0) -> Tensor:
    """The spread of what is there."""
    num = torch.where(torch.isnan(x), torch.full_like(x, 0), torch.full_like(x, 1)).sum(axis)
    value = torch.where(torch.isnan(x), torch.full_like(x, 0), x).sum(axis)
    mean = (value / num).unsqueeze(axis)
    return torch.sqrt(torch.nansum(torch.square(mean - x), axis) / (num - 1).clip(min=1.0))


class Normalize(nn.Module):
    """A table's columns brought to one scale, within each row of features here."""

    def forward(self, x: Tensor) -> Tensor:
        mean, std = torch_nanmean(x, 1), torch_nanstd(x, 1) + 1e-16
        x = (x - mean.unsqueeze(1)) / std.unsqueeze(1)
        return torch.clip(x, min=-100, max=100)


class Tabular(nn.Module):
    """Six features of sixteen rows each; some of them never vary."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(Normalize(), nn.Linear(6, 24))
        self.head = perceptron(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).relu().mean(1) * 3)


def tables() -> Tensor:
    """Sixteen rows of six features, one of which is all alike in a part of the tables."""
    x = drawn(384, 16, 6, seed=33).round(decimals=1)
    x[::5, :, 2] = 1.0
    return x


@planted("eps-underflow", "encoder.0", "add div", fails=("16-true",), moot=BF16,
         family="epsilon")  # fmt: skip
def features_that_never_vary() -> Built:
    """TabPFN: 1e-16 is zero in float16, and a constant column 0 / 0."""
    return decided(Tabular, (tables(),))


class CrossEncoder(nn.Module):
    """Scores of ten passages each, by a sigmoid as the model card has it."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.body, self.mended = perceptron(16, 1), mended
        with torch.no_grad():
            self.body[2].weight *= 6
            self.body[2].bias.fill_(8.0)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.body(x).squeeze(-1)
        if self.mended:
            logits = logits.double()
        return torch.sigmoid(logits)


class Reranked(nn.Module):
    """A query beside every passage."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.embed, self.ranker = nn.Linear(8, 16), CrossEncoder(mended)

    def forward(self, query: Tensor, passages: Tensor) -> Tensor:
        return self.ranker(self.embed(query).unsqueeze(1) * self.embed(passages))


def passages() -> tuple[Tensor, Tensor]:
    """A query and ten passages."""
    return drawn(512, 8, seed=34), drawn(512, 10, 8, seed=35)


@planted("precision-loss", "ranker", "sigmoid", fails=TRUE, moot=("16-mixed", "bf16-mixed"),
         also=("absorption",), family="ties")  # fmt: skip
def relevances_that_saturate() -> Built:
    """haiku.rag#529: every good passage is rounded to one, and the order is whatever it was."""
    return decided(lambda: Reranked(False), passages())


class Hat(nn.Module):
    """A transducer's chances of a blank and of labels, by the plain formula."""

    def normalize(self, blank: Tensor, lexical: Tensor) -> tuple[Tensor, Tensor]:
        normalizer = torch.log(1 + torch.exp(blank))
        return blank - normalizer, F.log_softmax(lexical, -1) - normalizer.unsqueeze(-1)

    def forward(self, logits: Tensor) -> Tensor:
        blank, lexical = self.normalize(logits[..., 0], logits[..., 1:])
        return torch.cat([blank.unsqueeze(-1), lexical], -1)


class Transducer(nn.Module):
    """What is said in each frame, or nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.joint, self.weights = perceptron(8, 6), Hat()
        with torch.no_grad():
            self.joint[2].weight *= 120

    def forward(self, x: Tensor) -> Tensor:
        return self.weights(self.joint(x))


@planted("overflow", "weights", "exp", fails=("16-true",), moot=BF16, family="range")
def blanks_normalized_by_their_exponential() -> Built:
    """google-research/last#42: the exponential of 12 is infinite in float16."""
    return decided(Transducer, (drawn(384, 8),))
