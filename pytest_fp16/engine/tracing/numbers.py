"""Python numbers beside traced tensors that an operation only moves, or compares with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch._ops import OpOverload

from pytest_fp16.engine.emulation.operations import LOW, tensors
from pytest_fp16.engine.emulation.scalars import is_number, rounded
from pytest_fp16.engine.tracing.shadow import Shadow


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
    if not is_value or not is_number(value):
        return value
    near = rounded(value, dtype)
    return near if abs(near) < math.inf else value


def vanished(before: Sequence[Any], after: Sequence[Any]) -> bool:
    """Whether one of the numbers has been rounded to zero."""
    pairs = zip(before, after, strict=True)
    return any(a is not b and is_number(b) and not b and bool(a) for a, b in pairs)


@cache
def _values(func: OpOverload) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Positions and names of an operation's arguments that are values, not sizes or flags."""
    taken = enumerate(func._schema.arguments)
    found = [(i, a.name) for i, a in taken if str(a.type) in ("number", "Optional[number]")]
    return tuple(i for i, _ in found), tuple(name for _, name in found)
