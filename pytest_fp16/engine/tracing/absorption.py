"""Rounding that is certain: results that lie within half an ulp of an operand fall back onto it.

Operands are on the grid of the format. So a sum whose addend is below half an ulp, or a product
with a factor next to one, rounds to the operand itself: a moving average stands still, a counter
stops. Such errors have no random sign, and a σ does not describe them; they are applied instead, as
those of values that share few numbers (`crowds`) are. And where a loop adds a few steps of the
format, the sum errs as its addend does when that is rounded to whole steps, whatever has been
summed so far: addends that are alike err alike, and errors add up.
The same holds for kernels that accumulate in 16 bits: they are asked themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.tracing.crowds import crowded, repeated, shifted
from pytest_fp16.engine.tracing.noise import FEW_STEPS
from pytest_fp16.engine.tracing.recorder import (
    SAMPLE,
    WORTHWHILE,
    largest_magnitude,
    sampled,
)
from pytest_fp16.engine.tracing.shadow import Shadow
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


def certain_errors(
    y: Tensor,
    operands: Sequence[Tensor],
    fmt: Format,
    moves: bool,
    steps: bool,
    settles: bool,
    entered: Callable[[], Tensor | None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`y` with the rounding applied whose outcome is no matter of chance.

    Args:
        y: float32 results, before any rounding.
        operands: those that a result can fall back onto, as of `absorbed`.
        fmt: the format the results are rounded to.
        moves: whether the operation only moves values, whose errors are those of its argument.
        steps: whether to look for results that are a few steps of the format from an operand: of a
            loop, whose errors may add up, or where no error has entered the operands.
        settles: whether that leaves them no random error.
        entered: as of `crowded`.

    Returns:
        The values (`y` itself where all is left to chance), and which of them are as the 16-bit
        program has them: one there, zero elsewhere; None where it has been left to chance, or all
        are on the grid.
    """
    fixed = None
    moved = y
    falls, near = _nearness(y, operands, fmt)
    if (falls or (near and steps)) and largest_magnitude(y.detach()) < fmt.overflow_threshold:
        if falls:
            moved, fixed = absorbed(y, operands, fmt)
        if steps:
            moved, settled = stepped(moved, operands, fmt, fixed)
            # An addend's own error may turn its rounding the other way. A run with random errors
            # does so itself; for a slope that knows nothing of it the site keeps its own.
            fixed = settled if settles else fixed
    if moved is y and not moves:
        moved, settled = crowded(y, fmt, entered)
        fixed = settled if fixed is None else fixed
    if moved is y and not moves:
        moved = repeated(y, fmt)
    return moved, fixed


def absorbed(y: Tensor, operands: Sequence[Tensor], fmt: Format) -> tuple[Tensor, Tensor | None]:
    """`y` with the values replaced that round to an operand; gradients stay those of the result.

    Args:
        y: finite float32 results, before any rounding.
        operands: finite float32 values that are on the grid of `fmt` in the 16-bit program.
        fmt: the format the results are rounded to.

    Returns:
        The values, and one where they were replaced, zero elsewhere; None where none were.
    """
    fixed = None
    whole = [o.expand(y.shape) if _fits(o.shape, y.shape) else o for o in operands]
    for i, operand in enumerate(whole):
        if operand.shape != y.shape or not _worthwhile(y, operand, whole[-1 - i], fmt):
            continue
        away, falls = _falls(operand.detach(), y.detach(), fmt)
        moves = away.mul_(falls)
        y = y + moves if bool(moves.any()) else y
        fixed = falls if fixed is None else fixed.maximum(falls)
    return y, fixed


def stepped(
    y: Tensor, operands: Sequence[Tensor], fmt: Format, fixed: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """`y` a whole number of steps from an operand, where it is a few of them away from it.

    The operand is a multiple of the step at `y`, unless `y` has left for the next octave: so what
    is rounded is the difference alone, which is known but for errors of its own.

    Args:
        y, operands, fmt: as of `absorbed`.
        fixed: where that has settled the values; or None.

    Returns:
        The values, and where they are settled now.
    """
    values, step = y.detach(), ulp(y.detach(), fmt)
    for operand in (o.detach() for o in operands if _fits(o.shape, y.shape)):
        away = (values - operand) / step
        near = (away.abs() <= FEW_STEPS) & (ulp(operand, fmt) >= step)
        near = near if fixed is None else near & (fixed == 0)
        if float(near.float().mean()) >= WORTHWHILE:
            whole = (operand / step).round()
            y = y + torch.where(near, (_to_even(away, whole) - away) * step, 0.0)
            settled = near.to(y.dtype)
            fixed = settled if fixed is None else fixed.maximum(settled)
    return y, fixed


def _to_even(away: Tensor, whole: Tensor) -> Tensor:
    """`away` to whole steps, from a number of so many: a tie goes to where the sum is even."""
    even = 2 * ((whole + away) / 2).round() - whole
    return torch.where(away - away.floor() == 0.5, even, away.round())


def _fits(shape: torch.Size, into: torch.Size) -> bool:
    """Whether a tensor of the first shape broadcasts to the second."""
    sizes = zip(reversed(shape), reversed(into), strict=False)
    return len(shape) <= len(into) and all(own in (1, other) for own, other in sizes)


def _nearness(y: Tensor, operands: Sequence[Tensor], fmt: Format) -> tuple[bool, bool]:
    """Whether so many results may fall back onto an operand, or be a few steps from it.

    Seldom, and much cheaper to see than which of them do.
    """
    falls = near = False
    for operand in (o.detach() for o in operands if _fits(o.shape, y.shape)):
        before, after = (sampled(t, SAMPLE) for t in (operand.expand(y.shape), y.detach()))
        away = (after - before).abs_()
        # No ulp at the operand is larger than this.
        most = before.abs().mul_(2.0 ** (1 - fmt.significand)).clamp_(min=fmt.smallest_subnormal)
        steps = away.div_(most)
        if int((steps <= FEW_STEPS).count_nonzero()) >= WORTHWHILE / 2 * len(steps):
            near = True
            falls = falls or int((steps <= 0.5).count_nonzero()) >= WORTHWHILE * len(steps)
    return falls, near


def _worthwhile(y: Tensor, operand: Tensor, other: Tensor, fmt: Format) -> bool:
    """Whether enough results fall back onto an operand, other than by adding zeros to it."""
    before, after = (sampled(t.detach(), SAMPLE) for t in (operand, y))
    falls = _falls(before, after, fmt)[1]
    if other is not operand and other.shape == y.shape:
        falls.mul_(sampled(other.detach(), SAMPLE) != 0)
    return float(falls.mean()) >= WORTHWHILE


def _falls(operand: Tensor, y: Tensor, fmt: Format) -> tuple[Tensor, Tensor]:
    """The way from `y` to the operand, and one where it rounds there, zero elsewhere.

    It does within half a step of the grid between the two, which is finer below a power of two; a
    tie goes to an even number.
    """
    away = operand - y
    step = ulp(torch.minimum(operand.abs(), y.abs()), fmt)
    halves = away.abs().mul_(2).div_(step)
    falls = halves.ceil().neg_().add_(2).clamp_(0, 1)
    ties = halves == 1
    if bool(ties.any()):
        falls.masked_fill_(ties & ((operand / step).remainder(2) == 1), 0.0)
    return away, falls


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
    except RuntimeError:
        return y
    if not isinstance(native, Tensor) or native.shape != y.shape:
        return y
    return shifted(y, native.detach().to(torch.float32))
