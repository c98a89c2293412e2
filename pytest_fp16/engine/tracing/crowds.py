"""Many values that share few numbers of a format, whose rounding is no matter of chance.

So it is where a function is flat: exponentials of tiny numbers share the few numbers of the format
next to one; and a mask times a constant holds two values, which err alike everywhere.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pytest_fp16.engine.tracing.recorder import SAMPLE, sampled
from pytest_fp16.theory.rounding import Format, round_to, ulp, ulp_at

#: Distinct values for each number of the format among which they must share.
_CROWD = 64
#: Standard errors of a mean of rounding errors that are no chance.
_BIASED = 5.0
#: Distinct values at most, and how often each stands there on average at least, of a tensor whose
#: errors repeat.
_DISTINCT = 16
_TIMES = 4
#: Errors of that many times their size may turn a rounding the other way.
TURNED_SIGMAS = 6.0


def crowded(
    y: Tensor, fmt: Format, entered: Callable[[], Tensor | None] | None = None
) -> tuple[Tensor, Tensor | None]:
    """`y` rounded, where many values share few numbers of the format and do not err at random.

    They err to one side, all of them or those of one input: hazards of one patient are alike. Those
    so near to half-way between two numbers that errors which have entered may turn them are left to
    chance.

    Args:
        y: float32 results, before any rounding.
        fmt: the format they are rounded to.
        entered: the errors in them so far, of the shape of `y`; or None where none are.

    Returns:
        The values (`y` itself where all is left to chance), and one where they are settled, zero
        elsewhere; None where all are.
    """
    values = y.detach()
    few = sampled(values, SAMPLE)
    if few.numel() < _CROWD:
        return y, None
    low, high = (float(v) for v in torch.aminmax(few))
    shared = (high - low) / ulp_at(max(abs(low), abs(high)), fmt)  # numbers of the format
    if not shared * _CROWD <= few.numel():
        return y, None
    distinct = few.unique()
    if len(distinct) < max(shared, 1.0) * _CROWD:
        return y, None
    bias = _errors(distinct, fmt).mean()
    chance = float(bias.abs()) <= _BIASED / (12 * len(distinct)) ** 0.5
    if chance and not _alike_within_inputs(values, fmt):
        return y, None
    rounded = round_to(values, fmt)
    errors = None if entered is None else entered()
    if errors is None:
        return shifted(y, rounded), None
    half_way = (ulp(values, fmt) / 2 - (rounded - values).abs()).clamp_(min=0)
    settled = half_way >= TURNED_SIGMAS * errors
    if not bool(settled.any()):
        return y, None
    return shifted(y, torch.where(settled, rounded, values)), settled.to(y.dtype)


def _errors(values: Tensor, fmt: Format) -> Tensor:
    """Rounding errors in ulp: uniform of variance 1/12 where they are a matter of chance."""
    return (round_to(values, fmt) - values) / ulp(values, fmt)


def _alike_within_inputs(values: Tensor, fmt: Format) -> bool:
    """Whether the mean errors of inputs (the first axis) vary more than independent ones would."""
    if values.ndim < 2 or values[0].numel() < 2:
        return False
    means = _errors(values.flatten(1), fmt).mean(1)
    times = 12 * values[0].numel() * float(means.square().mean())
    return bool(times > 1 + _BIASED * (2 / len(means)) ** 0.5)


def repeated(y: Tensor, fmt: Format) -> Tensor:
    """`y` rounded, where it holds a few values many times each: equal values err alike.

    Args:
        y: float32 results, before any rounding.
        fmt: the format they are rounded to.
    """
    values = y.detach()
    if values.numel() < _TIMES * _DISTINCT:
        return y
    if len(set(sampled(values, _TIMES * _DISTINCT).tolist())) > _DISTINCT:  # the usual case
        return y
    distinct = sampled(values, SAMPLE).unique()
    if len(distinct) > _DISTINCT or not bool(torch.isin(values, distinct).all()):
        return y
    rounded = round_to(values, fmt)
    return y if torch.equal(rounded, values) else shifted(y, rounded)


def shifted(y: Tensor, there: Tensor) -> Tensor:
    """`y` moved to other values, with its own gradients; infinite ones stay where they are."""
    away = there - y.detach()
    return y + away.masked_fill(there == y.detach(), 0.0)
