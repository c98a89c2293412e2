"""Sums into a tensor at given places, rounded after every addition, as CUDA's kernels do.

So are long running sums (see `scans`).

CUDA adds each source to its place by an atomic addition in the tensor's own format
(``fastAtomicAdd``, in ATen's ``ScatterGatherKernel.cu`` and ``Indexing.cu``), in no fixed order. A
CPU adds up in float32, but along a tensor of one dimension: such a sum takes their place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.emulation.operations import LOW, SCANS
from pytest_fp16.engine.emulation.scans import scanned

#: Operations of (tensor, dimension, index, source).
_ATOMIC = frozenset({"scatter_add", "index_add"})


def accumulate(
    name: str, run: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], target: str
) -> Any:
    """What an operation that rounds at every step gives on the target.

    Args:
        name: of the operation, without the underscore of its in-place variant.
        run: its own kernel, on 16-bit arguments; it refuses what the device refuses.
        args, kwargs: its arguments.
        target: ``"cuda"`` or ``"cpu"``.
    """
    if target == "cuda" and name in SCANS and args[0].device.type == "cpu":
        return _scan(name, run, args, kwargs)
    if target != "cuda" or name not in _ATOMIC or len(args) < 4 or not _summable(args[0], args[3]):
        return run(*args, **kwargs)
    start = args[0].detach().clone()
    out = run(*args, **kwargs)
    if isinstance(out, Tensor):
        out.copy_(_added(start, args[1], args[2], args[3].detach(), kwargs.get("alpha", 1)))
    return out


def _scan(name: str, run: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    x, *rest = args
    if (kwargs.get("dtype") or x.dtype) not in LOW:
        return run(*args, **kwargs)
    start = x.detach().clone()
    out = run(*args, **kwargs)
    return out.copy_(scanned(name, start, *rest, **kwargs))


def _summable(base: Tensor, source: Tensor) -> bool:
    low = base.dtype in LOW and base.device.type == "cpu"
    return low and base.dim() > 0 and source.dim() == base.dim()


def _added(base: Tensor, dim: int, index: Tensor, source: Tensor, alpha: Any) -> Tensor:
    dim %= base.dim()
    if index.dim() != base.dim():  # of index_add: one place per slice
        index = index.view([-1 if d == dim else 1 for d in range(base.dim())]).expand_as(source)
    source = source[tuple(map(slice, index.shape))]
    places = torch.zeros_like(index)
    stride = 1
    for d in reversed(range(base.dim())):
        shape = [-1 if d == e else 1 for e in range(base.dim())]
        along = index if d == dim else torch.arange(index.shape[d]).view(shape)
        places = places + stride * along
        stride *= base.shape[d]
    terms = source if alpha == 1 else source * alpha
    total = base.flatten().index_add_(0, places.flatten(), terms.flatten())
    return total.view(base.shape)
