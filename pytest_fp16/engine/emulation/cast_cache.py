"""The casts of weights that autocast keeps until its outermost region is left, as torch keeps them.

A weight that is changed meanwhile goes on in its old values. Those of a CPU's own autocast are kept
by torch itself; of another target's, which casts in Python, they are kept here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.emulation.patching import replaced


def _casts_for_training() -> bool:
    weight = torch.ones(1, 1, dtype=torch.float32, device="cpu", requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            torch.mm(weight, weight)
        return torch.mm(weight, weight).requires_grad


with torch.inference_mode(False), torch.enable_grad():
    #: This torch casts for a gradient even where none is recorded, and keeps no cast in inference
    #: mode. Up to 2.10 a weight whose cast was kept without one got none later in the region.
    FOR_TRAINING = _casts_for_training()

#: By the weight's id: the weight, and its cast. Its dtype is no part of the key, as in torch.
_kept: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}


def cast_in(
    value: Any, dtype: torch.dtype, to: Callable[[Tensor, torch.dtype], Tensor] = Tensor.to
) -> Any:
    """An argument as autocast hands it on: float tensors, also those in a list, cast by `to`."""
    if isinstance(value, Tensor):
        eligible = value.is_floating_point() and value.dtype != torch.float64
        return to(value, dtype) if eligible and value.dtype != dtype else value
    if isinstance(value, (list, tuple)):
        return [cast_in(item, dtype, to) for item in value]
    return value


def kept_cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor as autocast hands it to an operation in 16 bits.

    Args:
        tensor: one of another dtype.
        dtype: that of the region.
    """
    if not _is_kept(tensor):
        return tensor.to(dtype)
    held = _kept.get(id(tensor))
    if held is None or held[0]() is not tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() or FOR_TRAINING):
            held = _kept[id(tensor)] = weakref.ref(tensor), tensor.to(dtype)
    return held[1]


def _is_kept(tensor: Tensor) -> bool:
    """Whether torch would keep its cast: a weight's, of which there may be a gradient."""
    trained = tensor.requires_grad and tensor.is_leaf and not tensor._is_view()
    if not trained or tensor.dtype != torch.float32 or not torch.is_autocast_cache_enabled():
        return False
    return not (torch.is_inference_mode_enabled() and FOR_TRAINING)


@contextmanager
def own_cache() -> Iterator[None]:
    """Let what clears torch's cache, such as leaving the outermost region, clear this one too."""
    clear = torch.clear_autocast_cache

    def cleared() -> None:
        _kept.clear()
        clear()

    with replaced(torch, clear_autocast_cache=cleared):
        try:
            yield
        finally:
            _kept.clear()


@contextmanager
def nothing_kept() -> Iterator[None]:
    """No cast is kept: regions that are entered in here are as if ``cache_enabled=False``."""
    was = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(was)
