"""Whole numbers that a 16-bit format does not have: 257 is 256 in bfloat16.

A running count that becomes an index, or positions that are cast to the type of the weights: one
number stands for its neighbours, and nothing is out of range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pytest_fp16.engine.emulation.operations import LOW, facts
from pytest_fp16.engine.gradients.finding import Finding
from pytest_fp16.engine.models import Location
from pytest_fp16.engine.source import user_source
from pytest_fp16.engine.uncompiled import FollowingMode
from pytest_fp16.theory.rounding import Format

#: The share of the whole numbers made at one place that may be others.
SHARE = 0.01


@dataclass(frozen=True)
class Miscount:
    """Whole numbers that are others than in 32 bits.

    Attributes:
        module, line: where they are made, or cast.
        number, became: the first of them, and what it is in 16 bits.
        share: of those made there.
    """

    module: str
    line: str | None
    number: int
    became: int
    share: float

    def said(self, form: Format) -> str:
        """What happened, in words and numbers."""
        every = 2**form.significand
        return (
            f"{self.share:.0%} of the whole numbers here are others ({self.number} becomes "
            f"{self.became}): {form.name} has every one up to {every} only"
        )

    def finding(self, reason: str, form: Format, more: str = "") -> Finding:
        """The same as a rule says it."""
        return Finding(
            reason,
            self.module,
            "_to_copy",
            "absorption",
            self.said(form) + more,
            self.line,
            "whole numbers",
        )


@dataclass(frozen=True)
class _Made:
    module: str
    line: str | None
    numbers: Tensor
    low: bool


class WholeNumbers(FollowingMode):
    """Notes whole numbers that are made of floating ones, and those that a 16-bit type changes.

    Args:
        model: whose modules say where an operation is.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.location = Location(model)
        self.made: list[_Made] = []
        self.changed: Miscount | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if facts(func).name == "_to_copy" and isinstance(out, Tensor) and out.numel():
            self._look(args[0], out)
        return out

    def _look(self, source: Tensor, out: Tensor) -> None:
        whole = [not (t.is_floating_point() or t.is_complex()) for t in (source, out)]
        if whole == [False, True] and out.dtype != torch.bool:
            numbers = out.detach().clone()
            self.made.append(_Made(*self._place(), numbers, source.dtype in LOW))
        if whole == [True, False] and out.dtype in LOW and self.changed is None:
            self.changed = _differing(self._place(), source.double(), out.double())

    def _place(self) -> tuple[str, str | None]:
        return self.location(), user_source()


def _differing(place: tuple[str, str | None], exact: Tensor, low: Tensor) -> Miscount | None:
    wrong = exact != low
    if not bool(wrong.any()):
        return None
    number, became = float(exact[wrong][0]), float(low[wrong][0])
    if not became < float("inf"):
        return None  # beyond the range: that is another matter
    return Miscount(*place, int(number), int(became), float(wrong.double().mean()))


def miscounted(
    exact: WholeNumbers, low: WholeNumbers, form: Format, ended: bool = False
) -> Miscount | None:
    """The place where most whole numbers are others than in 32 bits, for want of digits.

    Args:
        exact, low: what the same program made in 32 bits and in 16.
        form: of the latter.
        ended: whether the latter raised, and made no more.
    """
    found = []
    if len(exact.made) != len(low.made) and not (ended and len(low.made) < len(exact.made)):
        return None  # another way through the program
    for one, two in zip(exact.made, low.made, strict=False):
        if not two.low or one.numbers.shape != two.numbers.shape:
            continue
        beyond = one.numbers.abs() > 2**form.significand
        low_numbers = torch.where(beyond, two.numbers, one.numbers)
        place = two.module, two.line
        found.append(_differing(place, one.numbers.double(), low_numbers.double()))
    known = [m for m in found if m is not None and m.share > SHARE]
    return max(known, key=lambda m: m.share, default=None)


def whole_numbers(miscount: Miscount | None, form: Format) -> Finding | None:
    """Whole numbers that are made in 16 bits, and wrong."""
    if miscount is None:
        return None
    where = miscount.module or "the model"
    reason = f"whole numbers are miscounted in {where}: {miscount.said(form)}"
    return miscount.finding(reason, form)
