"""Tensors of different dtypes that a function refuses to take together, brought to the narrower.

A cure's trial, as if its author had written ``x.to(y.dtype)``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from pytest_fp16.diagnosis.applied import Applied
from pytest_fp16.engine.containers import all_tensors, map_tensors
from pytest_fp16.engine.emulation.wording import mixes_dtypes

_IN_PLACE = frozenset(
    "__iadd__ __isub__ __imul__ __itruediv__ __ifloordiv__ __imod__ __ipow__ __setitem__".split()
)


class Narrowed(TorchFunctionMode):
    """Casts the wider of tensors that a function refuses to take together, as ``.to`` would.

    What is written into cannot be cast: there, what is written takes its dtype.

    Args:
        applied: where it is told what refused them.
    """

    def __init__(self, applied: Applied | None = None) -> None:
        super().__init__()
        self.applied = Applied() if applied is None else applied

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        try:
            return func(*args, **kwargs)
        except RuntimeError as error:
            given = [t for t in all_tensors((args, kwargs)) if t.is_floating_point()]
            if not given or not mixes_dtypes(str(error)):
                raise
        target = args[0] if writes(getattr(func, "__name__", "")) and args else None
        if not (isinstance(target, Tensor) and target.is_floating_point()):
            target = min(given, key=lambda t: t.dtype.itemsize)
        dtype = target.dtype
        self.applied.took(getattr(func, "__name__", ""))
        cast = lambda t: t.to(dtype) if t.is_floating_point() else t  # noqa: E731
        return func(*map_tensors(args, cast), **map_tensors(kwargs, cast))


def writes(name: str) -> bool:
    """Whether a function writes into its first argument."""
    return name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))
