"""Held-out pairs around a commit that repaired 16 bits: graphs, series, recurrences, sensors.

Each is written anew after what the commit changed, before and after it; nothing is copied.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import FP16, TRUE, Built, built, fitted, healthy, planted
from benchmarks.cases.reported_quantities import perceptron


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Convolved(nn.Module):
    """A graph convolution, both of its ends normalised by the root of their degree."""

    def __init__(self, into: int, out: int, mended: bool) -> None:
        super().__init__()
        self.weight, self.mended = nn.Parameter(drawn(into, out) * into**-0.5), mended

    def scaled(self, x: Tensor, edges: Tensor) -> Tensor:
        norm = edges.sum(-1).float().clamp(min=1).pow(-0.5)[..., None]
        return x * (norm.to(x.dtype) if self.mended else norm)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = torch.matmul(self.scaled(x, edges), self.weight)
        return self.scaled(torch.matmul(edges.to(x.dtype), x), edges)


class Graphs(nn.Module):
    """Two convolutions over twelve nodes, a mean and a head."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.first, self.second = Convolved(4, 24, mended), Convolved(24, 24, mended)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = self.first(x, edges).relu()
        return self.head(self.second(x, edges).relu().mean(1))


def graphs(mended: bool) -> Built:
    """Graphs of three densities."""
    random = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (900,), generator=random)
    chance = (0.15 + 0.25 * y)[:, None, None]
    edges = torch.rand(900, 12, 12, generator=random).triu(1)
    edges = ((edges > 0) & (edges < chance)).long()
    edges = edges + edges.transpose(1, 2)
    x = torch.ones(900, 12, 4) + 0.3 * drawn(900, 12, 4)
    model = fitted(lambda: Graphs(mended), (x[:600], edges[:600], y[:600]), epochs=40)
    return built(model, (x[600:], edges[600:], y[600:]))


@planted("unsupported-op", "first", "mm matmul", fails=TRUE, family="types")
def degrees_of_another_type() -> Built:
    """dgl#4262: normalisers in float32 make the features float32, and the weight is not."""
    return graphs(mended=False)


@healthy()
def degrees_of_the_features_type() -> Built:
    """dgl#4262, as it was mended."""
    return graphs(mended=True)


class Coarse(nn.Module):
    """Clusters of nodes: their links by two products, normalised by roots of degrees."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.assign, self.floor = nn.Linear(8, 4), floor

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        chosen = torch.softmax(self.assign(x), -1)
        links = torch.matmul(torch.matmul(chosen.transpose(1, 2), edges), chosen)
        links = links * (1 - torch.eye(4, dtype=links.dtype, device=links.device))
        degree = torch.einsum("ijk->ij", links).sqrt()[:, None] + self.floor
        return links / degree / degree.transpose(1, 2)


class Clustered(nn.Module):
    """Nodes of four kinds; which kinds are linked?"""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.pool = Coarse(floor)
        self.body = perceptron(16, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.body(self.pool(x, edges).flatten(1))


def clustered(floor: float) -> Built:
    """Sixteen nodes of four kinds, one kind linked to the first; some graphs have no link."""
    random = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (900,), generator=random)
    kind = torch.arange(16) // 4
    x = F.one_hot(kind, 8).float() * 3 + 0.05 * drawn(900, 16, 8)
    linked = (kind[:, None] == 0) & (kind[None] == 1 + y[:, None, None])
    edges = (linked & (torch.rand(900, 16, 16, generator=random) < 0.7)).float()
    edges = edges + edges.transpose(1, 2)
    model = fitted(lambda: Clustered(floor), (x[:600], edges[:600], y[:600]), epochs=40)
    with torch.no_grad():  # as after a long training: assignments without a doubt
        model.pool.assign.weight.copy_(12 * torch.eye(4, 8))
        model.pool.assign.bias.zero_()
    tail = {k: v for k, v in model.named_parameters() if k.startswith("body")}
    optimizer = torch.optim.Adam(tail.values(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x[:600], edges[:600]), y[:600]).backward()
        optimizer.step()
    return built(model, (x[600:], edges[600:], y[600:]))


@planted("eps-underflow", "pool", "div add", fails=FP16, family="epsilon")
def clusters_without_a_link() -> Built:
    """pytorch_geometric#2106: 1e-15 is zero in float16, and so is the degree of a cluster.

    Under autocast, too: einsum is cast as a whole, and that it is a sum here is not looked at.
    """
    return clustered(1e-15)


@healthy()
def clusters_without_a_link_by_a_larger_floor() -> Built:
    """pytorch_geometric#2106: with an epsilon that float16 has."""
    return clustered(1e-3)


class Plain(nn.Module):
    """Attention over the edges of a graph: exponentials, summed by index."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.score, self.value, self.mended = nn.Linear(8, 1), nn.Linear(8, 16), mended

    def forward(self, x: Tensor, node: Tensor) -> Tensor:
        score = self.score(x)[..., 0].flatten()
        index = (node + 6 * torch.arange(len(node), device=node.device)[:, None]).flatten()
        if self.mended:
            largest = torch.zeros_like(score[: 6 * len(node)])
            largest = largest.scatter_reduce(0, index, score, "amax", include_self=False)
            score = score - largest[index]
        weight = score.exp()
        total = torch.zeros_like(weight[: 6 * len(node)]).index_add(0, index, weight)
        weight = (weight / total[index]).view(node.shape)
        return (weight[..., None].to(x.dtype) * self.value(x)).sum(1)


class Voted(nn.Module):
    """Messages to six nodes, and what they say together."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.attend, self.head = Plain(mended), nn.Linear(16, 4)

    def forward(self, x: Tensor, node: Tensor) -> Tensor:
        return self.head(self.attend(x, node).relu())


def voted(mended: bool) -> Built:
    """Of thirty edges only those with a large mark count; the label is their kind."""
    random = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (900,), generator=random)
    x = 0.5 * drawn(900, 30, 8)
    marked = torch.rand(900, 30, generator=random) < 0.3
    x[..., 0] = marked.float() * 2
    x[..., 4:] += F.one_hot(y, 4)[:, None] * marked[..., None] * 0.8
    node = torch.randint(0, 6, (900, 30), generator=random)
    model = fitted(lambda: Voted(mended), (x[:600], node[:600], y[:600]), epochs=30)
    with torch.no_grad():
        model.attend.score.weight.copy_(torch.tensor([[7.0, 0, 0, 0, 0, 0, 0, 0]]))
    return built(model, (x[600:], node[600:], y[600:]))


@planted("overflow", "attend", "exp", fails=("16-true",), family="exponentials")
def edges_by_plain_exponents() -> Built:
    """pytorch_geometric e98be783: exp of fourteen, as long as no maximum is taken off."""
    return voted(mended=False)


@healthy()
def edges_by_shifted_exponents() -> Built:
    """pytorch_geometric e98be783: the largest score of each node is taken off first."""
    return voted(mended=True)


class Tokens(nn.Module):
    """A series over its mean, in bins whose edges are a tensor that no module owns."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.edges, self.mended = torch.linspace(-4, 4, 127), mended
        self.table, self.head = nn.Embedding(128, 24), perceptron(24, 4)

    def forward(self, context: Tensor) -> Tensor:
        context = context.float() if self.mended else context
        scale = context.abs().sum(-1, keepdim=True) / context.shape[-1]
        ids = torch.bucketize(context / scale, self.edges.to(context.device), right=True)
        return self.head(self.table(ids).mean(1))


def tokenised(mended: bool) -> Built:
    """Series of four shapes, at levels between ten and three thousand."""
    random = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (900,), generator=random)
    level = 10 ** (1 + 2.5 * torch.rand(900, 1, generator=random))
    wave = torch.sin(torch.arange(128) / 5 + 6 * drawn(900, 1)).sign() * 0.15 * (1 + y[:, None])
    x = level * (1 + wave + 0.05 * drawn(900, 128, seed=1))
    return built(fitted(lambda: Tokens(mended), (x[:600], y[:600]), epochs=20), (x[600:], y[600:]))


@planted("overflow", "", "sum", fails=("16-true",), family="sums")
def bins_of_the_contexts_type() -> Built:
    """chronos-forecasting#193: the scale is a sum over the context, in the context's own type."""
    return tokenised(mended=False)


@healthy()
def bins_in_float32() -> Built:
    """chronos-forecasting#197: the context is made float32 before it is scaled."""
    return tokenised(mended=True)


class Recurrent(nn.Module):
    """Real-gated linear recurrence: a decay near one, and an input of sqrt(1 - decay squared)."""

    def __init__(self, dim: int, mended: bool) -> None:
        super().__init__()
        self.gate, self.mended = nn.Linear(dim, dim), mended
        self.rate = nn.Parameter(torch.linspace(-9.0, -4.5, dim))

    def forward(self, x: Tensor) -> Tensor:
        log = -8 * self.gate(x).sigmoid() * F.softplus(self.rate)
        if self.mended:
            log = log.float()
            decay, share = log.exp(), torch.sqrt(-torch.expm1(2 * log))
        else:
            decay, share = torch.exp(log), torch.sqrt(1 - torch.exp(2 * log))
        state, seen = torch.zeros_like(x[:, 0], dtype=torch.float32), []
        for t in range(x.shape[1]):
            state = decay[:, t] * state + share[:, t] * x[:, t]
            seen.append(state)
        return torch.stack(seen, 1).to(x.dtype)


class Griffin(nn.Module):
    """Two layers and a recurrence; the last state is read."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.enter, self.recur = nn.Linear(2, 24), Recurrent(24, mended)
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.recur(self.enter(x)))[:, -1])


def recurred(mended: bool) -> Built:
    """Which of four places of a long series had a pulse?"""
    random = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (1600,), generator=random)
    x = 0.2 * drawn(1600, 48, 2)
    place = 6 + 10 * y + torch.randint(0, 6, (1600,), generator=random)
    x[torch.arange(1600), place] += torch.tensor([4.0, -2.0])
    model = fitted(lambda: Griffin(True), (x[:800], y[:800]), epochs=40, rate=1e-2)
    model.recur.mended = mended
    return built(model, (x[800:], y[800:]))


@planted(
    "cancellation", "recur", "rsub sub exp sqrt", fails=("bf16-true",), moot=("16-true",),
    also=("absorption", "precision-loss"), family="decays",
)  # fmt: skip
def share_of_a_decay_near_one() -> Built:
    """recurrentgemma and its ports: 1 - a² of a decay of 0.999 is none in bfloat16."""
    return recurred(mended=False)


@healthy()
def share_by_expm1() -> Built:
    """The same by expm1 of the logarithm, in float32."""
    return recurred(mended=True)
