"""Results that no format rounds: some sums, products with powers of two, single terms.

A sum of products is such a result where one product alone is not zero and one of its factors is a
power of two: a matrix of ones and zeros moves rows, and so does a one-hot vector. All of it asks
that the other operand is on the grid of the format in the 16-bit program.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.tracing.recorder import SAMPLE, WORTHWHILE, sampled
from pytest_fp16.engine.tracing.shadow import Shadow
from pytest_fp16.theory.rounding import Format, round_to

_SUMS = frozenset({"add", "sub", "rsub"})
_FRACTION_BITS = 0x007FFFFF  # of float32
#: Matrices, rows and columns that are looked at before all are.
_FEW = 16


def exact_results(
    name: str, args: Sequence[Any], kwargs: dict[str, Any], y: Tensor, formats: Sequence[Format]
) -> Tensor | None:
    """Where an operation's results are exact: one there, zero elsewhere.

    Args:
        name: the operation.
        args, kwargs: its arguments, tensors as `Shadow`.
        y: its float32 results.
        formats: the one they are rounded to, and others that share its errors.

    Returns:
        None where that is (nearly) nowhere.
    """
    low = [a if isinstance(a, Shadow) and a.dtype == formats[0].dtype else None for a in args[:2]]
    if len(low) < 2 or y.numel() == 0:
        return None
    first, second = low
    if name in _SUMS:
        if kwargs.get("alpha", 1) != 1 or first is None or second is None:
            return None
        zeros = beside_zeros(y, [first.inner, second.inner])
        return _union(zeros, on_the_last_step(y, formats))
    exact = None
    if name in ("mul", "div") and kwargs.get("rounding_mode") is None:
        exact = _union(
            scaled(args[1], y) if first is not None else None,
            scaled(args[0], y) if second is not None and name == "mul" else None,
        )
    elif name in ("fmod", "remainder") and first is not None:
        exact = left_over(name, first.inner.detach(), args[1], formats)
    elif name in ("mm", "bmm") and first is not None and second is not None:
        exact = selected(first.inner.detach(), second.inner.detach())
    if exact is None:
        return None
    # Below the normal range a power of two may move bits off the grid.
    smallest = max(f.smallest_normal for f in formats)
    return exact * (y.detach().abs() / smallest).clamp_(max=1).floor_()


def _union(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one.maximum(other)


def beside_zeros(y: Tensor, operands: Sequence[Tensor]) -> Tensor | None:
    """Where a sum is exact because one of its operands is zero: one there, zero elsewhere.

    Args:
        y: the sum or difference.
        operands: both of them, on the grid of its format in the 16-bit program.

    Returns:
        None where that is (nearly) nowhere.
    """
    exact = None
    for operand in operands:
        if _share(sampled(operand.detach(), SAMPLE) == 0) >= WORTHWHILE:
            exact = _union(exact, (operand.detach() == 0).to(y.dtype).expand(y.shape))
    return exact


def on_the_last_step(y: Tensor, formats: Sequence[Format]) -> Tensor | None:
    """Where a sum is exact because the format has the same steps there as below its normal range.

    Its operands are whole numbers of them, and so is the sum (Hauser 1996; Higham, *Accuracy and
    Stability of Numerical Algorithms*, 2nd ed., problem 2.19).

    Args:
        y: the sum or difference of numbers on the grid of its format in the 16-bit program.
        formats: all in which it is to be exact.

    Returns:
        One there, zero elsewhere; None where that is (nearly) nowhere.
    """
    end = 2 * min(f.smallest_normal for f in formats)
    if _share(sampled(y.detach(), SAMPLE).abs() < end) < WORTHWHILE:
        return None
    return (y.detach().abs() < end).to(y.dtype)


def scaled(factor: Any, y: Tensor) -> Tensor | None:
    """Where a factor, or a divisor, is a power of two, expanded to the results' shape."""
    if isinstance(factor, (int, float)):
        power = math.isfinite(factor) and math.frexp(abs(factor))[0] == 0.5
        return y.new_ones(()).expand(y.shape) if power else None
    if not isinstance(factor, Shadow) or factor.inner.is_complex():
        return None
    values = factor.inner.detach()
    if _share(powers(sampled(values, SAMPLE))) < WORTHWHILE:
        return None
    return powers(values).to(y.dtype).expand(y.shape)


def left_over(name: str, values: Tensor, divisor: Any, formats: Sequence[Format]) -> Tensor | None:
    """Where what a division leaves is exact, expanded to the results' shape.

    It is a whole number of the steps of the smaller operand, and no larger than either (IEEE 754,
    section 5.3.1), unless `remainder` adds the divisor to give it the divisor's sign.
    """
    if isinstance(divisor, Shadow):
        if divisor.dtype != formats[0].dtype:
            return None
        by = divisor.inner.detach()
    else:
        by = torch.as_tensor(divisor, dtype=torch.float32, device=values.device)
        if any(float(round_to(by, fmt)) != float(by) for fmt in formats):
            return None
    exact = torch.ones_like(values * by)
    return exact if name == "fmod" else exact * (values * by >= 0)


def selected(a: Tensor, b: Tensor) -> Tensor | None:
    """Where a product of matrices has one term alone, one of whose factors is a power of two."""
    if all(_share(sampled(m, SAMPLE) == 0) < WORTHWHILE for m in (a, b)):
        return None
    few = [_spread(m, dims) for m, dims in ((a, (0, -2)), (b, (0, -1)))]
    if a.dim() == 2:
        few = [_spread(a, (0,)), _spread(b, (1,))]
    if _share(_single(*few)) < WORTHWHILE:
        return None
    return _single(a, b)


def _spread(matrix: Tensor, dims: Sequence[int]) -> Tensor:
    """A few of the matrices, rows or columns, from all over."""
    for dim in dims:
        size = matrix.shape[dim]
        matrix = matrix.movedim(dim, 0)[:: max(1, size // _FEW) | 1].movedim(0, dim)
    return matrix


def _single(a: Tensor, b: Tensor) -> Tensor:
    here, there = ((m != 0).to(m.dtype) for m in (a, b))
    terms = here @ there
    moving = powers(a).to(a.dtype) @ there + here @ powers(b).to(b.dtype)
    return ((terms <= 1) & (moving >= terms)).to(a.dtype)


def powers(values: Tensor) -> Tensor:
    """Whether each value is a power of two, of either sign; bool."""
    wide = values.float()
    bits = wide.contiguous().view(torch.int32).bitwise_and(_FRACTION_BITS)
    return (bits == 0) & wide.isfinite() & (wide != 0)


def _share(flags: Tensor) -> float:
    return float(flags.float().mean())
