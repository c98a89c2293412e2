"""The dtypes that the results of an operation would have in the 16-bit program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from pytest_fp16.engine.emulation.operations import LOW, WIDE, flat, tensors

_Signature = tuple[Any, ...]
_NOMINAL: dict[_Signature, tuple[torch.dtype | None, ...] | None] = {}


def nominal_dtypes(
    op: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[torch.dtype | None, ...] | None:
    """The dtypes the results would have in the 16-bit program, in order, lists flattened.

    Asked of the operation's own meta kernel, once per signature. None where it has none, and all
    that it is given is of one dtype.

    Raises:
        RuntimeError: the operation refuses these dtypes.
    """
    name = op.overloadpacket.__name__
    if name in _AS_THE_FIRST:
        return (args[0].dtype,)
    if name in _IN_DOUBLE and any(t.dtype in LOW for t in tensors(args, kwargs)):
        return (torch.float64,)
    key = (op, _signature(args), _signature(tuple(kwargs.items())))
    if key not in _NOMINAL:
        _NOMINAL[key] = _ask_meta(op, args, kwargs)
    return _NOMINAL[key]


def nominal_at(nominal: tuple[torch.dtype | None, ...], i: int) -> torch.dtype | None:
    """The dtype of result i; a list of results (split, chunk) may be longer than when asked."""
    return nominal[min(i, len(nominal) - 1)]


def dtype_of(
    item: Tensor,
    i: int,
    nominal: tuple[torch.dtype | None, ...] | None,
    fallback: torch.dtype | None,
) -> torch.dtype:
    """The dtype that result i, computed in float32, has in the 16-bit program."""
    dtype = nominal_at(nominal, i) if nominal else fallback
    return dtype if dtype is not None and WIDE.get(dtype) == item.dtype else item.dtype


def doubled(item: Tensor, i: int, nominal: tuple[torch.dtype | None, ...] | None) -> Tensor:
    """Result i in float64, where that is what the program's kernel makes of 16 bits."""
    double = nominal is not None and nominal_at(nominal, i) == torch.float64
    return item.double() if double and item.dtype == torch.float32 else item


def _signature(values: Sequence[Any]) -> _Signature:
    parts: list[Any] = []
    for value in values:
        if isinstance(value, Tensor):
            parts.append((value.dtype, value.dim() == 0))
        elif isinstance(value, (list, tuple)):
            parts.append(_signature(value))
        elif isinstance(value, (torch.dtype, str)):
            parts.append(value)
        elif isinstance(value, bool) or value is None:
            parts.append(value)  # flags such as half_to_float choose the dtype
        else:
            parts.append(type(value))
    return tuple(parts)


#: Losses that are as narrow as what they are given first; their meta kernels promote.
_AS_THE_FIRST = frozenset({"huber_loss", "soft_margin_loss"})
#: Counts that are float64 for weights of any type but float32 (``SummaryOps.cu``).
_IN_DOUBLE = frozenset({"bincount"})
_DTYPE_WORDS = ("dtype", "scalar type", "Type promoting")


def _ask_meta(
    op: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[torch.dtype | None, ...] | None:
    def to_meta(t: Tensor) -> Tensor:
        return torch.empty(t.shape, dtype=t.dtype, device="meta")

    meta_args, meta_kwargs = tree_map_only(Tensor, to_meta, (tuple(args), dict(kwargs)))
    if "device" in meta_kwargs or not any(True for _ in tensors(args, kwargs)):
        meta_kwargs["device"] = torch.device("meta")
    try:
        out = op(*meta_args, **meta_kwargs)
    except NotImplementedError:
        return _without_meta(op, args, kwargs)
    except RuntimeError as error:
        if any(word in str(error) for word in _DTYPE_WORDS):
            return _ask_kernel(op, args, kwargs)
        return None  # shapes that depend on data, or a meta kernel stricter than the real one
    except Exception:
        return None
    return tuple(o.dtype if isinstance(o, Tensor) else None for o in flat(out))


def _without_meta(
    op: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[torch.dtype | None, ...] | None:
    """Where 16 bits meet float32, the kernel says which its results are: a scale is no value.

    What has none for 16 bits here, or draws, is not asked.
    """
    low = any(t.dtype in LOW for t in tensors(args, kwargs))
    drawn = torch.Tag.nondeterministic_seeded in op.tags
    if not low or drawn or op.namespace != "aten" or promoted_low(args, kwargs) is not None:
        return None
    try:
        return _ask_kernel(op, args, kwargs)
    except RuntimeError:
        return None


def _ask_kernel(
    op: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[torch.dtype | None, ...] | None:
    """Where the meta kernel refuses dtypes, the real one has the last word; it runs on copies."""

    def plain(t: Tensor) -> Tensor:
        return t.native() if hasattr(t, "native") else t.detach().clone()

    with _disable_current_modes():
        copied, copied_kwargs = tree_map_only(Tensor, plain, (tuple(args), dict(kwargs)))
        out = op(*copied, **copied_kwargs)
    return tuple(o.dtype if isinstance(o, Tensor) else None for o in flat(out))


def promoted_low(args: Sequence[Any], kwargs: dict[str, Any]) -> torch.dtype | None:
    """The 16-bit dtype of the result where no meta kernel says it: that of all floating arguments.

    None where a float32 argument would promote it.
    """
    floating = [t.dtype for t in tensors(args, kwargs) if t.is_floating_point() and t.dim() > 0]
    floating = floating or [t.dtype for t in tensors(args, kwargs) if t.is_floating_point()]
    if floating and all(d == floating[0] for d in floating) and floating[0] in LOW:
        return floating[0]
    return None
