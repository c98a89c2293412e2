"""The gradient check: before any long run, is a gradient in 16 bits as good as one in 32?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from pytest_fp16.precision import Precision
from pytest_fp16.report.model import Culprit
from pytest_fp16.settings import Settings
from pytest_fp16.subject import Training


@dataclass(frozen=True)
class GradientFindings:
    """What the gradient check found; `figures` holds builtins only.

    `verdict` is ``"equivalent"`` or ``"not equivalent"``: a forecast, not the last word.
    `loss_scale` is the factor on the loss that would keep gradients from underflowing, if any.
    """

    verdict: str
    reason: str
    culprit: Culprit | None = None
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    loss_scale: float | None = None


def gradient_check(
    subject: Training, precision: Precision, settings: Settings, device: torch.device
) -> GradientFindings:
    """Forecast whether training in `precision` is equivalent, from a few gradients and steps."""
    return GradientFindings("equivalent", "nothing was examined yet")
