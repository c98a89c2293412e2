"""Held-out layers of large powers and areas, filters, bits and halting; some sound, some not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import Built, built, fitted, healthy, planted


class Powers(nn.Module):
    """Convolution, LPPool with the fourth power, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(1, 8, 3, padding=1), nn.LPPool2d(4, 2)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.conv(x * 16).relu()).flatten(1))


@planted("overflow", "pool", "pow avg_pool2d mul", fails=("16-true",), family="range")
def fourth_powers_pooled() -> Built:
    """mmdetection#9670 and GeM: 17 to the fourth is more than 65504."""
    train, test = data.digits()
    return built(fitted(Powers, train, rate=1e-3), test)


class Merged(nn.Module):
    """ToMe: the six tokens most like another are averaged into it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(4, 32), nn.Parameter(torch.randn(16, 32) * 0.1)
        self.mix, self.head = nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(F.unfold(x, 2, stride=2).transpose(1, 2)) + self.place
        key = F.normalize(x, dim=-1)
        a, b = x[:, ::2], x[:, 1::2]
        like, other = (key[:, ::2] @ key[:, 1::2].transpose(1, 2)).max(-1)
        order = like.argsort(-1, descending=True)[..., None].expand(-1, -1, x.shape[-1])
        kept, gone = a.gather(1, order[:, 6:]), a.gather(1, order[:, :6])
        target = other.gather(1, order[:, :6, 0])[..., None].expand_as(gone)
        b = b.scatter_reduce(1, target, gone, "mean")
        return self.head(F.gelu(self.mix(torch.cat([kept, b], 1))).mean(1))


@healthy()
def tokens_merged() -> Built:
    """ToMe: which tokens are merged may change, and what is said hardly does."""
    train, test = data.digits()
    return built(fitted(Merged, train, epochs=40), test)


class Triangle(nn.Module):
    """Barycentric coordinates of a point in a triangle, by edge functions."""

    def forward(self, corners: Tensor, point: Tensor) -> Tensor:
        a, b, c = corners.unbind(1)

        def edge(p: Tensor, q: Tensor, r: Tensor) -> Tensor:
            return (q[:, 0] - p[:, 0]) * (r[:, 1] - p[:, 1]) - (q[:, 1] - p[:, 1]) * (
                r[:, 0] - p[:, 0]
            )

        whole = edge(a, b, c)
        return (
            torch.stack([edge(b, c, point), edge(c, a, point), edge(a, b, point)], 1)
            / whole[:, None]
        )


class Inside(nn.Module):
    """In which part of a triangle is a point, if it is inside?"""

    def __init__(self) -> None:
        super().__init__()
        self.barycentric = Triangle()
        self.body = nn.Sequential(nn.Linear(3, 24), nn.ReLU(), nn.Linear(24, 4))

    def forward(self, corners: Tensor, point: Tensor) -> Tensor:
        return self.body(self.barycentric(corners, point))


@planted("overflow", "barycentric", "mul sub div", fails=("16-true",), family="geometry")
def edges_of_a_large_triangle() -> Built:
    """pytorch3d's rasterizer: the double area of a triangle of 640 pixels is 200,000."""
    random = torch.Generator().manual_seed(0)
    corners = (
        torch.tensor([[20.0, 30], [620, 60], [300, 460]])
        + torch.rand(1500, 3, 2, generator=random) * 40
    )
    weight = torch.rand(1500, 3, generator=random) + 0.02
    weight = weight / weight.sum(1, keepdim=True)
    out = torch.rand(1500, generator=random) < 0.3
    weight[out] = weight[out] * torch.tensor([2.0, 1, -1])
    weight[out] += (1 - weight[out].sum(1, keepdim=True)) * torch.tensor([1.0, 0, 0])
    point = (weight[..., None] * corners).sum(1)
    y = torch.where((weight < 0).any(1), 3, weight.argmax(1))
    return built(
        fitted(Inside, (corners[:1000], point[:1000], y[:1000])),
        (corners[1000:], point[1000:], y[1000:]),
    )


class Kalman(nn.Module):
    """A constant-velocity filter over the samples of a track, gains computed as it goes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("move", torch.tensor([[1.0, 1], [0, 1]]))
        self.register_buffer("drift", torch.tensor([[1e-3, 0.0], [0, 1e-3]]))
        self.head = nn.Linear(2, 3)

    def forward(self, z: Tensor) -> Tensor:
        state, cov = torch.stack([z[:, 0], z[:, 0] * 0], 1), torch.eye(2).to(z) * 100
        for t in range(1, z.shape[1]):
            state, cov = state @ self.move.T, self.move @ cov @ self.move.T + self.drift
            gain = cov[:, 0] / (cov[0, 0] + 0.25)
            state = state + (z[:, t] - state[:, 0])[:, None] * gain
            cov = cov - gain[:, None] * cov[None, 0]
        return self.head(state * torch.tensor([0.1, 10.0]).to(state))


@healthy(precisions=("16-true", "16-mixed", "bf16-mixed"))
def filter_with_covariance() -> Built:
    """filterpy's update P - K H P, on tracks that rise, rest or fall."""
    random = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (1500,), generator=random)
    z = (y[:, None] - 1) * 0.12 * torch.arange(24) + torch.randn(1500, 24, generator=random) * 0.5
    return built(fitted(Kalman, (z[:1000], y[:1000]), epochs=30, rate=2e-2), (z[1000:], y[1000:]))


class Snake(nn.Module):
    """x + sin²(αx)/α, α learned as a logarithm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.alpha.exp()
        return x + (1.0 / (alpha + 1e-9)) * torch.sin(x * alpha).pow(2)


class Bits(nn.Module):
    """Lookup-free quantization: signs as bits, and the integer they spell."""

    def __init__(self, bits: int = 10) -> None:
        super().__init__()
        self.register_buffer("mask", 2 ** torch.arange(bits - 1, -1, -1))

    def forward(self, z: Tensor) -> Tensor:
        return ((z > 0).int() * self.mask.int()).sum(-1)


class Spelled(nn.Module):
    """Snake features of fixed projections, ten bits a quarter, a table."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.snake = nn.Linear(16, 10), Snake(10)
        self.bits, self.table, self.head = Bits(), nn.Embedding(1024, 32), nn.Linear(128, 10)
        self.project.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        quarters = F.unfold(x - 0.3, 4, stride=4).transpose(1, 2)
        return self.head(self.table(self.bits(self.snake(self.project(quarters)))).flatten(1))


@healthy()
def bits_by_sign() -> Built:
    """vector-quantize-pytorch#145 and BigVGAN's snake: integers stay integers."""
    train, test = data.digits()
    return built(fitted(Spelled, train, epochs=60), test)


class Halts(nn.Module):
    """Adaptive computation: steps are weighted until their chances to halt add up to 0.99."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.step = nn.Linear(64, 48), nn.GRUCell(48, 48)
        self.stop, self.head = nn.Linear(48, 1), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x.flatten(1))
        state, out, used = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x[:, :1])
        for i in range(8):
            state = self.step(x, state.to(x.dtype)).to(x.dtype)
            chance = self.stop(state).sigmoid()
            last = (used + chance >= 0.99) | (i == 7)
            weight = torch.where(last, 1 - used, chance)
            out, used = out + weight * state, used + weight
            if bool((used >= 0.999).all()):
                break
        return self.head(out)


@healthy()
def adaptive_steps() -> Built:
    """Universal transformers' halting: one step more or less, of little weight."""
    train, test = data.digits()
    return built(fitted(Halts, train), test)
