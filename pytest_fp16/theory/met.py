"""How many steps of a training will have outputs that meet their targets, number for number."""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_fp16.theory.rounding import Format, ulp

__all__ = ["expected_met"]

#: Places along what is ahead at which the chance is taken.
_PLACES = 64


def expected_met(
    targets: Tensor,
    errors: Tensor,
    fmt: Format,
    steps: tuple[int, int],
    count: int,
    reach: int = 0,
    whole: bool = True,
) -> float:
    """The expected number of steps in which a row of outputs meets its targets.

    Errors are taken to be independent, and half of them below their median, on both sides of zero,
    which gives how many fall into the ulp around a number. They are taken to fall as the root of
    the number of steps, as those of stochastic steps do (Polyak and Juditsky 1992).

    Args:
        targets: numbers of the format, a row per sample.
        errors: of the outputs now, in the same shape.
        fmt: the format of both.
        steps: made so far, and of the whole training.
        count: rows in a step.
        reach: ulps by which an output may miss a target.
        whole: whether all numbers of a row must be met, and not one of them.
    """
    made, total = max(steps[0], 1), max(*steps, 1)
    medians = errors.double().abs().median(0).values
    width = (2 * reach + 1) * ulp(targets, fmt).double()
    found = []
    for at in torch.linspace(made, total, _PLACES).tolist():
        chance = (width / (4 * medians * (made / at) ** 0.5)).clamp(max=1.0)
        rows = chance.prod(1) if whole else 1 - (1 - chance).prod(1)
        found.append(1 - (1 - float(rows.mean())) ** count)
    return (total - made) * sum(found) / _PLACES
