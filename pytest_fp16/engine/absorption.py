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
    """`y` with the values replaced that round to an operand; gradients stay those of the result.

    Args:
        y: finite float32 results, before any rounding.
        operands: finite float32 values that are on the grid of `fmt` in the 16-bit program.
        fmt: the format the results are rounded to.
    """
    for operand in operands:
        if operand.shape != y.shape:
            continue
        away = operand.detach() - y.detach()
        halves = away.abs().mul_(2).div_(ulp(operand.detach(), fmt)).ceil_()
        # One where 0 < |away| < ulp/2, else zero; in arithmetic, since masks cost ten times as much.
        falls = halves.sub_(1).abs_().neg_().add_(1).clamp_(min=0)
        y = y + away.mul_(falls)
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
