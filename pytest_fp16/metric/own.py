"""A metric of the user's own, whichever kind it is."""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.metric.dataset import DatasetMetric, Pooled
from pytest_fp16.metric.scores import Scores, user_scores

UserTally = Scores | Pooled

#: How far outputs are off, relative to their size, for a metric that goes in no steps to say so.
_OFF = (1e-3, 1e-2, 0.1)


def tally_of(metric: Any) -> UserTally:
    """A running total of a metric of the user's own."""
    return Pooled(metric) if isinstance(metric, DatasetMetric) else Scores(metric)


def first_look(metric: Any, outputs: Tensor, labels: Any, n: int) -> list[float]:
    """What a metric says of the reference's first batch, of n inputs.

    Returns:
        Its scores, or its one number; none where a few inputs may be too few for it.

    Raises:
        DataError: it raises, or returns something else.
    """
    if isinstance(metric, DatasetMetric):
        return metric.first_look(outputs, labels)
    return user_scores(metric, outputs, labels, n).tolist()


def lost_scores(metric: Any, outputs: Tensor, labels: Any, n: int) -> Tensor:
    """What a metric gives for wrong outputs of n inputs: each other's, the opposite, half of it.

    And for outputs that are a little off, more and more. Where the reference is right throughout,
    as beside outputs of its own that were stored, only these show whether a score is 1 or 0, goes
    in other steps, or in none. None where it cannot say, or is a `DatasetMetric`.
    """
    found = [torch.empty(0)]
    if isinstance(metric, DatasetMetric) or not outputs.dim():
        return found[0]
    random = torch.Generator().manual_seed(0)
    half = torch.rand(outputs.shape, generator=random) < 0.5
    noise = torch.randn(outputs.shape, generator=random) * outputs.square().mean().sqrt()
    off = [outputs + share * noise for share in _OFF]
    for wrong in (outputs.roll(1, 0), -outputs, torch.where(half, -outputs, outputs), *off):
        with warnings.catch_warnings(), suppress(Exception):
            warnings.simplefilter("ignore")
            found.append(user_scores(metric, wrong, labels, n))
    return torch.cat(found)


def indifferent(scores: list[float], wrong: Tensor) -> list[str]:
    """The warning of a metric that gives wrong outputs what it gives the reference's."""
    every = {*scores, *wrong.tolist()}
    if not len(wrong) or len(every) > 1:
        return []
    return [
        f"metric= gives {every.pop():.4g} for every input of the first batch, for wrong outputs as "
        "for the reference's own: it may tell nothing of what is lost"
    ]


def gained(name: str, gain: float, budget: float) -> str:
    """Why a metric of the user's own that gained far more than its budget settles nothing."""
    return (
        f"{name} of the 16-bit model is higher by {gain:.3g} (budget {budget:.3g}), which rounding "
        "does not bring about: higher must be better; where lower is, let metric= return the "
        "negative"
    )
