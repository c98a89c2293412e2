"""Running sums and products, which CUDA keeps in the tensor's own format and a CPU in 32 bits.

So are the logarithms of running sums of exponentials, each step computed in 32 bits and rounded.

Along any but the last dimension a thread goes from value to value, and each sum is rounded
(``tensor_kernel_scan_outer_dim`` in ``ScanUtils.cuh``). Along the last one blocks are scanned by
Sklansky's method: pairs first, then ever larger halves, to which the total of the half before is
added (``tensor_kernel_scan_innermost_dim``). Of a tensor with no other dimension CUB takes care; it
is taken to do the same in its largest blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from pytest_fp16.engine.emulation.operations import LOW

_aten: Any = torch.ops.aten

#: Binary logarithms: of the threads of a block, and of the fewest and the most along a row.
_BLOCK, _FEWEST, _MOST = 9, 4, 9
#: Steps up to which a scan is a loop like others.
_FEW = 256


#: What combines two values, and what fills a block up.
_COMBINED: dict[str, tuple[Any, float]] = {
    "cumsum": (_aten.add.Tensor, 0.0),
    "cumprod": (_aten.mul.Tensor, 1.0),
    "logcumsumexp": (_aten.logaddexp.default, 0.0),
}


def _scan(
    name: str,
    step: Callable[..., Any],
    x: Tensor,
    dim: int,
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    operation, filler = _COMBINED[name]
    if dtype is not None and dtype != x.dtype:
        x = step(_aten._to_copy.default, x, dtype=dtype)
        if dtype not in LOW:
            return step(getattr(_aten, name).default, x, dim)
    size = x.shape[dim] if x.dim() else 1
    if size < 2 or not x.numel():
        return step(_aten.clone.default, x)
    if dim % x.dim() == x.dim() - 1:
        return _along_rows(partial(step, operation), filler, step, x)
    total, *rest = step(_aten.unbind.int, x, dim)
    sums = [total]
    for part in rest:
        sums.append(total := step(operation, total, part))
    return step(_aten.stack.default, sums, dim)


def _along_rows(
    combined: Callable[..., Any], filler: float, step: Callable[..., Any], x: Tensor
) -> Any:
    *lead, size = x.shape
    # What fills the last block up comes after all that is asked for.
    block = min(2 << threads_along(x.numel() // size, size), 1 << (size - 1).bit_length())
    whole = -(-size // block) * block
    padded = step(_aten.constant_pad_nd.default, x, [0, whole - size], filler)
    scanned: list[Any] = []
    for start in range(0, whole, block):
        values = step(_aten.slice.Tensor, padded, -1, start, start + block)
        if scanned:  # the total of all blocks before enters with the first value
            total = step(_aten.slice.Tensor, scanned[-1], -1, block - 1, block)
            first = combined(step(_aten.slice.Tensor, values, -1, 0, 1), total)
            others = step(_aten.slice.Tensor, values, -1, 1, block)
            values = step(_aten.cat.default, [first, others], -1)
        scanned.append(_sklansky(combined, step, values, lead, block))
    joined = step(_aten.cat.default, scanned, -1)
    return step(_aten.slice.Tensor, joined, -1, 0, size)


def _sklansky(
    combined: Callable[..., Any], step: Callable[..., Any], x: Tensor, lead: list[int], block: int
) -> Any:
    half = 1
    while half < block:
        halves = step(_aten.reshape.default, x, [*lead, block // (2 * half), 2, half])
        before, after = step(_aten.unbind.int, halves, -2)
        after = combined(after, step(_aten.slice.Tensor, before, -1, half - 1, half))
        joined = step(_aten.stack.default, [before, after], -2)
        x = step(_aten.reshape.default, joined, [*lead, block])
        half *= 2
    return x


def threads_along(rows: int, size: int) -> int:
    """The binary logarithm of the threads that scan a row (``get_log_num_threads_x_inner_scan``).

    Args:
        rows: how many there are; one where a tensor has no other dimension.
        size: of each.
    """
    if rows == 1:
        return _MOST
    apart = (size - 1).bit_length() - (rows - 1).bit_length()
    if _BLOCK + apart < 0:  # unsigned there: very many short rows come round to the most
        return _MOST
    return min(max(_FEWEST, (_BLOCK + apart) // 2), _MOST)


def _in_place(name: str, step: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
    return step(_aten.copy_.default, x, _scan(name, step, x, *args, **kwargs))


def by_steps(
    func: OpOverload, args: tuple[Any, ...], target: str | None
) -> Callable[..., Any] | None:
    """The steps of a scan on a target, as `composition` has them; None for a long one.

    Each rounds, and its error enters all that come after it. A long one costs too much to be
    followed so: its whole error is taken for certain instead.
    """
    scan = ON_CUDA.get(func) if target == "cuda" else None
    short = scan is not None and args[0].dtype in LOW and is_short(args[0], args[1])
    return scan if short else None


def is_short(x: Tensor, dim: int) -> bool:
    """Whether a scan takes no more steps than a common loop."""
    size = x.shape[dim] if x.dim() else 1
    if size < 2 or not x.numel() or dim % x.dim() < x.dim() - 1:
        return size <= _FEW
    block = 2 << threads_along(x.numel() // size, size)
    halvings = -(-size // block) * block.bit_length()
    return 4 * halvings <= _FEW  # each takes about four operations


def scanned(name: str, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What CUDA's kernel gives for 16-bit values, which each operation here rounds.

    Args:
        name: of the scan.
        x: on a CPU.
        args, kwargs: what else it takes; a dtype of 16 bits.
    """
    found: Tensor = _scan(name, lambda run, *given, **how: run(*given, **how), x, *args, **kwargs)
    return found


#: How CUDA computes each of them, as operations of a program.
ON_CUDA: dict[OpOverload, Callable[..., Any]] = {
    **{getattr(_aten, name).default: partial(_scan, name) for name in _COMBINED},
    _aten.cumsum_.default: partial(_in_place, "cumsum"),
    _aten.cumprod_.default: partial(_in_place, "cumprod"),
}
