"""A tensor of the 16-bit program that holds float32 values.

Its dtype is the one the 16-bit program sees, so the program takes the same path; its values, and
the gradients that flow through them, are float32 and never rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.batching import map_inputs
from pytest_fp16.engine.emulation.interception import Carrier
from pytest_fp16.engine.tracing.decisions import Doubt


class Cell:
    """What is known about a piece of memory, shared by every view of it.

    Attributes:
        depends: its values depend on the model's input (else they are constants of the program).
        noisy: rounding errors of the arithmetic have entered it.
        aliases: how many tensors look at it.
        doubt: of the decision it holds, which rounding could change; or None.
        grid: of float32 values, the 16-bit dtype that holds each of them, because they were cast
            up from it; or None.
    """

    __slots__ = ("aliases", "depends", "doubt", "grid", "noisy")

    def __init__(self, depends: bool, noisy: bool, grid: torch.dtype | None = None) -> None:
        self.depends = depends
        self.noisy = noisy
        self.aliases = 1
        self.doubt: Doubt | None = None
        self.grid = grid


class Shadow(Carrier):
    """See the module's docstring. Operations on it are computed by an active `Trace` only."""

    inner: Tensor  # type: ignore[assignment]
    cell: Cell

    @staticmethod
    def __new__(cls: type[Shadow], inner: Tensor, dtype: torch.dtype, cell: Cell) -> Shadow:
        """A tensor without memory of its own, shaped like `inner`, of the program's dtype.

        All is set here: what `torch.Tensor([…])` of a program gives is initialised once more.
        """
        shadow: Shadow = cls.like(inner, dtype)
        shadow.inner, shadow.cell = inner, cell
        return shadow

    def shown(self) -> Tensor:
        """The float32 values."""
        return self.inner

    def write(self, values: Tensor, depends: bool, noisy: bool) -> None:
        """The program has put `values` here, which depend on its input, or carry errors."""
        if values is not self.inner:
            self.inner = values
        self.cell.grid = None
        self.cell.depends |= depends
        self.cell.noisy |= noisy


def unwrap(value: Any) -> Any:
    """The float32 values of traced tensors; lists element by element; the rest untouched."""
    if isinstance(value, Shadow):
        return value.inner
    if isinstance(value, (list, tuple)):
        return [unwrap(item) for item in value]
    if isinstance(value, dict):
        return {k: unwrap(item) for k, item in value.items()}
    return value


def wrap_inputs(value: Any, fmt_dtype: torch.dtype | None, keep: Sequence[int | str] = ()) -> Any:
    """The model's inputs as traced tensors; floating ones rounded to `fmt_dtype` if it is given.

    But for those that `keep_inputs` names.
    """

    def wrapped(tensor: Tensor, kept: bool) -> Shadow:
        if tensor.requires_grad:
            tensor = tensor.detach()  # a graph of the user's would hide where ours begins
        if tensor.is_floating_point() and fmt_dtype is not None and not kept:
            return Shadow(tensor.to(fmt_dtype).to(torch.float32), fmt_dtype, Cell(True, False))
        return Shadow(tensor, tensor.dtype, Cell(True, False))

    return map_inputs(value, wrapped, keep)
