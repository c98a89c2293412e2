"""Layers that ATen composes of operations which each round: see `composed`.

A bilinear layer multiplies its weights with one input, and what that gives, rounded, with the other
(``_trilinear`` in ``Linear.cpp``). A convolution whose time comes first adds one tap after the
other to its output (``ConvolutionTBC.cpp``). Before torch 2.13 CUDA's group norm rounds the mean
and the inverse deviation (pytorch#183946).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from pytest_fp16.engine.emulation.release import since

#: Runs one operation of the program.
Step = Callable[..., Any]

_aten: Any = torch.ops.aten


def _bilinear(step: Step, x: Tensor, weight: Tensor, y: Tensor, *_: Any) -> Any:
    outputs, rows, columns = weight.shape
    turned = step(_aten.permute.default, weight, [1, 0, 2])
    turned = step(_aten.clone.default, turned, memory_format=torch.contiguous_format)
    turned = step(_aten.view.default, turned, [rows, outputs * columns])
    part = step(_aten.view.default, step(_aten.mm.default, x, turned), [-1, outputs, columns])
    return step(
        _aten.squeeze.dim, step(_aten.bmm.default, part, step(_aten.unsqueeze.default, y, -1)), -1
    )


def _conv_tbc(step: Step, x: Tensor, weight: Tensor, bias: Tensor, pad: int = 0) -> Any:
    length, batch, channels = x.shape
    taps, _, outputs = weight.shape
    size = length - taps + 1 + 2 * pad
    out = step(_aten.expand.default, bias, [size, batch, outputs])
    for k in range(taps):  # each tap is added to what those before have given
        start, skip = max(0, k - pad), max(0, pad - k)
        count = min(length + pad - k, size) - skip
        if count <= 0:
            continue
        rows = step(_aten.slice.Tensor, x, 0, start, start + count)
        rows = step(_aten.reshape.default, rows, [-1, channels])
        total = step(_aten.slice.Tensor, out, 0, skip, skip + count)
        total = step(_aten.reshape.default, total, [-1, outputs])
        total = step(_aten.addmm.default, total, rows, step(_aten.select.int, weight, 0, k))
        parts = [
            step(_aten.slice.Tensor, out, 0, 0, skip),
            step(_aten.view.default, total, [count, batch, outputs]),
            step(_aten.slice.Tensor, out, 0, skip + count, size),
        ]
        out = step(_aten.cat.default, parts)
    return out


#: Axes by which `nn.functional.bilinear` asks for a product of three.
OF_BILINEAR = ((1, 3), (0,), (1, 2), (2, 3))


def _group_norm(
    step: Step,
    x: Tensor,
    weight: Any,
    bias: Any,
    n: int,
    channels: int,
    size: int,
    groups: int,
    eps: float,
) -> Any:
    def wide(value: Tensor, shape: list[int]) -> Any:
        return step(
            _aten.reshape.default, step(_aten._to_copy.default, value, dtype=torch.float32), shape
        )

    def kept(value: Any) -> Any:
        return step(_aten._to_copy.default, value, dtype=x.dtype)

    rows = wide(x, [n, groups, -1])
    mean = step(_aten.mean.dim, rows, [2], True)
    centred = step(_aten.sub.Tensor, rows, mean)
    variance = step(_aten.mean.dim, step(_aten.mul.Tensor, centred, centred), [2], True)
    inverse = kept(step(_aten.rsqrt.default, step(_aten.add.Tensor, variance, eps)))
    mean = kept(mean)
    shifted = step(_aten.sub.Tensor, rows, wide(mean, [n, groups, 1]))
    out = step(_aten.mul.Tensor, shifted, wide(inverse, [n, groups, 1]))
    out = step(_aten.reshape.default, out, [n, channels, size])
    if weight is not None:
        out = step(_aten.mul.Tensor, out, wide(weight, [1, channels, 1]))
    if bias is not None:
        out = step(_aten.add.Tensor, out, wide(bias, [1, channels, 1]))
    saved = (step(_aten.reshape.default, value, [n, groups]) for value in (mean, inverse))
    return step(_aten.reshape.default, kept(out), list(x.shape)), *saved


def moments_are_rounded(version: str = torch.__version__) -> bool:
    """Whether CUDA's group norm keeps the mean and the inverse deviation in the input's format."""
    return not since(2, 13, version)


#: The product of three that a bilinear layer is; torch need not have it.
TRILINEAR = getattr(getattr(_aten, "_trilinear", None), "default", None)

#: What each consists of.
LAYERS: dict[OpOverload, Callable[..., Any]] = {
    **({TRILINEAR: _bilinear} if TRILINEAR is not None else {}),
    _aten.conv_tbc.default: _conv_tbc,
    _aten.native_group_norm.default: _group_norm,
}
