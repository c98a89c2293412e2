"""A tensor of the 16-bit program beside the one it would be without rounding errors.

Views, and writes into them, are made in both worlds, so both share memory as the program does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from pytest_fp16.engine.emulate import widen


class Fate:
    """What is known about a piece of memory, shared by every view of it.

    Attributes:
        made: an operation made its values. Until then low and exact differ by storage alone: a
            parameter, an input or a constant, cast or moved.
        fixed: its values do not depend on the model's input.
    """

    __slots__ = ("fixed", "made")

    def __init__(self, made: bool, fixed: bool) -> None:
        self.made = made
        self.fixed = fixed


class Twin(Tensor):
    """See the module's docstring. Operations on it are computed by an active `Autopsy` only.

    Attributes:
        low: as the 16-bit program has it.
        exact: its float32 twin; of integer and bool tensors, the one that exact values lead to.
    """

    low: Tensor
    exact: Tensor
    fate: Fate

    @staticmethod
    def __new__(
        cls: type[Twin], low: Tensor, exact: Tensor, fate: Fate, dtype: torch.dtype
    ) -> Twin:
        """A tensor without memory of its own, shaped like `low`, of the program's dtype."""
        twin: Twin = torch.Tensor._make_wrapper_subclass(
            cls, low.shape, strides=low.stride(), dtype=dtype, device=low.device
        )
        return twin

    def __init__(self, low: Tensor, exact: Tensor, fate: Fate, dtype: torch.dtype) -> None:
        self.low = low
        self.exact = exact
        self.fate = fate

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def native(self) -> Tensor:
        """The plain tensor the program would hold here."""
        with _disable_current_modes():
            return self.low.detach().to(self.dtype)

    def numpy(self, *, force: bool = False) -> Any:
        """What the program would read on the host."""
        with _disable_current_modes():
            return self.native().numpy(force=force)

    def tolist(self) -> Any:
        """What the program would read on the host."""
        with _disable_current_modes():
            return self.native().tolist()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{func} was called on a tensor of an autopsy after it had ended")


def low(value: Any) -> Any:
    """The tensors of the 16-bit program; lists element by element; the rest untouched."""
    return _each(value, lambda twin: twin.low)


def exact(value: Any) -> Any:
    """The float32 twins, and 16-bit dtypes as torch.float32."""
    return widen(_each(value, lambda twin: twin.exact))


def _each(value: Any, of: Callable[[Twin], Tensor]) -> Any:
    if isinstance(value, Twin):
        return of(value)
    if isinstance(value, (list, tuple)):
        return [_each(item, of) for item in value]
    return value


def twins(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Twin]:
    """Every twin among the arguments of an operation."""
    found: list[Twin] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Twin):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(item for item in value if isinstance(item, Twin))
    return found
