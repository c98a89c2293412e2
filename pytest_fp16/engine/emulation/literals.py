"""Tensors made of numbers and lists in the program's text.

Of a list that holds carried tensors torch would read their memory, and find none. Of plain numbers
it makes a tensor before a mode can see it: what a 16-bit one should hold is remembered meanwhile,
such as the 1e-8 of ``x.new_tensor(1e-8)`` or ``x[mask] = 1e-8``, which is zero in float16. Where
``tensor_split`` is told by a tensor where to cut, it reads that tensor's memory as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from pytest_fp16.engine.emulation.operations import LOW
from pytest_fp16.engine.emulation.patching import replaced, replaced_everywhere

_MAKERS = ("tensor", "as_tensor")


@contextmanager
def made_by_operations(carried: type[Tensor], said: list[Any]) -> Iterator[None]:
    """Make tensors of lists by operations where a list holds carried ones, however nested.

    Args:
        carried: the class of tensors without memory of their own.
        said: ends with the numbers that a tensor is being made of, while it is.
    """
    makers = {name: _of_lists(getattr(torch, name), carried, said) for name in _MAKERS}
    makers["tensor_split"] = _at_numbers(torch.tensor_split, carried)
    methods = {
        "tensor_split": _at_numbers(Tensor.tensor_split, carried),
        "new_tensor": _like(Tensor.new_tensor, carried, said),
        "__setitem__": _into(Tensor.__setitem__, said),
    }
    with replaced(Tensor, **methods), replaced_everywhere(torch, makers):
        yield


def stated(value: Tensor, said: list[Any]) -> Tensor | None:
    """What the program says that a fresh 16-bit constant holds, in float32.

    None where it is not made of the numbers that `said` ends with.
    """
    if not said or value.dtype not in LOW:
        return None
    with _disable_current_modes():
        try:
            wide = torch.tensor(said[-1], dtype=torch.float32, device=value.device)
        except (TypeError, ValueError, RuntimeError):
            return None
        same = wide.shape == value.shape and torch.equal(wide.to(value.dtype), value)
    return wide if same else None


@contextmanager
def _saying(said: list[Any], data: Any) -> Iterator[None]:
    said.append(data)
    try:
        yield
    finally:
        said.pop()


def _into(own: Callable[..., None], said: list[Any]) -> Callable[..., None]:
    @wraps(own)
    def write(self: Tensor, index: Any, value: Any) -> None:
        if isinstance(value, (int, float)):
            with _saying(said, value):
                own(self, index, value)
        else:
            own(self, index, value)

    return write


def _of_lists(
    own: Callable[..., Tensor], carried: type[Tensor], said: list[Any]
) -> Callable[..., Tensor]:
    def make(data: Any, *args: Any, dtype: Any = None, device: Any = None, **kwargs: Any) -> Tensor:
        if _holds(data, carried):
            made = _stacked(data).to(device=device, dtype=dtype)
            return made.requires_grad_(kwargs.get("requires_grad", False))
        with _saying(said, data):
            return own(data, *args, dtype=dtype, device=device, **kwargs)

    return make


def _at_numbers(own: Callable[..., Any], carried: type[Tensor]) -> Callable[..., Any]:
    def split(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        named = {k: plain(v) for k, v in kwargs.items()}
        return own(self, *(plain(a) for a in args), **named)

    def plain(value: Any) -> Any:
        if not isinstance(value, carried):
            return value
        numbers = value.tolist()
        with _disable_current_modes():
            return torch.tensor(numbers)

    return split


def _like(
    own: Callable[..., Tensor], carried: type[Tensor], said: list[Any]
) -> Callable[..., Tensor]:
    def make(
        self: Tensor, data: Any, *, dtype: Any = None, device: Any = None, **kw: Any
    ) -> Tensor:
        if _holds(data, carried):
            made = _stacked(data).to(device=device or self.device, dtype=dtype or self.dtype)
            return made.requires_grad_(kw.get("requires_grad", False))
        with _saying(said, data):
            return own(self, data, dtype=dtype, device=device, **kw)

    return make


def _holds(data: Any, carried: type[Tensor]) -> bool:
    if not isinstance(data, (list, tuple)):
        return False
    return any(isinstance(item, carried) or _holds(item, carried) for item in data)


def _stacked(data: Any) -> Tensor:
    """The list as one tensor, of the widest dtype in it; no gradient passes, as of any literal."""
    if isinstance(data, Tensor):
        return data.detach()
    if not isinstance(data, (list, tuple)):
        return torch.tensor(data)
    parts = [_stacked(item) for item in data]
    dtype = parts[0].dtype
    for part in parts:
        dtype = torch.promote_types(dtype, part.dtype)
    return torch.stack([part.to(parts[0].device, dtype) for part in parts])
