"""Rounding sites: where the 16-bit program rounds, what each contributes, whose input it serves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_fp16.theory.rounding import Format, ulp


@dataclass
class SiteTotals:
    """Running totals of one (module, operation) over everything traced.

    Attributes:
        variance: its part of the sum of σ², in units of the margin squared.
        worst: its part of the sum of worst-case bounds.
        largest: its largest magnitude.
        subnormal, zeroed, values: counts of non-zero values below the normal range, of those that
            round to zero, and of all (taken on the first chunk only).
        order: when it first ran; the earlier of two sites is nearer to an origin.
        source: file and line of the user's code, where it was looked up.
    """

    variance: float = 0.0
    worst: float = 0.0
    largest: float = 0.0
    subnormal: int = 0
    zeroed: int = 0
    values: int = 0
    order: int = 0
    source: str | None = None


SiteKey = tuple[str, str]


def spacing(values: Tensor, fmt: Format) -> Tensor:
    """The ulp at each value, zero at zeros, infinities and NaN: those round to themselves."""
    at = ulp(values, fmt)
    return at.masked_fill_((at == torch.inf) | (values == 0), 0.0)


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


class Contributions:
    """Σ (∂g/∂y · ulp)² and Σ |∂g/∂y · ulp| per input, filled by the hooks of one backward pass."""

    def __init__(self, owners: Owners, device: torch.device) -> None:
        self.owners = owners
        self.device = device
        self.reset()

    def reset(self) -> None:
        """Start another backward pass."""
        self.square = torch.zeros(self.owners.batch, device=self.device)
        self.absolute = torch.zeros(self.owners.batch, device=self.device)
        self.by_site: dict[SiteKey, tuple[Tensor, Tensor]] = {}

    def hook(self, y: Tensor, fmt: Format, key: SiteKey, steps: float) -> Callable[[Tensor], None]:
        """A gradient hook that adds the contribution of the site with values `y`.

        Args:
            y: the values at the site, before any rounding.
            fmt: the format they are rounded to.
            key: module and operation.
            steps: roundings per value (more than one where a kernel accumulates in 16 bits).
        """
        at = spacing(y.detach(), fmt)
        if steps != 1:
            at = at * steps**0.5

        def add(gradient: Tensor | None) -> None:
            if gradient is None:  # one result of an operation whose other results alone are used
                return
            rows = self.owners.rows(at * gradient.detach())
            absolute = torch.linalg.vector_norm(rows, ord=1, dim=1)
            square = torch.linalg.vector_norm(rows, dim=1).square_()
            self.square += square
            self.absolute += absolute
            was = self.by_site.get(key)
            self.by_site[key] = (
                (square, absolute) if was is None else (was[0] + square, was[1] + absolute)
            )

        return add

    @property
    def sigma(self) -> Tensor:
        """√(Σ (∂g/∂y · ulp)² / 12), shape [B]: rounding errors uniform in ±ulp/2, independent."""
        return (self.square / 12).sqrt()

    @property
    def bound(self) -> Tensor:
        """Σ |∂g/∂y| · ulp/2, shape [B]: the first-order worst case."""
        return self.absolute / 2
