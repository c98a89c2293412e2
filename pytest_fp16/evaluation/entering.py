"""Inputs as they are cast: values that are infinite in the format, whatever becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pytest_fp16.engine.containers import all_tensors, named_parts
from pytest_fp16.engine.stored import stands_for_infinity
from pytest_fp16.engine.tracing.recorder import largest_magnitude
from pytest_fp16.report.figures import plural, significant
from pytest_fp16.theory.rounding import Format


@dataclass
class Infinite:
    """One input's values: how many there were, how many became infinite, the largest magnitude."""

    count: int = 0
    lost: int = 0
    largest: float = 0.0

    def add(self, values: Tensor, fmt: Format) -> None:
        """Add the values of one batch; a constant that stands for infinity is to become it."""
        values = values.detach().float()
        self.count += values.numel()
        if largest_magnitude(values) < fmt.overflow_threshold:
            return
        beyond = values.abs() >= fmt.overflow_threshold
        beyond &= values.isfinite()
        lost = values[beyond]
        if not len(lost) or stands_for_infinity(lost, values[~beyond], fmt):
            return
        self.lost += len(lost)
        self.largest = max(self.largest, float(lost.abs().max()))


@dataclass
class Entering:
    """What a cast makes infinite of each input, by its name or place."""

    found: dict[Any, Infinite] = field(default_factory=dict)

    def add(self, inputs: Any, fmt: Format, keep: Sequence[int | str]) -> None:
        """Add a batch; `keep` names inputs that are not cast."""
        for name, part in named_parts(inputs).items():
            for tensor in all_tensors(part) if name not in keep else ():
                if tensor.is_floating_point() and tensor.numel():
                    self.found.setdefault(name, Infinite()).add(tensor, fmt)

    def warnings(self, fmt: Format) -> list[str]:
        """What to say of each input that has lost values."""
        said = []
        for name, seen in self.found.items():
            whose = "the inputs have" if len(self.found) == 1 else f"input {name!r} has"
            if seen.lost:
                part = f"{seen.lost} of {plural(seen.count, 'value')} that are infinite"
                said.append(
                    f"cast to {fmt.name}, {whose} {part} (largest {significant(seen.largest)}, "
                    f"{fmt.name} holds {significant(fmt.largest)})"
                )
        return said
