"""``parameter.data = value`` where the value is carried: torch would take memory it does not have.

A layer that initialises itself by its first batch assigns so, and one that keeps its weights at
unit length. The parameter is left alone; while the run lasts, the value stands for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from pytest_fp16.engine.emulation.patching import replaced


@contextmanager
def assigned(carried: type[Tensor], kept: dict[int, tuple[Tensor, Any]]) -> Iterator[None]:
    """Keep what is assigned to plain tensors, by their ids, each with the tensor itself.

    Args:
        carried: the class of tensors without memory of their own.
        kept: where it is kept.
    """
    before: Any = Tensor.data

    def read(self: Tensor) -> Any:
        value = assigned_to(self, kept)
        return before.__get__(self) if value is None else value.detach()

    def write(self: Tensor, value: Any) -> None:
        if isinstance(value, carried) and not isinstance(self, carried):
            kept[id(self)] = (self, value.detach())
        else:
            kept.pop(id(self), None)
            before.__set__(self, value)

    with replaced(Tensor, data=property(read, write)):
        yield


def assigned_to(tensor: Tensor, kept: dict[int, tuple[Tensor, Any]]) -> Any:
    """What stands for a plain tensor, or None."""
    found = kept.get(id(tensor))
    return found[1] if found is not None and found[0] is tensor else None
