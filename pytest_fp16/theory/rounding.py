"""Floating-point formats and their spacing: unit roundoff, ulp, overflow.

Sources: IEEE 754-2019 (binary16); Higham, *Accuracy and Stability of Numerical Algorithms*,
2nd ed., section 2.1 (unit roundoff, the standard model, gradual underflow).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch

_EXPONENT_BITS = 0x7F800000  # of float32
#: float32's smallest normal number. A format that goes as far down, as bfloat16 does, loses nothing
#: there that float32 does not lose, too.
FLOAT32_NORMAL = 2.0**-126
#: Unit roundoff of float32.
FLOAT32_ROUNDOFF = 2.0**-24


@dataclass(frozen=True)
class Format:
    """A binary floating-point format of at most float32's range.

    Attributes:
        dtype: the torch dtype.
        significand: bits of the significand, the implicit one included (11 for float16).
        min_exponent: exponent of the smallest normal number (-14 for float16).
        largest: largest finite value.
    """

    dtype: torch.dtype
    significand: int
    min_exponent: int
    largest: float

    @property
    def name(self) -> str:
        """``"float16"`` or ``"bfloat16"``."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def unit_roundoff(self) -> float:
        """u, the largest relative error of rounding to nearest in the normal range."""
        return 2.0**-self.significand

    @property
    def smallest_normal(self) -> float:
        """Below it the spacing is constant."""
        return 2.0**self.min_exponent

    @property
    def smallest_subnormal(self) -> float:
        """The spacing below the normal range; half of it rounds to zero."""
        return 2.0 ** (self.min_exponent - self.significand + 1)

    @cached_property
    def overflow_threshold(self) -> float:
        """Magnitudes from here on round to infinity (half an ulp beyond the largest value)."""
        exponent = math.frexp(self.largest)[1] - 1
        return self.largest + 2.0**exponent * self.unit_roundoff


FLOAT16 = Format(torch.float16, significand=11, min_exponent=-14, largest=65504.0)
BFLOAT16 = Format(torch.bfloat16, significand=8, min_exponent=-126, largest=3.3895313892515355e38)

FORMATS = {f.dtype: f for f in (FLOAT16, BFLOAT16)}


def binade(x: torch.Tensor) -> torch.Tensor:
    """The power of two at or below the magnitude of each float32 value, a new tensor of its shape.

    Zero below float32's normal range, infinity where `x` is infinite or NaN.
    """
    # Masking away sign and significand: one pass, no frexp.
    return x.contiguous().view(torch.int32).bitwise_and(_EXPONENT_BITS).view(torch.float32)


def ulp(x: torch.Tensor, fmt: Format) -> torch.Tensor:
    """The spacing of `fmt` at each float32 value of `x`, true below the normal range too.

    Args:
        x: float32 values, any shape.
        fmt: the format whose grid is meant.

    Returns:
        Same shape, float32; infinity where `x` is infinite or NaN.
    """
    return binade(x).clamp_(min=fmt.smallest_normal).mul_(2.0 ** (1 - fmt.significand))


def ulp_at(x: float, fmt: Format) -> float:
    """`ulp` of a single number, without a tensor; infinity of infinity and NaN."""
    if not math.isfinite(x):
        return math.inf
    _, exponent = math.frexp(max(abs(x), fmt.smallest_normal))
    return math.ldexp(1.0, exponent - fmt.significand)


def round_to(x: torch.Tensor, fmt: Format) -> torch.Tensor:
    """`x` rounded to the nearest value of `fmt`, ties to even, kept as float32."""
    return x.to(fmt.dtype).to(torch.float32)


def flush_underflow(x: torch.Tensor, fmt: Format) -> torch.Tensor:
    """`x` with the values below the normal range of `fmt` on its grid, the others untouched."""
    # Gradients pass as through the identity: cast to 16 bits they would themselves overflow.
    step = round_to(x.detach(), fmt) - x.detach()
    return torch.where(x.abs() < fmt.smallest_normal, x + step, x)


def flush_to_one(x: torch.Tensor, fmt: Format) -> torch.Tensor:
    """`x` with the values that `fmt` cannot tell from ±1 there, the others untouched."""
    step = round_to(x.detach(), fmt) - x.detach()
    return torch.where((x.detach() + step).abs() == 1, x + step, x)


def overflow(x: torch.Tensor, fmt: Format) -> torch.Tensor:
    """`x` with the values that `fmt` cannot hold replaced by infinities of their sign."""
    return torch.where(
        x.abs() >= fmt.overflow_threshold, torch.copysign(x.new_tensor(torch.inf), x), x
    )
