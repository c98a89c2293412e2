"""Rounding that is certain: results that lie within half an ulp of an operand fall back onto it.

Operands are on the grid of the format. So a sum whose addend is below half an ulp, or a product
with a factor next to one, rounds to the operand itself: a moving average stands still, a counter
stops. So it is where a function is flat: exponentials of tiny numbers share the few numbers of the
format next to one. That error has no random sign, and a σ does not describe it; it is applied
instead. The same holds for kernels that accumulate in 16 bits: they are asked themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.shadow import Shadow
from pytest_fp16.theory.rounding import Format, round_to, ulp, ulp_at

#: A share of values this small that fall back leaves no trace beside ordinary rounding.
_WORTHWHILE = 0.01
_SAMPLE = 4096
#: Distinct values for each number of the format among which they must share.
_CROWD = 64
#: Standard errors of a mean of rounding errors that are no chance.
_BIASED = 5.0

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
        stride = max(1, y.numel() // _SAMPLE)
        before, after = (t.detach().flatten()[::stride] for t in (operand, y))
        if float(_falls(before, after, fmt)[1].mean()) < _WORTHWHILE:
            continue
        away, falls = _falls(operand.detach(), y.detach(), fmt)
        y = y + away.mul_(falls)
    return y


def _falls(operand: Tensor, y: Tensor, fmt: Format) -> tuple[Tensor, Tensor]:
    """The way from `y` to the operand, and one where it is not zero but below half an ulp."""
    away = operand - y
    halves = away.abs().mul_(2).div_(ulp(operand, fmt)).ceil_()
    return away, halves.sub_(1).abs_().neg_().add_(1).clamp_(min=0)


def crowded(y: Tensor, fmt: Format) -> Tensor:
    """`y` rounded, where many values share few numbers of the format and err to one side.

    Args:
        y: float32 results, before any rounding.
        fmt: the format they are rounded to.
    """
    values = y.detach()
    few = values.reshape(-1)[:: max(1, y.numel() // _SAMPLE)]
    if few.numel() < _CROWD:
        return y
    low, high = (float(v) for v in torch.aminmax(few))
    shared = (high - low) / ulp_at(max(abs(low), abs(high)), fmt)  # numbers of the format
    if not shared * _CROWD <= few.numel():
        return y
    distinct = few.unique()
    if len(distinct) < max(shared, 1.0) * _CROWD:
        return y
    bias = ((round_to(distinct, fmt) - distinct) / ulp(distinct, fmt)).mean()
    if float(bias.abs()) <= _BIASED / (12 * len(distinct)) ** 0.5:
        return y
    return y + (round_to(values, fmt) - values)


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
    moved = native.detach().to(torch.float32)
    return y + (moved - y.detach()).masked_fill(moved == y.detach(), 0.0)  # infinite ones too
