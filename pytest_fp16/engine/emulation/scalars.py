"""Python numbers beside 16-bit tensors: most kernels take them in float32, some round them first.

Read off ATen's kernels: CUDA's ``pow`` converts its scalar to the tensor's type
(``PowKernel.cu``), as ``fmod`` and ``remainder`` do; a CPU rounds those of sums too. A number that
an operation only moves, or compares with (the bound of a clamp), is rounded by all of them.

A float32 tensor without dimensions leaves a 16-bit result 16-bit, and is itself rounded before an
elementwise kernel computes with it: a temperature that is a parameter, under autocast. A CPU takes
it in full in products and quotients, and so does CUDA where it lies on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from pytest_fp16.engine.emulation.operations import LOW, tensors

_EVERYWHERE = frozenset({"pow", "fmod", "remainder"})
_ON_CPU = _EVERYWHERE | {"add", "sub", "rsub"}
#: Kernels that take a tensor without dimensions in float32 where it lies on the CPU.
_IN_FULL = {"cpu": frozenset({"mul", "div"}), "cuda": frozenset({"mul", "div", "add", "sub"})}


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


def is_number(value: Any) -> bool:
    """Whether an argument is a number that a kernel computes with."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def rounded(value: float, dtype: torch.dtype) -> float:
    """The nearest number of that dtype, whole where it was whole."""
    near = float(torch.tensor(value, dtype=torch.float64).to(dtype))
    return int(near) if isinstance(value, int) and near.is_integer() else near


def narrowed(
    func: OpOverload, name: str, args: Sequence[Any], target: str
) -> tuple[torch.dtype, list[int]] | None:
    """Which arguments without dimensions an elementwise kernel rounds first, and to what.

    Args:
        func, name: the operation.
        args: its positional arguments.
        target: the device type whose kernel is meant.
    """
    wide = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.dim() == 0 and _is_wide(a)]
    if not wide or torch.Tag.pointwise not in func.tags:
        return None
    others = [a for a in args if isinstance(a, Tensor) and a.dim() and a.is_floating_point()]
    dtypes = {a.dtype for a in others}
    if len(dtypes) != 1 or not dtypes <= LOW:
        return None
    if name in _IN_FULL.get(target, ()):
        # What lies on the CPU beside a GPU's tensors tells itself; a CPU's own all do.
        wide = [i for i in wide if target == "cuda" and args[i].device == others[0].device]
    return (dtypes.pop(), wide) if wide else None


def _is_wide(value: Tensor) -> bool:
    return value.dtype in (torch.float32, torch.float64)
