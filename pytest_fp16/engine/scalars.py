"""Python numbers beside 16-bit tensors: most kernels take them in float32, some round them first.

Read off ATen's kernels: CUDA's ``pow`` converts its scalar to the tensor's type
(``PowKernel.cu``), as ``fmod`` and ``remainder`` do; a CPU rounds those of sums too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pytest_fp16.engine.operations import LOW, tensors

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


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _rounded(value: float, dtype: torch.dtype) -> float:
    near = float(torch.tensor(value, dtype=torch.float64).to(dtype))
    return int(near) if isinstance(value, int) and near == int(near) else near
