"""A mode that follows a program, and lets it meet what it would meet on a target.

ATen refuses most numbers beyond the range of a format wherever it runs. Into one element it writes
them otherwise: ``x[mask] = -1e9`` raises where x is a float16 tensor on CUDA, and gives -inf on a
CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pytest_fp16.engine.emulation.inference import inference_as_no_grad
from pytest_fp16.engine.emulation.patching import replaced
from pytest_fp16.engine.emulation.recurrent import recurrent_by_steps
from pytest_fp16.engine.emulation.refusal import require_in_range
from pytest_fp16.engine.emulation.transforms import transforms_as_on
from pytest_fp16.engine.emulation.wording import lost_its_text
from pytest_fp16.engine.uncompiled import FollowingMode

if TYPE_CHECKING:
    from typing_extensions import Self

_depth = 0


@contextmanager
def assignments_as_on(target: str) -> Iterator[None]:
    """Refuse what CUDA refuses to assign to a 16-bit tensor, however nested."""
    global _depth
    if target != "cuda" or _depth:
        yield
        return
    own = Tensor.__setitem__

    @wraps(own)  # a mode for torch functions tells them by their names
    def checked(self: Tensor, index: Any, value: Any) -> None:
        require_in_range(value, self.dtype, "__setitem__")
        own(self, index, value)

    _depth += 1
    try:
        with replaced(Tensor, __setitem__=checked):
            yield
    finally:
        _depth -= 1


class OnTarget(FollowingMode):
    """A mode that follows a program, which also meets what a target refuses to assign.

    Args:
        target: ``"cuda"`` or ``"cpu"``; None for nothing but this device's own refusals.
    """

    _whole: str | None = None

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

    @contextmanager
    def as_one(self, name: str) -> Iterator[None]:
        """What runs in here is one operation of that name."""
        outer, self._whole = self._whole, name
        try:
            yield
        finally:
            self._whole = outer

    def __enter__(self) -> Self:
        if self._meets is not None:
            self._context.enter_context(assignments_as_on(self._meets))
            self._context.enter_context(transforms_as_on(self._meets, self.as_one))
        self._context.enter_context(recurrent_by_steps(self._meets))
        self._context.enter_context(inference_as_no_grad())
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._context.close()
        super().__exit__(*exception)
        if self._last is not None and lost_its_text(exception[1]):
            raise self._last from None
