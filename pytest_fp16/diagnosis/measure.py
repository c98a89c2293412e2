"""One tensor of the 16-bit program against what it should be, measured as far as it is asked."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from pytest_fp16.engine.gradients.origins.lost_values import is_mask
from pytest_fp16.engine.tracing.recorder import largest_magnitude
from pytest_fp16.theory.rounding import FORMATS, Format, ulp

#: Magnitudes whose squares neither overflow nor vanish in float32.
_SQUARE_SAFE = (2.0**-50, 2.0**50)


class Measure:
    """A tensor of the 16-bit program against its exact twin (or against what it should be).

    Each figure is computed when it is first asked for: most rules need one or two.

    Args:
        actual, wanted: tensors of one shape; neither may be written to later.
        dtype: the format of the first.
        fixed: it does not depend on the model's input.
        made: an operation made it.
    """

    def __init__(
        self,
        actual: Tensor,
        wanted: Tensor,
        dtype: torch.dtype,
        fixed: bool = False,
        made: bool = True,
    ) -> None:
        self.dtype, self.fixed, self.made = dtype, fixed, made
        self._given, self._wished = actual, wanted

    @cached_property
    def _actual(self) -> Tensor:
        return self._given.detach().float()

    @cached_property
    def _wanted(self) -> Tensor:
        return self._wished.detach().float()

    @property
    def _format(self) -> Format | None:
        return FORMATS.get(self.dtype)

    @cached_property
    def _apart(self) -> tuple[Tensor, float]:
        """The difference, and its root mean square, which is finite only where both are."""
        difference = self._actual - self._wanted
        return difference, root_mean_square(difference)

    @cached_property
    def _sound(self) -> tuple[bool, bool]:
        """Whether every actual, and every wanted, value is finite."""
        if math.isfinite(self._apart[1]):
            return True, True
        return all_finite(self._actual), all_finite(self._wanted)

    @cached_property
    def _values(self) -> Tensor:
        if self._sound[1]:
            return self._wanted
        return torch.where(self._wanted.isfinite(), self._wanted, 0.0)

    @cached_property
    def _error(self) -> Tensor:
        if all(self._sound):
            return self._apart[0]
        return torch.where(self._actual.isfinite() & self._wanted.isfinite(), self._apart[0], 0.0)

    @cached_property
    def _lost(self) -> Tensor | None:
        if self._sound[0]:
            return None
        return self._wanted.isfinite() & ~self._actual.isfinite()

    @cached_property
    def _small(self) -> Tensor | None:
        form = self._format
        if form is None:
            return None
        return (self._values.abs() < form.smallest_normal) & (self._values != 0)

    @cached_property
    def count(self) -> int:
        """Elements."""
        return self._given.numel()

    @cached_property
    def largest(self) -> float:
        """Largest finite magnitude of the exact one."""
        return largest_magnitude(self._values)

    @cached_property
    def least(self) -> float:
        """Smallest magnitude of the exact one: zero where it holds a zero."""
        return float(self._values.abs().min()) if self.count else 0.0

    @cached_property
    def value(self) -> float:
        """Root mean square of the exact one, where it is finite."""
        return root_mean_square(self._values)

    @cached_property
    def error(self) -> float:
        """Root mean square of the difference, where both are finite."""
        return self._apart[1] if all(self._sound) else root_mean_square(self._error)

    @property
    def relative(self) -> float:
        """Root mean square of the error over that of the values."""
        return self.error / self.value if self.value > 0 else (math.inf if self.error else 0.0)

    @cached_property
    def lost(self) -> int:
        """Elements that are NaN or infinite where the exact one is finite."""
        return 0 if self._lost is None else int(self._lost.sum())

    @property
    def first_lost(self) -> int | None:
        """Where the first of them is, in the order of memory; None where there is none."""
        return (
            None if self._lost is None or not self.lost else int(self._lost.flatten().nonzero()[0])
        )

    def pair(self, index: int) -> tuple[float, float]:
        """The number at a place, in the order of memory, and the exact one."""
        return float(self._actual.flatten()[index]), float(self._wanted.flatten()[index])

    @cached_property
    def infinite(self) -> int:
        """Those of the lost that are infinite."""
        return 0 if self._lost is None else int((self._lost & self._actual.isinf()).sum())

    @cached_property
    def constant(self) -> float | None:
        """The one value that all those that became infinite should have, or None."""
        if self._lost is None:
            return None
        away = self._wanted[self._lost & self._actual.isinf()]
        same = away.numel() > 1 and bool((away == away[0]).all())
        return float(away[0]) if same else None

    @property
    def only(self) -> float | None:
        """The exact one, where it is a single number."""
        return float(self._values) if self.count == 1 else None

    @cached_property
    def alike(self) -> bool:
        """Whether the exact one holds one number only, however often."""
        return bool((self._values == self._values.flatten()[:1]).all())

    @cached_property
    def zeroed(self) -> int:
        """Elements that are zero where the exact one is not."""
        return int(((self._actual == 0) & (self._values != 0)).sum())

    @cached_property
    def largest_zeroed(self) -> float:
        """The largest exact magnitude among them."""
        return largest_magnitude(torch.where(self._actual == 0, self._values, 0.0))

    @cached_property
    def small(self) -> int:
        """Elements below the format's normal range, zeros not counted."""
        return 0 if self._small is None else int(self._small.sum())

    @cached_property
    def small_error(self) -> float:
        """Part of the squared error at values below the normal range."""
        square = self._error.double().square()
        total = float(square.sum())
        return float(square[self._small].sum()) / total if total > 0 and self.small else 0.0

    @cached_property
    def steps(self) -> float:
        """Root mean square of the difference over that of the spacings of the format.

        Of a sound rounding it is √(1/12) = 0.29.
        """
        form = self._format
        if form is None or not self.count:
            return 0.0
        return self.error / root_mean_square(ulp(self._values, form))

    @cached_property
    def exact_zeros(self) -> int:
        """Elements whose exact value is zero."""
        return int((self._values == 0).sum())

    @cached_property
    def ruined(self) -> float:
        """Share of elements that are wrong by a quarter of their value or more."""
        wrong = self._error.abs() > 0.25 * self._values.abs()
        return float(wrong.sum()) / max(1, self.count)

    @cached_property
    def binary(self) -> bool:
        """Whether the exact one is a mask."""
        return is_mask(self._values)

    @cached_property
    def floored(self) -> bool:
        """Whether it holds the format's smallest number, and of half its size nothing but that.

        Or minus infinity, which is what two such masks add up to.
        """
        form = self._format
        if form is None:
            return False
        large = self._actual[self._actual.abs() > form.largest / 2]
        return bool((large == -form.largest).any() and (large <= -form.largest).all())

    @cached_property
    def merged(self) -> bool:
        """Whether numbers that the exact one tells apart have become one."""
        return bool(self._actual.unique().numel() < self._wanted.unique().numel())

    @cached_property
    def whole(self) -> bool:
        """Whether the exact one holds whole numbers only."""
        return bool((self._values == self._values.round()).all())


def all_finite(values: Tensor) -> bool:
    """Whether every value is finite; by its extremes, which NaN and infinity show in."""
    if not values.numel():
        return True
    try:
        low, high = values.aminmax()
    except RuntimeError:  # no kernel for this dtype
        return bool(values.isfinite().all())
    return math.isfinite(low) and math.isfinite(high)


def root_mean_square(values: Tensor) -> float:
    """Of float32 values, whatever their size, without overflow; not finite where one is not."""
    if not values.numel():
        return 0.0
    size = float(torch.linalg.vector_norm(values)) / math.sqrt(values.numel())
    if _SQUARE_SAFE[0] < size < _SQUARE_SAFE[1]:  # what the squares of smaller ones lose is nothing
        return size
    largest = largest_magnitude(values)
    if largest == 0.0:
        return 0.0
    scale = 1.0 if _SQUARE_SAFE[0] < largest < _SQUARE_SAFE[1] else largest
    scaled = values if scale == 1.0 else values.double() / scale
    return float(torch.linalg.vector_norm(scaled)) / math.sqrt(values.numel()) * scale
