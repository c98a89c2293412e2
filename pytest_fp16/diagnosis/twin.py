"""A tensor of the 16-bit program beside the one it would be without rounding errors.

Views, and writes into them, are made in both worlds, so both share memory as the program does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.emulation.emulate import widen
from pytest_fp16.engine.emulation.interception import Carrier
from pytest_fp16.engine.emulation.operations import LOW, each, tensors


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


class Twin(Carrier):
    """See the module's docstring. Operations on it are computed by an active `TwinRun` only.

    Attributes:
        low: as the 16-bit program has it.
        exact: its float32 twin; of integer and bool tensors, the one that exact values lead to.
        on_read: gives whom to tell where the program reads it on the host past the dispatcher; or
            None.
    """

    low: Tensor
    exact: Tensor
    fate: Fate
    on_read: Callable[[], Callable[[Twin], None] | None] | None = None

    @staticmethod
    def __new__(
        cls: type[Twin], low: Tensor, exact: Tensor, fate: Fate, dtype: torch.dtype
    ) -> Twin:
        """A tensor without memory of its own, shaped like `low`, of the program's dtype.

        All is set here: what `torch.Tensor([…])` of a program gives is initialised once more.
        """
        twin: Twin = cls.like(low, dtype)
        twin.low, twin.exact, twin.fate = low, exact, fate
        return twin

    def shown(self) -> Tensor:
        """The values of the 16-bit program."""
        return self.low

    def was_read(self) -> None:
        """Tell whoever records the program."""
        tell = self.on_read and self.on_read()
        if tell:
            tell(self)


def constant(value: Tensor) -> Tensor:
    """The exact twin of a constant made outside of any operation.

    A constant too large for the format has become infinite before it can be seen; the largest
    number stands for it.
    """
    wide: Tensor = widen(value)
    if value.dtype in LOW and bool(wide.isinf().any()):
        wide = torch.nan_to_num(wide, nan=math.nan)
    return wide


def low(value: Any) -> Any:
    """The tensors of the 16-bit program; lists element by element; the rest untouched."""
    return each(value, lambda twin: twin.low, Twin)


def exact(value: Any) -> Any:
    """The float32 twins, and 16-bit dtypes as torch.float32."""
    return widen(each(value, lambda twin: twin.exact, Twin))


def twins(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Twin]:
    """Every twin among the arguments of an operation."""
    return [t for t in tensors(args, kwargs) if isinstance(t, Twin)]
