"""What a CPU's kernels round on the way, as operations that each round: see `composed`.

The log of a softmax over the last axis keeps the sum of exponentials and its logarithm in the
tensor's format (``vec_log_softmax_lastdim_chunk_kernel``); a batch norm that takes its statistics
from the batch keeps them so (``batch_norm_cpu_update_stats_template``); one in evaluation rounds at
every step where its input is strided (``batch_norm_cpu_transform_input_template``); ``xlogy`` keeps
the logarithm. CUDA's have accumulators of 32 bits for all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

_aten: Any = torch.ops.aten

#: What an operation consists of, or None where its kernel is another.
Composed = Callable[..., Any] | None


def _cast(step: Any, x: Tensor, dtype: torch.dtype) -> Any:
    return step(_aten._to_copy.default, x, dtype=dtype)


def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Composed:
    return _logarithms if x.dim() and dim in (-1, x.dim() - 1) and not half_to_float else None


def _logarithms(step: Any, x: Tensor, dim: int, half_to_float: bool) -> Any:
    wide = _cast(step, x, torch.float32)
    shifted = step(_aten.sub.Tensor, wide, step(_aten.amax.default, wide, [dim], True))
    total = step(_aten.sum.dim_IntList, step(_aten.exp.default, shifted), [dim], True)
    logarithm = step(_aten.log.default, _cast(step, total, x.dtype))
    out = step(_aten.sub.Tensor, shifted, _cast(step, logarithm, torch.float32))
    return _cast(step, out, x.dtype)


def _batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *_: Any
) -> Composed:
    if x.dim() < 2 or any(t is not None and t.dtype != x.dtype for t in (weight, bias, mean, var)):
        return None
    if training:
        return _normalised if mean is None else None
    return None if _laid_out(x) else _element_by_element


def _laid_out(x: Tensor) -> bool:
    """Whether rows or channels lie one after another, which kernels of vectors ask for."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    return x.is_contiguous() or (last is not None and x.is_contiguous(memory_format=last))


def _element_by_element(
    step: Any, x: Tensor, weight: Any, bias: Any, mean: Tensor, var: Tensor, *rest: Any
) -> Any:
    def by_channel(value: Tensor) -> Any:
        return step(_aten.view.default, value, [1, -1, *[1] * (x.dim() - 2)])

    spread = step(_aten.sqrt.default, step(_aten.add.Tensor, var, rest[-1]))
    inverse = by_channel(step(_aten.reciprocal.default, spread))
    out = step(_aten.mul.Tensor, step(_aten.sub.Tensor, x, by_channel(mean)), inverse)
    if weight is not None:
        out = step(_aten.mul.Tensor, out, by_channel(weight))
    if bias is not None:
        out = step(_aten.add.Tensor, out, by_channel(bias))
    return out, *(step(_aten.new_zeros.default, x, [0]) for _ in range(2))


def _normalised(step: Any, x: Tensor, weight: Any, bias: Any, *rest: Any) -> Any:
    axes, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]

    def kept(value: Tensor) -> Any:
        return _cast(step, _cast(step, value, x.dtype), torch.float32)

    def by_channel(value: Tensor) -> Any:
        return step(_aten.view.default, _cast(step, value, torch.float32), shape)

    wide = _cast(step, x, torch.float32)
    mean = step(_aten.mean.dim, wide, axes, True)
    centred = step(_aten.sub.Tensor, wide, mean)
    variance = step(_aten.sum.dim_IntList, step(_aten.mul.Tensor, centred, centred), axes, True)
    sums = kept if x.dtype == torch.bfloat16 else lambda value: value
    variance = sums(step(_aten.div.Scalar, sums(variance), x.numel() // x.shape[1]))
    mean = kept(mean)
    scale = inverse = kept(step(_aten.rsqrt.default, step(_aten.add.Scalar, variance, rest[-1])))
    if weight is not None:
        scale = step(_aten.mul.Tensor, inverse, by_channel(weight))
    out = step(_aten.mul.Tensor, step(_aten.sub.Tensor, wide, mean), scale)
    if bias is not None:
        out = step(_aten.add.Tensor, out, by_channel(bias))
    saved = (step(_aten.view.default, _cast(step, s, x.dtype), [-1]) for s in (mean, inverse))
    return _cast(step, out, x.dtype), *saved


def _xlogy(x: Tensor, y: Any) -> Composed:
    return _product if isinstance(y, Tensor) and y.dtype == x.dtype else None


def _product(step: Any, x: Tensor, y: Tensor) -> Any:
    product = step(_aten.mul.Tensor, x, step(_aten.log.default, y))
    nothing = step(_aten.eq.Scalar, x, 0)
    product = step(_aten.masked_fill.Scalar, product, nothing, 0.0)
    return step(_aten.masked_fill.Scalar, product, step(_aten.isnan.default, y), torch.nan)


#: By operation: from its arguments, what it consists of.
ON_CPU: dict[OpOverload, Callable[..., Composed]] = {
    _aten._log_softmax.default: _log_softmax,
    _aten.native_batch_norm.default: _batch_norm,
    _aten.xlogy.Tensor: _xlogy,
}
