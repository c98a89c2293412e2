"""Python numbers beside 16-bit tensors: most kernels take them in float32, some round them first.

Read off ATen's kernels: CUDA's ``pow`` converts its scalar to the tensor's type
(``PowKernel.cu``), as ``fmod`` and ``remainder`` do; a CPU rounds those of sums too. A number that
an operation only moves, or compares with (the bound of a clamp), is rounded by all of them. A CPU
refuses a clamp's bound that is beyond the format's range; CUDA does not (``TensorCompare.cu``).

A float32 tensor without dimensions leaves a 16-bit result 16-bit, and is itself rounded before an
elementwise kernel computes with it: a temperature that is a parameter, under autocast. A CPU takes
it in full as the second factor or the divisor, and so does CUDA where it lies on the CPU. Whole
numbers are rounded whatever their dimensions: bfloat16 has not all of ``torch.arange(300) * x``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.emulation.operations import LOW, Facts, tensors

_EVERYWHERE = frozenset({"pow", "fmod", "remainder"})
_ON_CPU = _EVERYWHERE | {"add", "sub", "rsub"}
_BOUNDED = frozenset({"clamp", "clamp_min", "clamp_max"})
#: Kernels that take a tensor without dimensions in float32 where it lies on the CPU.
_IN_FULL = {"cpu": frozenset({"mul", "div"}), "cuda": frozenset({"mul", "div", "add", "sub"})}

#: Whole numbers that 16 bits may round; and those that do so where they are without dimensions.
_WHOLE = frozenset({torch.int16, torch.int32, torch.int64})
_FINER = _WHOLE | {torch.float32, torch.float64}


def as_the_kernel_takes(name: str, args: Sequence[Any], target: str) -> tuple[Any, ...]:
    """The first two arguments of an operation, numbers rounded where the target's kernel does so.

    Args:
        name: the operation.
        args: its positional arguments.
        target: the device type whose kernel is meant.
    """
    named = _ON_CPU if target == "cpu" else _EVERYWHERE
    if name not in named or not any(is_number(a) for a in args[:2]):
        return tuple(args)
    dtypes = {t.dtype for t in tensors(args[:2], {})}
    if len(dtypes) != 1 or not dtypes <= LOW:
        return tuple(args)
    (dtype,) = dtypes
    return (*(rounded(a, dtype) if is_number(a) else a for a in args[:2]), *args[2:])


def bounds_as_on(name: str, args: Sequence[Any], target: str) -> tuple[Any, ...]:
    """The arguments of an operation: of a clamp on CUDA, a bound beyond the range is infinite."""
    dtype = getattr(args[0], "dtype", None) if args else None
    if name not in _BOUNDED or target == "cpu" or dtype not in LOW:
        return tuple(args)
    most = torch.finfo(dtype).max
    return tuple(math.copysign(math.inf, a) if is_number(a) and abs(a) > most else a for a in args)


def is_number(value: Any) -> bool:
    """Whether an argument is a number that a kernel computes with."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def rounded(value: float, dtype: torch.dtype) -> float:
    """The nearest number of that dtype, whole where it was whole."""
    near = float(torch.tensor(value, dtype=torch.float64).to(dtype))
    return int(near) if isinstance(value, int) and near.is_integer() else near


def narrowed(
    known: Facts, args: Sequence[Any], target: str
) -> tuple[torch.dtype, list[int]] | None:
    """Which arguments an elementwise kernel rounds first, and to what.

    Args:
        known: the operation.
        args: its positional arguments.
        target: the device type whose kernel is meant.
    """
    if not known.pointwise:
        return None
    given = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
    wide = [i for i in given if _is_finer(args[i])]
    if not wide:
        return None
    low = _low_of([args[i] for i in given])
    if low is None:
        return None
    if known.name in _IN_FULL.get(target, ()):
        # What lies on the CPU beside a GPU's tensors tells itself; of a CPU's own the second is it.
        on = next(args[i].device for i in given if args[i].dtype == low)
        full = [i for i in wide if (i == 1 if target == "cpu" else args[i].device != on)]
        wide = [i for i in wide if i not in full or args[i].dim()]
    return (low, wide) if wide else None


def _low_of(given: Sequence[Tensor]) -> torch.dtype | None:
    """The 16-bit dtype that elementwise operations on these give; None where it is no such."""
    floating = [t for t in given if t.is_floating_point()]
    dtypes = {t.dtype for t in floating if t.dim()} or {t.dtype for t in floating}
    return dtypes.pop() if len(dtypes) == 1 and dtypes <= LOW else None


def _is_finer(value: Tensor) -> bool:
    """Whether it may have more digits than 16 bits hold, without making the result wider."""
    return value.dtype in (_WHOLE if value.dim() else _FINER)
