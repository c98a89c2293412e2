"""Values rounded at random: each off by an error of the size that its rounding may have.

None is taken past zero or a power of two, as no rounding takes it: so a sum of squares has a root
all the same, and one less a cosine is not negative. A power of two stays what it is, and what
rounds to one, where bounded values end, is one.
"""

from __future__ import annotations

import struct
from functools import cache

import torch
from torch import Tensor

from pytest_fp16.engine.tracing.sites import spacing
from pytest_fp16.theory.rounding import FLOAT32_NORMAL, Format, round_to

#: Steps of the format from zero, or from an operand, up to which a value's own error leaves its
#: rounding to whole ones alone.
FEW_STEPS = 8.0

# Of float32, as integers: arithmetic on these costs a tenth of comparisons and choices on a CPU.
_MAGNITUDE, _MANTISSA, _OCTAVE, _ONE = 0x7FFFFFFF, 0x7FFFFF, 0x800000, 0x3F800000
_DIGITS = 24


def rounded_at_random(
    y: Tensor,
    fmt: Format,
    generator: torch.Generator,
    steps: float = 1.0,
    fixed: Tensor | None = None,
    finite: bool = True,
) -> Tensor:
    """`y` with a random rounding error in each value.

    Args:
        y: float32, any shape; no gradient passes.
        fmt: the format it is rounded to.
        generator: where the errors are drawn from.
        steps: roundings per value.
        fixed: one where a value has its rounding error already, zero elsewhere; or None.
        finite: whether all values are.
    """
    values = y.detach()
    if steps == 1:
        moved = _once(values, fmt, generator, fixed, finite)
    else:
        moved = _several(values, fmt, generator, steps, fixed, finite)
    return _ends_rounded(values, moved, fmt)


def _once(
    values: Tensor,
    fmt: Format,
    generator: torch.Generator,
    fixed: Tensor | None,
    finite: bool,
) -> Tensor:
    """One rounding: an ulp of the format is so many of float32, whatever the exponent."""
    bits = values.view(torch.int32)
    mantissa = bits.bitwise_and(_MANTISSA)
    error = _errors(mantissa, fmt, generator)
    if fixed is not None:
        error.mul_((1 - fixed).to(torch.int32))
    if not finite:
        error.masked_fill_(values.isnan(), 0)
    # A power of two, and infinity, stays what it is.
    moved = mantissa.clamp(max=1).mul_(error)
    moved.add_(mantissa).clamp_(0, _OCTAVE).sub_(mantissa).add_(bits)
    size = bits.bitwise_and(_MAGNITUDE)
    moved = _near_one(values, size, moved, fmt)
    return _near_zero(values, size, moved, error, fmt).view(torch.float32)


def _half(fmt: Format) -> int:
    """Half an ulp of the format in those of float32; just below one it is as many."""
    return int(2 ** (_DIGITS - 1 - fmt.significand))


def _errors(like: Tensor, fmt: Format, generator: torch.Generator) -> Tensor:
    """Whole numbers from minus half an ulp up to it."""
    if like.device.type != "cpu":
        return torch.empty_like(like).random_(-_half(fmt), _half(fmt), generator=generator)
    n = like.numel()  # a CPU draws slowly, and one draw is enough for four of them
    words = torch.empty(-(-n // 4), dtype=torch.int64, device=like.device)
    words.random_(-(2**63), None, generator=generator)
    error = torch.empty_like(like).copy_(words.view(torch.int16)[:n].view(like.shape))
    return error.bitwise_right_shift_(16 - _half(fmt).bit_length())


def _near_one(values: Tensor, size: Tensor, moved: Tensor, fmt: Format) -> Tensor:
    """What rounds to one is one."""
    apart = size.sub(_ONE).abs_()
    if int(apart.amin()) > _half(fmt):
        return moved
    rounded = round_to(values, fmt).view(torch.int32)
    return _chosen(_below(apart, _half(fmt) + 1), rounded, moved)


def _near_zero(values: Tensor, size: Tensor, moved: Tensor, error: Tensor, fmt: Format) -> Tensor:
    """Where the format has another step than the exponent says.

    Of a few steps above zero a value's own error leaves its rounding alone.
    """
    step = fmt.smallest_subnormal
    few = _as_bits(FEW_STEPS * step) + 1
    least = _as_bits(fmt.smallest_normal) if fmt.smallest_normal > FLOAT32_NORMAL else few
    if int(size.sub(1).bitwise_and_(_MAGNITUDE).amin()) >= least:  # zeros, as the largest, aside
        return moved
    low = error.to(torch.float32).mul_(step / (2 * _half(fmt))).add_(values).view(torch.int32)
    low = _chosen(_below(size, few), round_to(values, fmt).view(torch.int32), low)
    return _chosen(_below(size, least), low, moved)


def _below(numbers: Tensor, end: int) -> Tensor:
    """All bits set where a whole number is less."""
    return numbers.sub(end).bitwise_right_shift_(31)


def _chosen(mask: Tensor, these: Tensor, others: Tensor) -> Tensor:
    """Bits of `these` where the mask has them set, of `others` elsewhere."""
    return these.bitwise_xor(others).bitwise_and_(mask).bitwise_xor_(others)


@cache
def _as_bits(value: float) -> int:
    return int(struct.unpack("<i", struct.pack("<f", value))[0])


def _several(
    values: Tensor,
    fmt: Format,
    generator: torch.Generator,
    steps: float,
    fixed: Tensor | None,
    finite: bool,
) -> Tensor:
    """Several roundings, which may take a value past a power of two, but not past zero."""
    error = torch.rand(values.shape, generator=generator, device=values.device).sub_(0.5)
    error.mul_(spacing(values, fmt, finite)).mul_(steps**0.5)
    moved = values + (error if fixed is None else error.mul_(1 - fixed))
    moved = torch.where(values.signbit() == moved.signbit(), moved, 0.0)
    few = values.abs() <= FEW_STEPS * fmt.smallest_subnormal
    return torch.where(few, round_to(values, fmt), moved)


def _ends_rounded(values: Tensor, moved: Tensor, fmt: Format) -> Tensor:
    """What a clamp has made the largest or smallest rounds as it is.

    Where errors are random, several values agree only if none has entered them. An index that is
    computed of clamped coordinates leaves its table only if it rounds there.
    """
    for end in torch.aminmax(values):
        if bool(end.isfinite()) and float(end) != 0.0:  # zeros have no error
            apart = values - end
            if apart.numel() - int(apart.count_nonzero()) > 1:
                moved = torch.where(apart == 0, round_to(end, fmt), moved)
    return moved
