"""Held-out codes: weights in four bits, blocks of bytes, compressed pictures, patterns recalled.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import Built, healthy, planted
from benchmarks.cases.reported_structures import settled
from benchmarks.cases.reported_tongues import drawn

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class NVFP4Linear(nn.Module):
    """Codes of four bits, a scale of eight bits for each sixteen, and one for all of them."""

    table: Tensor

    def __init__(self, into: int, out: int, size: float, block: int = 16) -> None:
        super().__init__()
        weight = (torch.randn(out, into) * size / into**0.5).unflatten(1, (-1, block))
        amax = weight.abs().amax(-1, keepdim=True)
        world = weight.abs().max() / (6 * 448)
        scale = (amax / 6 / world).to(torch.float8_e4m3fn)
        signed = torch.tensor(E2M1 + tuple(-v for v in E2M1))
        wanted = weight / (scale.float() * world)
        codes = (wanted.unsqueeze(-1) - signed).abs().argmin(-1)
        self.register_buffer("weight_packed", codes.to(torch.uint8))
        self.register_buffer("weight_scale", scale.float())
        self.register_buffer("weight_scale_2", world.view(1))
        self.register_buffer("table", signed)
        self.bias = nn.Parameter(torch.randn(out) * size)

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        weight = self.table.to(dtype)[self.weight_packed.long()]
        weight = weight * (self.weight_scale.to(dtype) * self.weight_scale_2.to(dtype))
        return F.linear(x, weight.flatten(1).to(dtype), self.bias.to(dtype))


class Packed(nn.Module):
    """A layer of such codes, a norm that makes its size of no importance, and a head."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.enter, self.packed = nn.Linear(16, 32), NVFP4Linear(32, 32, size)
        self.norm, self.head = nn.LayerNorm(32, eps=1e-12), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.norm(self.packed(F.gelu(self.enter(x))))))


@planted(
    "underflow",
    "packed",
    "_to_copy mul linear addmm",
    fails=("16-true", "16-mixed"),
    also=("eps-underflow", "precision-loss"),
    family="quantized",
)
def weights_whose_scale_of_all_is_tiny() -> Built:
    """vllm#37464 is of its kin: the largest weight over 6 x 448 is below float16's numbers."""
    return settled(lambda: Packed(3e-5), (drawn(300, 16, seed=1),))


@healthy()
def weights_by_scales_of_scales() -> Built:
    """vllm's NVFP4: usual weights, whose common scale of 1e-4 is a rough number of float16."""
    return settled(lambda: Packed(1.0), (drawn(300, 16, seed=1),))


class Q4KLinear(nn.Module):
    """ComfyUI-GGUF: bytes of super-blocks, whose first four are two float16, brought back."""

    blocks: Tensor

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.shape = (out, into)
        n = out * into // 32
        d = (0.02 + 0.02 * torch.rand(n, 1)).half()
        heads = torch.cat((d, 7.5 * d), dim=1).view(torch.uint8)
        body = torch.randint(256, (n, 16), dtype=torch.uint8)
        self.register_buffer("blocks", torch.cat((heads, body), dim=1))
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        heads, body = self.blocks[:, :4].contiguous(), self.blocks[:, 4:]
        d, least = heads.view(torch.float16).to(x.dtype).chunk(2, dim=1)
        shifts = torch.tensor([0, 4], device=x.device, dtype=torch.uint8).view(1, 2, 1)
        quants = (body.unsqueeze(1) >> shifts & 0x0F).flatten(1).to(x.dtype)
        return F.linear(x, (d * quants - least).view(self.shape), self.bias.to(x.dtype))


class Blocked(nn.Module):
    """Two layers of such blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = Q4KLinear(32, 64), Q4KLinear(64, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.down(F.silu(self.up(x))))


@healthy()
def weights_read_from_bytes() -> Built:
    """city96/ComfyUI-GGUF: bytes are read as float16 whatever the model is in."""
    return settled(Blocked, (drawn(300, 32, seed=2),))


class Compressed(nn.Module):
    """kornia's differentiable JPEG: cosines of blocks, rounded by a table, and back again."""

    basis: Tensor
    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        k, n = torch.arange(8).unsqueeze(1), torch.arange(8)
        basis = (math.pi * (2 * n + 1) * k / 16).cos() * 0.5
        basis[0] /= 2**0.5
        self.register_buffer("basis", basis)
        self.register_buffer("steps", 12.0 + 4 * (k + n))

    def forward(self, x: Tensor) -> Tensor:
        blocks = x.unfold(2, 8, 8).unfold(3, 8, 8) * 255 - 128
        coefficients = self.basis @ blocks @ self.basis.t() / self.steps
        rounded = coefficients.round() + (coefficients - coefficients.round()) ** 3
        blocks = self.basis.t() @ (rounded * self.steps) @ self.basis
        blocks = ((blocks + 128) / 255).clamp(0, 1)
        return blocks.permute(0, 1, 2, 4, 3, 5).reshape(x.shape)


class Defended(nn.Module):
    """A picture compressed, a convolution, what it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.jpeg, self.conv = Compressed(), nn.Conv2d(1, 12, 3, stride=2)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.conv(self.jpeg(x))).mean((2, 3)))


@healthy()
def pictures_compressed_before_they_are_read() -> Built:
    """kornia's jpeg_codec_differentiable: a coefficient at a half may be rounded either way."""
    pictures = drawn(240, 1, 16, 16, seed=3) * 0.15 + drawn(240, 1, 1, 1, seed=4) * 0.15 + 0.5
    return settled(Defended, (pictures.clamp(0, 1),))


class Hopfield(nn.Module):
    """hflayers': a state is drawn to stored patterns until it moves by less than 1e-4."""

    def __init__(self, dim: int = 16, stored: int = 24, beta: float = 0.6) -> None:
        super().__init__()
        self.patterns, self.beta = nn.Parameter(torch.randn(stored, dim)), beta
        self.most, self.eps = 20, 1e-4

    def forward(self, state: Tensor) -> Tensor:
        active = torch.ones(len(state), dtype=torch.bool, device=state.device)
        for _ in range(self.most):
            weights = torch.softmax(self.beta * state @ self.patterns.t(), dim=-1)
            new = (weights @ self.patterns).to(state.dtype)
            new = torch.where(active.unsqueeze(-1), new, state)
            moved = torch.norm(new - state, p=2, dim=-1)
            active, state = active & (moved > self.eps), new
            if not active.any():
                break
        return state


class Recalled(nn.Module):
    """Noisy patterns, what they are drawn to, and its kind."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.hopfield, self.head = nn.Linear(16, 16), Hopfield(), nn.Linear(16, 5)
        with torch.no_grad():
            self.enter.weight *= 3

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hopfield(self.enter(x)))


@healthy()
def patterns_recalled_until_they_rest() -> Built:
    """ml-jku/hopfield-layers: steps of less than 1e-4 are none in 16 bits, and it rests earlier."""
    return settled(Recalled, (drawn(300, 16, seed=5),))
