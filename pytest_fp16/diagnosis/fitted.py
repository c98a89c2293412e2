"""Constants that a 16-bit format does not hold, put at its largest number: a mask's -1e9.

A cure's trial, as if its author had written ``torch.finfo(x.dtype).min``. It adds no arithmetic,
which computing the mask in float32 does, and all that follows from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pytest_fp16.engine.containers import all_tensors
from pytest_fp16.engine.emulation.operations import LOW
from pytest_fp16.engine.emulation.patching import replaced

if TYPE_CHECKING:
    from typing_extensions import Self


#: Functions that put a number into a tensor of the dtype they are asked for.
_MAKERS = frozenset("full tensor as_tensor scalar_tensor".split())
#: Those whose numbers are sizes, which may well be larger than a format's numbers.
_SHAPES = frozenset(
    """
    view reshape expand repeat tile unflatten narrow unfold as_strided resize_ unsqueeze
    new_zeros new_ones new_empty select index_select split chunk roll
    """.split()
)


class Fitted(TorchFunctionMode):
    """Hands functions of 16-bit tensors no finite number beyond their format."""

    def __enter__(self) -> Self:
        self._assigning = replaced(Tensor, __setitem__=_assigning(Tensor.__setitem__))
        self._assigning.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._assigning.__exit__(*exception)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        floating = [t for t in all_tensors((args, kwargs)) if t.is_floating_point() and t.dim()]
        name = getattr(func, "__name__", "")
        made = kwargs.get("dtype") if name in _MAKERS else None
        dtype = floating[0].dtype if floating else made
        if dtype not in LOW or name in _SHAPES:
            return func(*args, **kwargs)
        return func(
            *(_within(a, dtype) for a in args), **{k: _within(v, dtype) for k, v in kwargs.items()}
        )


def _assigning(own: Callable[..., None]) -> Callable[..., None]:
    """An assignment to elements, fitted before a target's refusal of the number sees it."""

    @wraps(own)
    def assign(self: Tensor, index: Any, value: Any) -> None:
        own(self, index, _within(value, self.dtype) if self.dtype in LOW else value)

    return assign


def _within(value: Any, dtype: torch.dtype) -> Any:
    """A number, of Python's or in a tensor without dimensions, brought into a format's range."""
    largest = torch.finfo(dtype).max
    if isinstance(value, Tensor):
        lone = not value.dim() and value.dtype in (torch.float32, torch.float64)
        return value.clamp(-largest, largest) if lone and bool(value.isfinite()) else value
    if type(value) not in (int, float) or not math.isfinite(value):
        return value
    return value if abs(value) <= largest else math.copysign(largest, value)
