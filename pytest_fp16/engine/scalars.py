"""Python numbers beside 16-bit tensors: most kernels take them in float32, some round them first.

Read off ATen's kernels: CUDA's ``pow`` converts its scalar to the tensor's type
(``PowKernel.cu``), as ``fmod`` and ``remainder`` do; a CPU rounds those of sums too. A number that
an operation only moves, or compares with (the bound of a clamp), is rounded by all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch._ops import OpOverload

from pytest_fp16.engine.operations import LOW, tensors
from pytest_fp16.engine.shadow import Shadow

_EVERYWHERE = frozenset({"pow", "fmod", "remainder"})
_ON_CPU = _EVERYWHERE | {"add", "sub", "rsub"}


def as_the_kernel_takes(name: str, args: Sequence[Any], target: str) -> tuple[Any, ...]:
    """The first two arguments of an operation, numbers rounded where the target's kernel does so.

    Args:
        name: the operation.
        args: its positional arguments.
        target: the device type whose kernel is meant.
    """
    rounded = _ON_CPU if target == "cpu" else _EVERYWHERE
    if name not in rounded or not any(_is_number(a) for a in args[:2]):
        return tuple(args)
    dtypes = {t.dtype for t in tensors(args[:2], {})}
    if len(dtypes) != 1 or not dtypes <= LOW:
        return tuple(args)
    (dtype,) = dtypes
    return (*(_rounded(a, dtype) if _is_number(a) else a for a in args[:2]), *args[2:])


def on_the_grid(
    func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of an operation that only moves or compares, numbers rounded as it does.

    A number beyond the range is left as it is: the kernel refuses it, or does not.

    Args:
        func: the operation.
        args, kwargs: its arguments, traced tensors as `Shadow`; a constant without dimensions is
            a number, too.
    """
    found = [t for t in tensors(args, kwargs) if t.is_floating_point()]
    dtypes = {t.dtype for t in found if t.dim()} or {t.dtype for t in found}
    dtype = dtypes.pop() if len(dtypes) == 1 else kwargs.get("dtype") if not dtypes else None
    if dtype not in LOW:
        return tuple(args), kwargs
    places, names = _values(func)
    return (
        tuple(_moved(a, dtype, i in places) for i, a in enumerate(args)),
        {name: _moved(a, dtype, name in names) for name, a in kwargs.items()},
    )


def _moved(value: Any, dtype: torch.dtype, is_value: bool) -> Any:
    if isinstance(value, Shadow):
        constant = value.dim() == 0 and value.is_floating_point() and not value.cell.depends
        if not constant or value.dtype == dtype:
            return value
        return Shadow(value.inner.to(dtype).to(value.inner.dtype), value.dtype, value.cell)
    if not is_value or not _is_number(value):
        return value
    near = _rounded(value, dtype)
    return near if abs(near) < math.inf else value


def vanished(before: Sequence[Any], after: Sequence[Any]) -> bool:
    """Whether one of the numbers has been rounded to zero."""
    pairs = zip(before, after, strict=True)
    return any(a is not b and _is_number(b) and not b and bool(a) for a, b in pairs)


@cache
def _values(func: OpOverload) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Positions and names of an operation's arguments that are values, not sizes or flags."""
    taken = enumerate(func._schema.arguments)
    found = [(i, a.name) for i, a in taken if str(a.type) in ("number", "Optional[number]")]
    return tuple(i for i, _ in found), tuple(name for _, name in found)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _rounded(value: float, dtype: torch.dtype) -> float:
    near = float(torch.tensor(value, dtype=torch.float64).to(dtype))
    return int(near) if isinstance(value, int) and near == int(near) else near
