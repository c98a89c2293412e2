"""Held-out programs that meet a type or a kernel they did not think of: edges, rotations, exports.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import TRUE, Built, healthy, planted
from benchmarks.cases.reported_structures import settled
from benchmarks.cases.reported_tongues import drawn
from benchmarks.data import batches


class OrthogonalRNN(nn.Module):
    """A recurrence that keeps lengths: its weight is orthogonal by a parametrization."""

    def __init__(self, into: int = 5, dim: int = 24) -> None:
        super().__init__()
        self.enter = nn.Linear(into, dim)
        self.turn = nn.utils.parametrizations.orthogonal(nn.Linear(dim, dim, bias=False),
                                                         orthogonal_map="householder")  # fmt: skip
        self.bias, self.head = nn.Parameter(torch.zeros(dim)), nn.Linear(dim, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), self.bias.shape[0], dtype=x.dtype, device=x.device)
        with nn.utils.parametrize.cached():
            for step in x.unbind(1):
                z = self.enter(step) + self.turn(h)
                h = z.sign() * F.relu(z.abs() + self.bias)
        return self.head(h)


@planted("unsupported-op", "turn.parametrizations.weight.0", "linalg_householder_product",
         fails=TRUE, family="recurrences")  # fmt: skip
def rotations_by_householder() -> Built:
    """pytorch's orthogonal parametrization: LAPACK's products of reflections are for float32."""
    return settled(OrthogonalRNN, (drawn(400, 10, 5, seed=7),))


def scatter_softmax(src: Tensor, index: Tensor, size: int, by_type: bool) -> Tensor:
    """A softmax over the edges of each node, as torch_scatter composes it."""
    index = index[:, None].expand_as(src)
    largest = src.new_full((size, src.shape[1]), float("-inf"))
    largest = largest.scatter_reduce(0, index, src, "amax")
    exponents = (src - largest.gather(0, index)).exp()
    dtype = exponents.dtype if by_type else src.dtype
    total = torch.zeros(size, src.shape[1], dtype=dtype, device=src.device)
    total.scatter_add_(0, index, exponents)
    return exponents / total.gather(0, index)


class GraphTransformer(nn.Module):
    """Attention along the edges of a graph of five nodes each, batched into one."""

    def __init__(self, by_type: bool, dim: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.by_type = heads, by_type
        self.enter, self.qkv = nn.Linear(6, dim), nn.Linear(dim, 3 * dim)
        self.att, self.head = nn.Linear(2 * dim // heads, 1), nn.Linear(dim, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, nodes, _ = x.shape
        at = torch.arange(n * nodes, device=x.device).view(n, nodes)
        source = at[:, None, :].expand(n, nodes, nodes).flatten()
        target = at[:, :, None].expand(n, nodes, nodes).flatten()
        h = self.enter(x).flatten(0, 1)
        q, k, v = self.qkv(h).view(n * nodes, 3, self.heads, -1).unbind(1)
        alpha = F.leaky_relu(self.att(torch.cat([q[target], k[source]], dim=-1)), 0.2).squeeze(-1)
        alpha = scatter_softmax(4 * alpha, target, n * nodes, self.by_type)
        message = v[source] * alpha[..., None].to(v.dtype)
        out = torch.zeros_like(v).index_add_(0, target, message).flatten(1)
        return self.head((h + out).view(n, nodes, -1).amax(1))


@planted("unsupported-op", "", "scatter_add_ scatter_add", fails_cuda=("16-mixed", "bf16-mixed"),
         family="graphs")  # fmt: skip
def edges_summed_into_another_type() -> Built:
    """pytorch_scatter#238: autocast's exp is float32, and the zeros it is added to are not."""
    return settled(partial(GraphTransformer, False), (drawn(400, 5, 6, seed=8),))


@healthy()
def edges_summed_into_their_own_type() -> Built:
    """pytorch_scatter#238: zeros of the type of what is added to them."""
    return settled(partial(GraphTransformer, True), (drawn(400, 5, 6, seed=8),))


class Recurrent(nn.Module):
    """A cell by hand, whose state begins as zeros of the input's type."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(6, 20), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[0], 20, dtype=x.dtype, device=x.device)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return self.head(h)


def exported() -> nn.Module:
    """The module of an exported program, as it is served."""
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(
        Recurrent().eval(), (torch.zeros(8, 7, 6),), dynamic_shapes=({0: batch},)
    )
    return program.module()


@planted("unsupported-op", "", "linear addmm mm gru_cell matmul", fails=TRUE,
         family="programs")  # fmt: skip
def states_of_an_exported_program() -> Built:
    """PiPPy#1104, keras#22815 are of its kin: zeros of a float32 that was written down."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model, x = exported(), drawn(400, 7, 6, seed=9)
        said = model(x)
    sure = said.topk(2).values.diff().squeeze(1).argsort()[:300].sort().values
    return model, batches(x[sure], said.argmax(1)[sure], size=100)
