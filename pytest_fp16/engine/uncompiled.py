"""Programs that compile a part of themselves, or hand functions to an operator, while followed.

Under a dispatch mode Dynamo lets code run as it was written, and remembers that for the rest of the
process: the user's model would not be compiled any more. And of an operator that takes functions,
such as ``flex_attention``, a mode sees nothing of what they do, so it runs as what it consists of.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_fp16.engine.emulation.patching import replaced

if TYPE_CHECKING:
    from typing_extensions import Self

#: Whoever compiles has imported the first; the second imports it when it is called.
_COMPILERS = ("torch._dynamo", "torch.nn.attention.flex_attention")

_depth = 0


class FollowingMode(TorchDispatchMode):
    """A dispatch mode that sees all of a program, and leaves what it compiles compiled."""

    def __enter__(self) -> Self:
        self._as_written = ExitStack()
        self._as_written.enter_context(uncompiled())
        self._as_written.enter_context(_operators_taken_apart())
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._as_written.close()


@contextmanager
def uncompiled() -> Iterator[None]:
    """What is compiled runs as it was written, and is compiled again afterwards."""
    if sys.modules.keys().isdisjoint(_COMPILERS):
        yield  # and Dynamo need not be imported, which takes seconds
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def _operators_taken_apart() -> Iterator[None]:
    """Operators that take functions run the operations they consist of, where torch tells them."""
    global _depth
    kind = getattr(torch._ops, "HigherOrderOperator", None)
    own = vars(kind).get("__call__") if kind is not None else None
    if own is None or _depth or sys.modules.keys().isdisjoint(_COMPILERS):
        yield
        return
    _depth += 1
    try:
        with replaced(kind, __call__=_taken_apart(own)):
            yield
    finally:
        _depth -= 1


def _taken_apart(own: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(own)
    def call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        kernels = getattr(self, "py_kernels", {})
        parts = kernels.get(torch._C.DispatchKey.CompositeExplicitAutograd)
        return own(self, *args, **kwargs) if parts is None else parts(*args, **kwargs)

    return call
