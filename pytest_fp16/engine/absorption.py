"""Rounding that is certain: results that lie within half an ulp of an operand fall back onto it.

Operands are on the grid of the format. So a sum whose addend is below half an ulp, or a product
with a factor next to one, rounds to the operand itself: a moving average stands still, a counter
stops. That error has no random sign, and a σ does not describe it; it is applied instead. The same
holds for kernels that accumulate in 16 bits: they are asked themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.shadow import Shadow
from pytest_fp16.theory.rounding import Format, ulp

#: Positions of the operands a result can fall back onto.
OPERANDS = {
    "add": (0, 1),
    "sub": (0,),
    "rsub": (1,),
    "mul": (0, 1),
    "div": (0,),
    "lerp": (0, 1),
    "addcmul": (0,),
    "addcdiv": (0,),
}


def absorbed(y: Tensor, operands: Sequence[Tensor], fmt: Format) -> Tensor:
    """`y` with the values replaced that round to an operand; gradients follow the operand there.

    Args:
        y: float32 results, before any rounding.
        operands: float32 values that are on the grid of `fmt` in the 16-bit program.
        fmt: the format the results are rounded to.
    """
    for operand in operands:
        if operand.shape != y.shape:
            continue
        a, result = operand.detach(), y.detach()
        falls = ((result - a).abs_().mul_(2) < ulp(a, fmt)) & (result != a)
        if bool(falls.any()):
            y = torch.where(falls, operand, y)
    return y


def operands_of(name: str, args: Sequence[Any], dtype: torch.dtype) -> list[Tensor]:
    """The operands of an operation that a result of `dtype` can fall back onto."""
    places = OPERANDS.get(name, ())
    return [
        args[i].inner
        for i in places
        if i < len(args) and isinstance(args[i], Shadow) and args[i].dtype == dtype
    ]


def accumulated(y: Tensor, run: Callable[[], Tensor]) -> Tensor:
    """`y` moved to what the 16-bit accumulator gives; gradients stay those of the sum.

    Args:
        y: the sum in float32.
        run: the operation's own kernel on 16-bit arguments.
    """
    try:
        native = run()
    except (RuntimeError, NotImplementedError):
        return y
    if not isinstance(native, Tensor) or native.shape != y.shape:
        return y
    return y + (native.detach().to(torch.float32) - y.detach())
