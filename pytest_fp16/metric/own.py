"""A metric of the user's own, whichever kind it is."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pytest_fp16.metric.dataset import DatasetMetric, Pooled
from pytest_fp16.metric.scores import Scores, user_scores

UserTally = Scores | Pooled


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


def gained(name: str, gain: float, budget: float) -> str:
    """Why a metric of the user's own that gained far more than its budget settles nothing."""
    return (
        f"{name} of the 16-bit model is higher by {gain:.3g} (budget {budget:.3g}), which rounding "
        "does not bring about: higher must be better; where lower is, let metric= return the "
        "negative"
    )
