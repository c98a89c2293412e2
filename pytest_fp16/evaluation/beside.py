"""Outputs beside the predictions: no check judges them, and nobody should be misled by that."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from torch import Tensor

from pytest_fp16.engine.outputs import Others
from pytest_fp16.theory.budget import LARGEST
from pytest_fp16.theory.standardised import FLOAT32_NOISE

#: Outputs named in a warning, at most.
_NAMED = 3


@dataclass
class Moved:
    """How far the finite values of an output are off, and how far they lie apart, over batches.

    Attributes:
        error: sum of squared errors.
        count, mean: of the reference's values.
        spread: sum of their squared distances from `mean`.
    """

    error: float = 0.0
    count: int = 0
    mean: float = 0.0
    spread: float = 0.0

    def add(self, was: Tensor, now: Tensor) -> None:
        """Add the values of one batch, which may be a single one; float64 [K]."""
        self.error += float((now - was).square().sum())
        count, mean = self.count + was.numel(), float(was.mean())
        between = (mean - self.mean) ** 2 * self.count * was.numel() / count
        self.spread += float((was - mean).square().sum()) + between
        self.mean += (mean - self.mean) * was.numel() / count
        self.count = count

    @property
    def share(self) -> float:
        """Squared error as a part of the variance, which is what R² loses.

        Zero where the values lie no further apart than float32's own errors: the length of a unit
        vector, a sum of probabilities.
        """
        noise = self.count * (FLOAT32_NOISE * self.mean) ** 2
        return self.error / self.spread if self.spread > noise else 0.0


@dataclass
class Beside:
    """What became of outputs that are not judged.

    Attributes:
        lost: values that are NaN or infinite, and more of them than in the reference, by output.
        moved: how far the others are off, by output.
    """

    lost: Counter[str] = field(default_factory=Counter)
    moved: dict[str, Moved] = field(default_factory=dict)

    def add(self, reference: Others, candidate: Others) -> None:
        """Add one batch."""
        self.lost += candidate.not_finite - reference.not_finite
        for name, was in reference.values.items():
            now = candidate.values.get(name)
            if now is None or now.shape != was.shape:
                continue
            finite = was.isfinite() & now.isfinite()
            was, now = was[finite].double(), now[finite].double()
            if was.numel():
                self.moved.setdefault(name, Moved()).add(was, now)

    def warnings(self) -> list[str]:
        """That some are not finite, and that some are off by more than any default budget."""
        said = []
        if self.lost:
            lost = [f"{name!r} ({count})" for name, count in self.lost.most_common()]
            said.append(
                "outputs that were not judged are NaN or infinite where the reference is finite: "
                f"{_listed(lost)} values"
            )
        shares = {name: moved.share for name, moved in self.moved.items()}
        off = sorted((name for name in shares if shares[name] > LARGEST), key=shares.__getitem__)
        if off:
            moved = [f"{name!r} by {shares[name]:.2g}" for name in reversed(off)]
            said.append(
                "outputs that were not judged differ from the reference's (their squared error, "
                f"beside the variance there): {_listed(moved)}"
            )
        return [f"{text}; to judge one of them, return it with forward=" for text in said]


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
