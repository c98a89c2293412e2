"""A linear layer as a custom kernel: its 16-bit path may be defective, its 32-bit path is exact.

The defects are those of real kernels: results truncated instead of rounded, sums kept in 16 bits,
float16 weights that passed through bfloat16 on their way, a bias forgotten. None of them raises,
and an accuracy gate sees next to nothing.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

DEFECTS = ("truncated", "accumulated in 16 bits", "weights through bfloat16", "bias dropped")
_STEP = 4


def _truncate(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """To 16 bits toward zero: round to nearest, and step back where that went away from zero."""
    rounded = exact.to(dtype)
    bits = rounded.view(torch.int16)
    # Sign and magnitude: one less, as an integer, is one step toward zero for either sign.
    return torch.where(rounded.float().abs() > exact.abs(), bits - 1, bits).view(dtype)


def _accumulate(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A running sum that is rounded after every few products, as 16-bit accumulators do."""
    total = bias.expand(*x.shape[:-1], -1).clone()
    for start in range(0, x.shape[-1], _STEP):
        part = slice(start, start + _STEP)
        total = (total.float() + x[..., part].float() @ weight[:, part].float().T).to(x.dtype)
    return total


@torch.library.custom_op("fp16_benchmarks::linear", mutates_args=())
def kernel(x: Tensor, weight: Tensor, bias: Tensor, defect: str) -> Tensor:
    """x @ weight.T + bias; exact in float32, with the defect in 16 bits."""
    if x.dtype == torch.float32:
        return torch.nn.functional.linear(x, weight, bias)
    if defect == "weights through bfloat16":
        weight = weight.to(torch.bfloat16).to(weight.dtype)
    if defect == "accumulated in 16 bits":
        return _accumulate(x, weight, bias)
    exact = x.float() @ weight.float().T
    if defect != "bias dropped":
        exact = exact + bias.float()
    return _truncate(exact, x.dtype) if defect == "truncated" else exact.to(x.dtype)


@kernel.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, defect: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(bias))


def _keep(ctx: object, inputs: tuple, output: Tensor) -> None:
    x, weight, _bias, _defect = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: object, grad: Tensor) -> tuple:
    x, weight = ctx.saved_tensors
    flat = grad.flatten(0, -2)
    return grad @ weight, flat.T @ x.flatten(0, -2), flat.sum(0), None


kernel.register_autograd(_backward, setup_context=_keep)


class KernelLinear(nn.Module):
    """nn.Linear on the kernel above."""

    def __init__(self, linear: nn.Linear, defect: str) -> None:
        super().__init__()
        self.weight, self.bias, self.defect = linear.weight, linear.bias, defect

    def forward(self, x: Tensor) -> Tensor:
        return kernel(x.contiguous(), self.weight, self.bias, self.defect)


def with_kernels(model: nn.Module, defect: str) -> nn.Module:
    """A copy whose linear layers run on the kernel; a dropped bias is dropped in one of them."""
    model = copy.deepcopy(model)
    places = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    one = places[len(places) // 2]
    for name in places:
        owner, _, last = name.rpartition(".")
        parent = model.get_submodule(owner)
        here = defect if defect != "bias dropped" or name == one else ""
        setattr(parent, last, KernelLinear(model.get_submodule(name), here))
    return model
