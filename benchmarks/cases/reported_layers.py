"""Held-out layers of geometry, graphs and quantisation; some sound, some not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import FP16, TRUE, Built, built, fitted, healthy, planted


class RotationVector(nn.Module):
    """The rotation vector of a quaternion (w, x, y, z)."""

    def forward(self, q: Tensor) -> Tensor:
        w, xyz = q[:, :1], q[:, 1:]
        size = xyz.norm(dim=1, keepdim=True).clamp(min=1e-8)
        return xyz * torch.arccos(w.clamp(-1, 1)) / size


class Pose(nn.Module):
    """Which way does a rotation turn? From its quaternion."""

    def __init__(self) -> None:
        super().__init__()
        self.log = RotationVector()
        self.body = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, q: Tensor) -> Tensor:
        return self.body(self.log(q))


@planted("eps-underflow", "log", "clamp div", fails=("16-true",), family="geometry")
def logarithm_of_no_rotation() -> Built:
    """kornia#3966: the identity has no axis, 1e-8 is zero in float16, and 0 / 0 follows."""
    random = torch.Generator().manual_seed(0)
    turn = torch.randn(1500, 3, generator=random)
    turn[::20] = 0
    angle = turn.norm(dim=1, keepdim=True)
    q = torch.cat([(angle / 2).cos(), turn * (angle / 2).sin() / angle.clamp(min=1e-9)], 1)
    y = torch.where(angle[:, 0] < 0.3, 3, turn.abs().argmax(1))
    return built(fitted(Pose, (q[:1000], y[:1000])), (q[1000:], y[1000:]))


class Frames(nn.Module):
    """A rotation from six numbers by Gram and Schmidt, applied to points."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 6))
        self.points = nn.Parameter(torch.randn(12, 3))
        self.head = nn.Linear(36, 10)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.net(x.flatten(1)).chunk(2, -1)
        first = F.normalize(a, dim=-1)
        second = F.normalize(b - (first * b).sum(-1, keepdim=True) * first, dim=-1)
        third = torch.linalg.cross(first, second.to(first.dtype))
        turn = torch.stack([first, second.to(first.dtype), third.to(first.dtype)], -1)
        points = self.points.to(turn.dtype) @ turn
        return self.head(points.flatten(1))


@healthy()
def rotation_of_six_numbers() -> Built:
    """pytorch3d's rotation_6d_to_matrix (kornia#4021 is of its kin): never near zero."""
    train, test = data.digits()
    return built(fitted(Frames, train), test)


class Neighbours(nn.Module):
    """DGCNN: each point and its four nearest by features, the largest over them."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.edge = nn.Linear(2 * dim, out)

    def forward(self, x: Tensor) -> Tensor:
        inner = -2 * x @ x.transpose(1, 2)
        square = x.square().sum(-1, keepdim=True)
        near = (-square - inner - square.transpose(1, 2)).topk(4, -1).indices
        row = torch.arange(len(x), device=x.device)[:, None, None]
        other, here = x[row, near], x[:, :, None].expand(-1, -1, 4, -1)
        return F.leaky_relu(self.edge(torch.cat([here, other - here], -1)), 0.2).amax(2)


class Cloud(nn.Module):
    """Twenty points of ink, two layers of neighbours, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Neighbours(3, 32), Neighbours(32, 32)
        self.head = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, points: Tensor) -> Tensor:
        a = self.first(points)
        b = self.second(a)
        return self.head(torch.cat([a, b], -1).amax(1))


@healthy()
def nearest_of_a_point_cloud() -> Built:
    """Pointnet_Pointnet2_pytorch#151: neighbours by |a|² - 2ab + |b|² of small coordinates."""
    (x, y), (u, v) = data.digits()

    def points(x: Tensor) -> Tensor:
        ink, place = x.flatten(1).topk(20, 1)
        return torch.stack([place // 8 / 4 - 1, place % 8 / 4 - 1, ink], -1)

    return built(fitted(Cloud, (points(x), y), epochs=15), (points(u), v))


class GraphAttention(nn.Module):
    """GAT over edges: a softmax by index, spelt out with scatter_reduce and index_add."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        place = torch.cartesian_prod(torch.arange(8), torch.arange(8)).float()
        edges = (torch.cdist(place, place) < 1.5).nonzero().T
        self.register_buffer("edges", edges[:, (edges != 63).all(0)], persistent=False)
        self.lin, self.score = nn.Linear(dim, dim), nn.Linear(2 * dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        (source, target), h = self.edges, self.lin(x)
        score = F.leaky_relu(self.score(torch.cat([h[:, source], h[:, target]], -1)), 0.2)[..., 0]
        index = target.expand_as(score)
        top = score.new_full(h.shape[:2], -60000.0).scatter_reduce(1, index, score, "amax")
        weight = (score - top.gather(1, index)).exp()
        total = weight.new_zeros(h.shape[:2]).scatter_add(1, index, weight)
        weight = weight / (total.gather(1, index) + 1e-16)
        return torch.zeros_like(h).index_add(
            1, target, (weight[..., None] * h[:, source]).to(h.dtype)
        )


class Graph(nn.Module):
    """Pixels as nodes, the last of them without an edge; degrees to the power of -1/2."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.gat, self.head = nn.Linear(1, 16), GraphAttention(), nn.Linear(1024, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x.flatten(1)[..., None])
        x = F.elu(self.gat(x))
        degree = x.new_zeros(64).index_add(
            0, self.gat.edges[1], x.new_ones(self.gat.edges.shape[1])
        )
        norm = degree.pow(-0.5)
        norm = norm.masked_fill(norm == float("inf"), 0)
        return self.head((x * norm[:, None].to(x.dtype)).flatten(1))


@healthy()
def graph_attention_by_index() -> Built:
    """pytorch_geometric#2106, #53: 1e-16 is zero in float16, but a softmax's sum is one or more."""
    train, test = data.digits()
    return built(fitted(Graph, train, epochs=12), test)


class Int8Linear(nn.Module):
    """Weights of eight bits; the scale is applied to the product or to the weights."""

    def __init__(self, linear: nn.Linear, before: bool) -> None:
        super().__init__()
        weight, self.before = linear.weight.detach(), before
        scale = weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale.flatten())
        self.bias = nn.Parameter(linear.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        if self.before:
            return F.linear(x, self.weight.to(x.dtype) * self.scale[:, None].to(x.dtype), self.bias)
        return F.linear(x, self.weight.to(x.dtype)) * self.scale + self.bias


class Bytes(nn.Module):
    """Pixels of 0 to 255 through a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 48), nn.Linear(48, 10)
        with torch.no_grad():
            self.first.weight.div_(128)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x.flatten(1))).to(x.dtype))


def weights_of_eight_bits(before: bool) -> Built:
    """A perceptron on bytes whose layers were quantised after training."""
    (x, y), (u, v) = data.digits()
    model = fitted(Bytes, (x * 255, y), rate=1e-3)
    model.first = Int8Linear(model.first, before)
    model.second = Int8Linear(model.second, before)
    return built(model, (u * 255, v))


@planted("overflow", "first", "mm addmm linear", fails=FP16, family="quantizer")
def int8_scaled_after_the_product() -> Built:
    """huggingface/diffusion-fast#1: weights of up to 127 overflow before their scale is applied."""
    return weights_of_eight_bits(before=False)


@healthy()
def int8_scaled_before_the_product() -> Built:
    """The same weights, scaled first."""
    return weights_of_eight_bits(before=True)


class Whitened(nn.Module):
    """Distances to class centres in the metric of a covariance, by its Cholesky factor."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("covariance", torch.eye(16))
        self.centres = nn.Parameter(torch.randn(10, 16))

    def forward(self, x: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(self.covariance)
        off = (x[:, None] - self.centres).to(factor.dtype)
        return -torch.linalg.solve_triangular(factor, off.mT, upper=False).square().sum(1)


class Mahalanobis(nn.Module):
    """Features and whitened distances."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.distance = nn.Linear(64, 16), Whitened()

    def forward(self, x: Tensor) -> Tensor:
        return self.distance(self.body(x.flatten(1)))


@planted("unsupported-op", "distance", "linalg_cholesky_ex", fails=TRUE, family="kernel")
def cholesky_of_a_covariance() -> Built:
    """gmm-torch#27, cheetah#484: no Cholesky factor in 16 bits."""
    train, test = data.digits()
    return built(fitted(Mahalanobis, train), test)


class SplineEdges(nn.Module):
    """KAN: cubic splines on every edge, by the recursion over a grid of knots."""

    def __init__(self, enter: int, leave: int, grid: int = 5, order: int = 3) -> None:
        super().__init__()
        step, self.order = 2 / grid, order
        knots = torch.arange(-order, grid + order + 1) * step - 1
        self.register_buffer("grid", knots.repeat(enter, 1))
        self.base = nn.Linear(enter, leave)
        self.spline = nn.Parameter(torch.randn(leave, enter * (grid + order)) * 0.05)

    def forward(self, x: Tensor) -> Tensor:
        g, u = self.grid, x[..., None]
        bases = ((u >= g[:, :-1]) & (u < g[:, 1:])).to(x.dtype)
        for k in range(1, self.order + 1):
            left = (u - g[:, : -(k + 1)]) / (g[:, k:-1] - g[:, : -(k + 1)]) * bases[..., :-1]
            right = (g[:, k + 1 :] - u) / (g[:, k + 1 :] - g[:, 1:-k]) * bases[..., 1:]
            bases = left + right
        return self.base(F.silu(x)) + F.linear(bases.flatten(-2), self.spline)


class Kan(nn.Module):
    """Two layers of splines."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = SplineEdges(64, 16), SplineEdges(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x.flatten(1))))


@healthy()
def splines_on_edges() -> Built:
    """efficient-kan: an input on a knot may lie on either side, and it does not matter."""
    train, test = data.digits()
    return built(fitted(Kan, train), test)
