"""What a target refuses: an operation without a kernel, a number beyond the format's range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pytest_fp16.engine.emulation.scalars import is_number
from pytest_fp16.engine.emulation.wording import first_line, is_missing_kernel

_LOW = {torch.float16: "Half", torch.bfloat16: "BFloat16"}
#: Operations that fill a tensor with a number, and where it stands among their arguments.
_FILLS = {"fill": 1, "full": 1, "full_like": 1, "new_full": 2, "scalar_tensor": 0}


class UnsupportedOperation(RuntimeError):  # noqa: N818
    """An operation has no 16-bit kernel on the target. Seen by the verdict, not by users."""

    told_as = "RuntimeError"  # which the target itself would raise

    def __init__(self, operation: str, dtype: str, target: str) -> None:
        super().__init__(f"{operation} has no {dtype} kernel on {target}")
        self.operation = operation


class RefusedDtypes(RuntimeError):  # noqa: N818
    """Tensors of several dtypes meet where the target's kernel takes one."""

    told_as = "RuntimeError"

    def __init__(self, operation: str, dtypes: str) -> None:
        super().__init__(f"{operation}: the tensors must have the same dtype, but are {dtypes}")


class RefusedNumber(UnsupportedOperation):
    """A number that the target does not put into a 16-bit tensor."""

    def __init__(self, number: float, dtype: torch.dtype, operation: str) -> None:
        words = f"value cannot be converted to type c10::{_LOW[dtype]} without overflow: {number:g}"
        RuntimeError.__init__(self, words)
        self.operation = operation


class RefusedSizes(UnsupportedOperation):
    """A transform that the target's library has for other sizes alone."""

    def __init__(self, operation: str, sizes: Sequence[int]) -> None:
        super().__init__(operation, "float16", "CUDA")
        RuntimeError.__init__(
            self,
            "cuFFT only supports dimensions whose sizes are powers of two when computing in half "
            f"precision, but got a signal size of {list(sizes)}",
        )


def require_own_agreement(func: Any, name: str, args: Any, kwargs: Any) -> None:
    """Let a kernel from outside ATen say itself whether it takes tensors of several dtypes.

    In float32, where it is followed, it would not notice. One that writes its arguments is not
    asked, and what it lacks here it need not lack on the target. Under autocast it may have casts
    of its own for the target: do not ask there.

    Args:
        func, name: the kernel.
        args, kwargs: what the 16-bit program hands to it.

    Raises:
        RuntimeError: it refuses them.
    """
    given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    dtypes = {t.dtype for t in given if t.is_floating_point()}
    if len(dtypes) < 2 or not dtypes & _LOW.keys() or func._schema.is_mutable:
        return
    try:
        func(*args, **kwargs)
    except (RuntimeError, NotImplementedError) as error:
        if not is_missing_kernel(error):
            said = f"{name} refuses tensors of different dtypes: {first_line(error)}"
            raise RuntimeError(said) from None


def require_in_range(number: Any, dtype: Any, operation: str) -> None:
    """Raise RefusedNumber for a finite number beyond the range of a 16-bit format."""
    if dtype not in _LOW or not is_number(number):
        return
    if torch.finfo(dtype).max < abs(number) < math.inf:
        raise RefusedNumber(number, dtype, operation)


def require_fit(name: str, args: Sequence[Any], kwargs: dict[str, Any], target: str) -> None:
    """Refuse to fill with a number beyond the range, as CUDA does whatever the tensor's size.

    A CPU writes it into a single element. ``torch.where(mask, x, -1e9)`` makes one of its number.

    Raises:
        RefusedNumber: the target does not fill with it.
    """
    at = _FILLS.get(name)
    if at is None or at >= len(args) or target == "cpu":
        return
    given = next((t.dtype for t in args if isinstance(t, Tensor)), None)
    require_in_range(args[at], kwargs.get("dtype") or given, name)
