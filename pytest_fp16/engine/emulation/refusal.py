"""What a target refuses: an operation without a kernel, a number beyond the format's range.

ATen itself refuses most such numbers wherever it runs. Into one element it writes them otherwise:
``x[mask] = -1e9`` raises where x is a float16 tensor on CUDA, and gives -inf on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pytest_fp16.engine.emulation.inference import inference_as_no_grad
from pytest_fp16.engine.emulation.recurrent import recurrent_by_steps
from pytest_fp16.engine.emulation.wording import first_line, is_missing_kernel, lost_its_text

if TYPE_CHECKING:
    from typing_extensions import Self

_LOW = {torch.float16: "Half", torch.bfloat16: "BFloat16"}


class UnsupportedOperation(RuntimeError):  # noqa: N818
    """An operation has no 16-bit kernel on the target. Seen by the verdict, not by users."""

    told_as = "RuntimeError"  # which the target itself would raise

    def __init__(self, operation: str, dtype: str, target: str) -> None:
        super().__init__(f"{operation} has no {dtype} kernel on {target}")
        self.operation = operation


class RefusedNumber(UnsupportedOperation):
    """A number that the target does not put into a 16-bit tensor."""

    def __init__(self, number: float, dtype: torch.dtype) -> None:
        words = f"value cannot be converted to type c10::{_LOW[dtype]} without overflow: {number:g}"
        RuntimeError.__init__(self, words)
        self.operation = "__setitem__"


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


def require_in_range(number: Any, dtype: torch.dtype) -> None:
    """Raise RefusedNumber for a finite number beyond the range of a 16-bit format."""
    if dtype not in _LOW or isinstance(number, bool) or not isinstance(number, (int, float)):
        return
    if torch.finfo(dtype).max < abs(number) < math.inf:
        raise RefusedNumber(number, dtype)


_depth = 0


@contextmanager
def assignments_as_on(target: str) -> Iterator[None]:
    """Refuse what CUDA refuses to assign to a 16-bit tensor, however nested."""
    global _depth
    if target != "cuda" or _depth:
        yield
        return
    own, inherited = Tensor.__setitem__, "__setitem__" not in vars(Tensor)

    def checked(self: Tensor, index: Any, value: Any) -> None:
        require_in_range(value, self.dtype)
        own(self, index, value)

    _depth += 1
    Tensor.__setitem__ = checked  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        _depth -= 1
        if inherited:
            del Tensor.__setitem__
        else:
            Tensor.__setitem__ = own  # type: ignore[method-assign]


class OnTarget(TorchDispatchMode):
    """A mode that follows a program, which also meets what a target refuses to assign.

    Args:
        target: ``"cuda"`` or ``"cpu"``; None for nothing but this device's own refusals.
    """

    def __init__(self, target: str | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._meets = target
        self._context = ExitStack()
        self._last: Exception | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        try:
            return self.run(func, types, args, kwargs or {})
        except Exception as error:
            self._last = error
            raise

    def run(self, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One operation of the program; what that means is its subclasses' own."""
        raise NotImplementedError

    def step(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """One operation of those that a composed one consists of."""
        return self.run(func, (), args, kwargs)

    def __enter__(self) -> Self:
        if self._meets is not None:
            self._context.enter_context(assignments_as_on(self._meets))
        self._context.enter_context(recurrent_by_steps(self._meets))
        self._context.enter_context(inference_as_no_grad())
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        self._context.close()
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        if self._last is not None and lost_its_text(exception[1]):
            raise self._last from None
