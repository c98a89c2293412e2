"""Numbers that go on evenly, by a term or by a factor, and where a format leaves them.

To add d stands still where half a spacing reaches d: a number of p bits, counted one by one, at
2^p (256 in bfloat16, 2048 in float16). A factor 1 + r stands still where r is less than half a
spacing for the number's size, which is between u and 2u.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_fp16.theory.rounding import FLOAT32_ROUNDOFF

#: Of its own pace a number may be off by so much, or it does not go evenly.
_EVENLY = 0.25


@dataclass(frozen=True)
class Pace:
    """What every step does.

    Attributes:
        start: before the first, in float64.
        by: what is added, or the factor.
        factor: which of the two.
    """

    start: Tensor
    by: Tensor
    factor: bool

    def at(self, step: int) -> Tensor:
        """Where exact arithmetic has it after so many steps."""
        return self.start * self.by**step if self.factor else self.start + self.by * step

    def played(
        self, steps: int, dtype: torch.dtype, every: int = 1, stop: Tensor | None = None
    ) -> list[Tensor]:
        """The start and every value after it in a format, up to the first step that changes none.

        Args:
            steps: at most.
            dtype: of the number; a step is computed in float32 and rounded once.
            every: how many rounded parts, all equal, make a step.
            stop: a bound that is not passed.
        """
        by = self.by ** (1 / every) if self.factor else self.by / every
        by, ascends = by.float(), self.at(1) > self.start
        now = self.start.to(dtype).float()
        found = [now]
        for _ in range(steps):
            for _ in range(every):
                now = (now * by if self.factor else now + by).to(dtype).float()
            if stop is not None:
                bound = stop.to(dtype).float()
                now = torch.where(ascends, now.minimum(bound), now.maximum(bound))
            found.append(now)
            if torch.equal(now, found[-2]):
                break
        return found


def pace_of(values: Sequence[Tensor]) -> Pace | None:
    """The pace of float32 numbers that go evenly from each step to the next; None for others."""
    series = torch.stack([v.detach().double() for v in values])
    steps = len(series) - 1
    if steps < 1 or not bool(series.isfinite().all()):
        return None
    first, last = series[0], series[-1]
    # What float32 itself rounds away at each step adds up.
    rounded = steps * FLOAT32_ROUNDOFF * float(series.abs().max())
    found = [Pace(first, (last - first) / steps, factor=False)]
    if bool((last * first > 0).all()):
        found.append(Pace(first, (last / first) ** (1 / steps), factor=True))
    for pace in found:
        by = (pace.at(1) - first).abs()
        even = all(
            float((pace.at(step) - value).abs().max()) <= rounded
            for step, value in enumerate(series)
        )
        if even and float(by.max()) * _EVENLY > rounded:
            return pace
    return None
