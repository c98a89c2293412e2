"""Tensors made of a list that holds carried ones: torch would read their memory, and find none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_MAKERS = ("tensor", "as_tensor")


@contextmanager
def made_by_operations(carried: type[Tensor]) -> Iterator[None]:
    """Make tensors of lists by operations where a list holds carried ones, however nested.

    Args:
        carried: the class of tensors without memory of their own.
    """
    held = {name: getattr(torch, name) for name in _MAKERS}
    new_tensor: Any = Tensor.new_tensor
    inherited = "new_tensor" not in vars(Tensor)
    for name in _MAKERS:
        setattr(torch, name, _of_lists(held[name], carried))
    Tensor.new_tensor = _like(new_tensor, carried)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for name in _MAKERS:
            setattr(torch, name, held[name])
        if inherited:
            del Tensor.new_tensor
        else:
            Tensor.new_tensor = new_tensor  # type: ignore[method-assign]


def _of_lists(own: Callable[..., Tensor], carried: type[Tensor]) -> Callable[..., Tensor]:
    def make(data: Any, *args: Any, dtype: Any = None, device: Any = None, **kwargs: Any) -> Tensor:
        if _holds(data, carried):
            made = _stacked(data).to(device=device, dtype=dtype)
            return made.requires_grad_(kwargs.get("requires_grad", False))
        return own(data, *args, dtype=dtype, device=device, **kwargs)

    return make


def _like(own: Callable[..., Tensor], carried: type[Tensor]) -> Callable[..., Tensor]:
    def make(
        self: Tensor, data: Any, *, dtype: Any = None, device: Any = None, **kw: Any
    ) -> Tensor:
        if _holds(data, carried):
            made = _stacked(data).to(device=device or self.device, dtype=dtype or self.dtype)
            return made.requires_grad_(kw.get("requires_grad", False))
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
