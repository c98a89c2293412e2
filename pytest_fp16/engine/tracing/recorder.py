"""What a trace records where the 16-bit program rounds: the values, and what an error would do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pytest_fp16.engine.source import user_line
from pytest_fp16.engine.tracing.noise import rounded_at_random
from pytest_fp16.engine.tracing.sites import (
    Contributions,
    Owners,
    SiteKey,
    SiteTotals,
)
from pytest_fp16.theory.rounding import FLOAT16, FLOAT32_NORMAL, Format, overflow, round_to

#: A share of values this small that round for certain leaves no trace beside ordinary rounding.
WORTHWHILE = 0.01
SAMPLE = 4096
#: Values that a first glance takes.
_GLANCE = 64
#: Runs of an operation in one module from which on it is taken to be in a loop.
_LOOP = 4


@dataclass
class Recorder:
    """The rounding sites of one traced chunk.

    Attributes:
        batch, device: number of inputs in the chunk, and where they are.
        where: returns the qualified name of the module that is running.
        totals: running totals per site, shared by all chunks.
        noise: None to record gradients, or a generator of random rounding errors.
        adjoint: gradients are to be recorded.
        detailed: also count subnormal and zeroed values, and note the lines of code.
        formats: the program's own format, and others that share its backward pass.
        signature: the sites in order; programs with the same share a backward pass.
        leaves: where a reverse pass ends, for want of an earlier site.
        overflowed: inputs that leave the range somewhere, bool [batch].
        bent: the range or the grid of the format changed values, and so their gradients.
        values: how many were rounded.
    """

    batch: int
    device: torch.device
    where: Callable[[], str]
    totals: dict[SiteKey, SiteTotals]
    noise: torch.Generator | None = None
    adjoint: bool = True
    detailed: bool = False
    formats: tuple[Format, ...] = (FLOAT16,)
    signature: list[tuple[SiteKey, torch.Size]] = field(default_factory=list)
    leaves: list[Tensor] = field(default_factory=list)
    bent: bool = False
    values: int = 0

    def __post_init__(self) -> None:
        self.adjoint = self.adjoint and self.noise is None
        self.owners = Owners(self.batch)
        self.contributions = Contributions(self.owners, self.device, self.formats)
        self.overflowed = torch.zeros(self.batch, dtype=torch.bool, device=self.device)
        self._times: Counter[SiteKey] = Counter()

    @property
    def asks(self) -> bool:
        """Whether it matters what errors there are at a site, not the values alone."""
        return self.adjoint or self.noise is not None

    def repeats(self, operation: str) -> bool:
        """Whether an operation has been run here again and again, as a loop does."""
        return self._times[self.where(), operation] >= _LOOP

    def site(
        self,
        y: Tensor,
        fmt: Format,
        operation: str,
        steps: float = 1.0,
        fixed: Tensor | None = None,
    ) -> Tensor:
        """`y`, rounded here to `fmt`: recorded, bent to its range, with noise where asked for.

        Args:
            y: float32, any shape.
            fmt: the format it is rounded to.
            operation: which operation made it.
            steps: roundings per value (more than one where a kernel accumulates in 16 bits).
            fixed: one where a value has its rounding error already, zero elsewhere; or None.
        """
        if y.numel() == 0:
            return y
        key = (self.where(), operation)
        totals = self.totals.get(key)
        if totals is None:
            totals = self.totals[key] = SiteTotals()
        self.values += y.numel()
        self.signature.append((key, y.shape))
        self._times[key] += 1
        if self.detailed:
            totals.count_small(y.detach(), fmt)
            line = user_line()
            if line is not None:
                totals.lines.add(line)
        y, finite = self._within_range(y, fmt, totals)
        y, fixed = self._vanished(y, fmt, fixed)
        if not self.asks or (finite and self.on_grid(y.detach(), fmt)):
            return y
        if self.noise is not None:
            return rounded_at_random(y, fmt, self.noise, steps, fixed, finite)
        if self.adjoint:
            if not y.requires_grad:
                leaf = y.detach().requires_grad_()
                self.leaves.append(leaf)
                y = leaf.clone()
            hook = self.contributions.hook(y, fmt, key, steps, finite, fixed)
            y.register_hook(hook)
        return y

    def _within_range(self, y: Tensor, fmt: Format, totals: SiteTotals) -> tuple[Tensor, bool]:
        """`y` with infinities where the format has no value, and whether all are finite."""
        values = y.detach()
        largest = largest_magnitude(values)
        if largest < fmt.overflow_threshold:
            totals.largest = max(totals.largest, largest)
            return y, True
        beyond = values.abs() >= fmt.overflow_threshold
        self.bent = True
        self.overflowed |= self.any_row(beyond & values.isfinite())
        totals.largest = max(totals.largest, largest_magnitude(values.nan_to_num(0, 0, 0)))
        return overflow(y, fmt), False

    def _vanished(
        self, y: Tensor, fmt: Format, fixed: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """`y` zero where it rounds to zero, if much does; and where values are settled now.

        Nothing about that is random: all the squares of a norm may be gone.
        """
        values, most = y.detach(), fmt.smallest_subnormal / 2
        wide = fmt.smallest_normal <= FLOAT32_NORMAL  # float32 holds nothing that would vanish
        if wide or _small(sampled(values, SAMPLE), most) < WORTHWHILE:
            return y, fixed
        gone = (values.abs() <= most) & (values != 0)
        self.bent = True
        settled = gone.to(y.dtype)
        fixed = settled if fixed is None else fixed.maximum(settled)
        return y - torch.where(gone, values, 0.0), fixed

    def on_grid(self, y: Tensor, fmt: Format) -> bool:
        """Whether all values are numbers of the format: counts, masks, powers of two.

        Rounding leaves such a tensor as it is. (Single values that lie on the grid by chance say
        nothing: where a sum has one more bit than the format, half of them do.)
        """
        formats = {fmt, *self.formats} if self.adjoint else {fmt}  # others share the gradients
        few = y.flatten()[:: max(1, y.numel() // _GLANCE)]
        return all(torch.equal(v, round_to(v, f)) for v in (few, y) for f in formats)

    def any_row(self, flags: Tensor) -> Tensor:
        """Which inputs have a flag set anywhere in their part of a tensor, bool [batch]."""
        return self.owners.rows(flags).any(dim=1)


def sampled(values: Tensor, most: int) -> Tensor:
    """About so many of the values; an odd stride does not always meet the same column."""
    flat = values.reshape(-1)
    return flat if len(flat) < 2 * most else flat[:: (len(flat) // most) | 1]


def _small(values: Tensor, most: float) -> float:
    """The share of values that are at most so large, and not zero."""
    small = int((values.abs() <= most).count_nonzero())
    if not small:  # as nearly always
        return 0.0
    return (small - int((values == 0).count_nonzero())) / len(values)


def largest_magnitude(values: Tensor) -> float:
    """The largest magnitude; NaN where there is one."""
    if values.numel() == 0:
        return 0.0
    low, high = torch.aminmax(values)
    return max(-float(low), float(high)) if low == low else float("nan")
