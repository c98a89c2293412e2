"""Held-out paths: beams, distances between strings, reservoirs at the edge, hard choices.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import ALL, FP16, Built, healthy, planted
from benchmarks.cases.reported_structures import settled
from benchmarks.cases.reported_tongues import decided, drawn


class Beams(nn.Module):
    """A decoder that keeps its four best sentences, and hands out the words of the best."""

    def __init__(self, words: int = 12, dim: int = 24, beams: int = 4, steps: int = 10) -> None:
        super().__init__()
        self.words, self.beams, self.steps = words, beams, steps
        self.embed, self.cell = nn.Embedding(words, dim), nn.GRUCell(dim, dim)
        self.enter, self.lm_head = nn.Linear(8, dim), nn.Linear(dim, words)
        with torch.no_grad():
            self.lm_head.weight *= 12

    def search(self, x: Tensor) -> tuple[Tensor, Tensor]:
        n, k, w = len(x), self.beams, self.words
        h = self.enter(x)[:, None].expand(n, k, -1).flatten(0, 1)
        ids = torch.zeros(n * k, dtype=torch.long, device=x.device)
        scores = torch.full((n, k), -1e4, dtype=h.dtype, device=x.device)
        scores[:, 0] = 0
        said = ids.view(n, k, 1)[:, :, :0]
        for _ in range(self.steps):
            h = self.cell(self.embed(ids), h)
            log_probs = F.log_softmax(self.lm_head(h), dim=-1).view(n, k, w)
            scores, best = (scores[:, :, None] + log_probs).flatten(1).topk(k, dim=1)
            beam, ids = best // w, (best % w).flatten()
            said = said.gather(1, beam[:, :, None].expand(-1, -1, said.shape[2]))
            said = torch.cat([said, ids.view(n, k, 1)], dim=2)
            rows = (beam + k * torch.arange(n, device=x.device)[:, None]).flatten()
            h = h[rows]
        return said, scores

    def forward(self, x: Tensor) -> Tensor:
        return F.one_hot(self.search(x)[0][:, 0], self.words).to(x.dtype)


@healthy(precisions=())
def sentences_of_a_beam() -> Built:
    """fairseq's and transformers' beam search: what is nearly as likely may be said instead."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model, x = Beams().eval(), drawn(480, 8, seed=1)
        said, scores = model.search(x)
    sure = scores[:, :2].diff().squeeze(1).argsort()[:240].sort().values
    x, label = x[sure], said[sure, 0]
    return model, [(x[i : i + 80], label[i : i + 80]) for i in (0, 80, 160)]


class Spelling(nn.Module):
    """How many edits each of five words is away from what was typed: a table, row by row."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(2)
        self.register_buffer("words", torch.randint(0, 4, (5, 9), generator=random))
        self.scale = nn.Parameter(torch.tensor(-0.7))

    def forward(self, typed: Tensor) -> Tensor:
        n, length = typed.shape
        size, dtype = self.words.shape[1], self.scale.dtype
        before = torch.arange(size + 1, device=typed.device).to(dtype).expand(n, 5, -1)
        for i in range(length):
            swap = (typed[:, i, None, None] != self.words).to(dtype)
            row = [torch.full_like(before[..., 0], float(i + 1))]
            for j in range(size):
                kept = torch.minimum(before[..., j + 1], row[-1]) + 1
                row.append(torch.minimum(kept, before[..., j] + swap[..., j]))
            before = torch.stack(row, dim=-1)
        place = torch.arange(5, device=typed.device).to(dtype) / 64
        return self.scale * (before[..., -1] + place)


@healthy()
def words_by_their_edits() -> Built:
    """kensho-technologies/pyctcdecode is of its kin: counts of a dozen, and ties that are told."""
    typed = torch.randint(0, 4, (300, 9), generator=torch.Generator().manual_seed(3))
    return decided(Spelling, (typed,))


class Reservoir(nn.Module):
    """An echo state network whose echoes do not fade."""

    def __init__(self, into: int, dim: int, radius: float) -> None:
        super().__init__()
        self.w_in = nn.Parameter(0.5 * torch.randn(dim, into), requires_grad=False)
        w = torch.randn(dim, dim) / dim**0.5
        self.w = nn.Parameter(radius * w, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), self.w.shape[0], dtype=x.dtype, device=x.device)
        for step in x.unbind(1):
            h = torch.tanh(F.linear(step, self.w_in) + F.linear(h, self.w))
        return h


class Echo(nn.Module):
    """A reservoir and the readout that alone is learned."""

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.reservoir, self.readout = Reservoir(3, 64, radius), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.reservoir(x))


@planted("precision-loss", "reservoir", "linear mm addmm tanh add _to_copy", fails=ALL,
         family="recurrences", also=("absorption", "cancellation"))  # fmt: skip
def echoes_that_do_not_fade() -> Built:
    """reservoirpy, echotorch: a spectral radius of three is chaos, in which rounding grows."""
    return settled(partial(Echo, 3.0), (0.3 * drawn(400, 30, 3, seed=4),))


@healthy()
def echoes_that_fade() -> Built:
    """The same with a radius of 0.8: what was rounded is forgotten."""
    return settled(partial(Echo, 0.8), (0.3 * drawn(400, 30, 3, seed=4),))


class Chosen(nn.Module):
    """One of eight experts by a softmax whose temperature was annealed to nearly nothing."""

    def __init__(self, tau: float) -> None:
        super().__init__()
        self.tau = tau
        self.router, self.experts = nn.Linear(10, 8), nn.Linear(10, 8 * 4)
        with torch.no_grad():
            self.router.weight *= 12

    def forward(self, x: Tensor) -> Tensor:
        weight = F.softmax(self.router(x) / self.tau, dim=-1)
        return (self.experts(x).view(len(x), 8, 4) * weight[..., None].to(x.dtype)).sum(1)


@planted("overflow", "", "div", fails=FP16, moot=("bf16-true", "bf16-mixed"),
         family="experts")  # fmt: skip
def choices_at_a_temperature_of_a_ten_thousandth() -> Built:
    """pytorch's gumbel_softmax as it is annealed: scores of ten, divided by 1e-4, are infinite."""
    return decided(partial(Chosen, 1e-4), (drawn(400, 10, seed=5),))


@healthy()
def choices_at_a_temperature_of_a_hundredth() -> Built:
    """The same at 0.01."""
    return decided(partial(Chosen, 1e-2), (drawn(400, 10, seed=5),))
