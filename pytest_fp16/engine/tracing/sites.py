"""Rounding sites: where the 16-bit program rounds, what each contributes, whose input it serves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pytest_fp16.engine.source import Line
from pytest_fp16.theory.rounding import FLOAT32_NORMAL, Format, binade


@dataclass
class SiteTotals:
    """Running totals of one (module, operation) over everything traced.

    Attributes:
        variance: its part of the sum of σ², in units of the margin squared.
        largest: its largest magnitude.
        subnormal, zeroed, values: counts of non-zero values below the normal range, of those that
            round to zero, and of all (taken on the first chunk only).
        lines: of the user's code, all that ran it on the first chunk.
    """

    variance: float = 0.0
    largest: float = 0.0
    subnormal: int = 0
    zeroed: int = 0
    values: int = 0
    lines: set[Line] = field(default_factory=set)

    @property
    def source(self) -> str | None:
        """File and line of the user's code; None where several lines share the site, or none."""
        return str(next(iter(self.lines))) if len(self.lines) == 1 else None

    def count_small(self, values: Tensor, fmt: Format) -> None:
        """Count the values that are subnormal in `fmt`, and those that round to zero."""
        magnitude = values.abs()
        small = (magnitude < fmt.smallest_normal) & (magnitude > 0)
        self.subnormal += int(small.sum())
        self.zeroed += int((small & (magnitude <= fmt.smallest_subnormal / 2)).sum())
        self.values += values.numel()


SiteKey = tuple[str, str]


def spacing(values: Tensor, fmt: Format, finite: bool = False) -> Tensor:
    """The ulp at each value, zero at zeros, infinities and NaN: those round to themselves.

    Of what is far below the format's smallest number no more is lost than it is: about four times
    its size, as half of an ulp is the most that rounding takes.

    Args:
        values: float32, any shape.
        fmt: the format whose grid is meant.
        finite: whether all values are known to be.
    """
    power = binade(values)
    if fmt.smallest_normal > FLOAT32_NORMAL:
        # Arithmetic instead of masks: comparisons cost ten times as much on a CPU.
        smallest = (power * 2.0 ** (fmt.significand + 1)).clamp_(max=fmt.smallest_normal)
        power = torch.maximum(power, smallest)
    at = power.mul_(2.0 ** (1 - fmt.significand))
    return at if finite else at.masked_fill_(at == torch.inf, 0.0)


class Owners:
    """Which of B inputs an element of a tensor belongs to, told from its shape.

    Chunks have a prime number of inputs, so that a dimension whose size is a multiple of it is the
    batch, alone or merged with others (batch outermost).
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.shared = False  # a tensor without a batch dimension was met

    def rows(self, x: Tensor) -> Tensor:
        """`x` as [B, elements]; a tensor that belongs to all inputs is repeated for each."""
        if self.batch == 1:
            return x.reshape(1, -1)
        for dim, size in enumerate(x.shape):
            if size == self.batch:
                return x.movedim(dim, 0).reshape(self.batch, -1)
        for dim, size in enumerate(x.shape):
            if size and size % self.batch == 0:
                return x.movedim(dim, 0).reshape(self.batch, -1)
        self.shared = True
        return x.reshape(1, -1).expand(self.batch, -1)


@dataclass
class Sums:
    """Σ (∂g/∂y · ulp)² and Σ |∂g/∂y · ulp| per input, shape [B], and the former per site."""

    square: Tensor
    absolute: Tensor
    by_site: dict[SiteKey, Tensor] = field(default_factory=dict)

    def add(self, rows: Tensor, key: SiteKey) -> None:
        """Add a site's rows of ∂g/∂y · ulp, [B, elements]; they are used up."""
        square = torch.linalg.vector_norm(rows, dim=1).square_()
        self.square += square
        self.absolute += rows.abs_().sum(1)  # a third of the time of the norm with p = 1
        was = self.by_site.get(key)
        self.by_site[key] = square if was is None else was + square

    @property
    def sigma(self) -> Tensor:
        """√(Σ (∂g/∂y · ulp)² / 12), shape [B]: rounding errors uniform in ±ulp/2, independent."""
        return (self.square / 12).sqrt()

    @property
    def bound(self) -> Tensor:
        """Σ |∂g/∂y| · ulp/2, shape [B]: the first-order worst case."""
        return self.absolute / 2


class Contributions:
    """What every site contributes, filled by the hooks of one backward pass.

    Args:
        owners: whose input an element belongs to.
        device: where.
        formats: the formats to serve at once. The first is the program's own; a site of it is
            taken in each of them, a site of any other format in that one alone.
    """

    def __init__(self, owners: Owners, device: torch.device, formats: tuple[Format, ...]) -> None:
        self.owners = owners
        self.device = device
        self.formats = formats
        self.reset()

    def reset(self) -> None:
        """Start another backward pass."""
        zeros = torch.zeros(self.owners.batch, device=self.device)
        self.sums = {f: Sums(zeros.clone(), zeros.clone()) for f in self.formats}

    def hook(
        self,
        y: Tensor,
        fmt: Format,
        key: SiteKey,
        steps: float,
        finite: bool,
        fixed: Tensor | None = None,
    ) -> Callable[[Tensor | None], None]:
        """A gradient hook that adds the contribution of the site with values `y`.

        Args:
            y: the values at the site, before any rounding.
            fmt: the format they are rounded to.
            key: module and operation.
            steps: roundings per value (more than one where a kernel accumulates in 16 bits).
            finite: whether all values are known to be finite.
            fixed: one where a value has its rounding error already, zero elsewhere; or None.
        """
        values, own = y.detach(), self.formats[0]
        served = self.formats if fmt == own else (fmt,) * len(self.formats)
        spacings = {f: spacing(values, f, finite) for f in set(served)}
        if steps != 1.0:
            spacings = {f: at.mul_(steps**0.5) for f, at in spacings.items()}
        if fixed is not None:
            spacings = {f: at.mul_(1 - fixed) for f, at in spacings.items()}

        def add(gradient: Tensor | None) -> None:
            if gradient is None:  # one result of an operation whose other results alone are used
                return
            for asked, at in zip(self.formats, served, strict=True):
                rows = self.owners.rows(spacings[at] * gradient.detach())
                # An expanded tensor cannot be used up in place.
                self.sums[asked].add(rows.clone() if rows.stride(0) == 0 else rows, key)

        return add
