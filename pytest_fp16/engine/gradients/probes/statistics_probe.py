"""A long run of the running statistics alone: batch statistics of the trajectory, again and again.

A running average b ← (1−m)b + m·x stops where m·|x−b| falls below half an ulp of b, long after the
first steps. What each batch gave, x, is recovered from the reference's own steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_LONGEST = 1500


@dataclass(frozen=True)
class Lag:
    """Where a running statistic ends in 16 bits.

    Attributes:
        name: the buffer's qualified name.
        share: median over channels of its distance from the 32-bit end, as a share of what the
            norm divides by: of the variance plus its epsilon, or for a mean the root of that.
        momentum: of its module.
        lost: share of channels that leave the range of the format, and not of float32.
    """

    name: str
    share: float
    momentum: float
    lost: float = 0.0


class StatisticsRecorder:
    """Keeps the running statistics of every batch norm after each step."""

    def __init__(self, model: nn.Module) -> None:
        self.norms = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm)
            and module.running_var is not None
            and module.running_mean is not None
            and module.momentum
        }
        self.kept: list[dict[str, tuple[Tensor, Tensor]]] = []
        self.keep()

    @property
    def names(self) -> set[str]:
        """The buffers it follows, by their qualified names."""
        leaves = ("running_mean", "running_var")
        return {f"{name}.{leaf}".lstrip(".") for name in self.norms for leaf in leaves}

    def keep(self) -> None:
        """Add the statistics as they are now."""
        now = {}
        for name, module in self.norms.items():
            mean, var = module.running_mean, module.running_var
            assert isinstance(mean, Tensor), "only norms that track are kept"
            assert isinstance(var, Tensor), "only norms that track are kept"
            now[name] = (mean.detach().clone(), var.detach().clone())
        self.kept.append(now)

    def lags(self, steps: int, dtype: torch.dtype) -> list[Lag]:
        """How far each statistic would lag after `steps` steps in a format."""
        found: list[Lag] = []
        if len(self.kept) < 2:
            return found
        for name, module in self.norms.items():
            momentum = float(module.momentum or 0.0)
            ends = []
            for which in (0, 1):
                series = torch.stack([kept[name][which] for kept in self.kept])
                ends.append(_run(series, momentum, min(steps, _LONGEST), dtype))
            (mean, low_mean), (var, low_var) = ends
            # A channel that is dead has no variance; its epsilon is all that is divided by.
            square = var + max(float(module.eps), 1e-12)
            for leaf, lag, wide, low in (
                ("running_mean", (low_mean - mean).abs() / square.sqrt(), mean, low_mean),
                ("running_var", (low_var - var).abs() / square, var, low_var),
            ):
                lost = float((~low.isfinite() & wide.isfinite()).float().mean())
                qualified = f"{name}.{leaf}".lstrip(".")
                found.append(Lag(qualified, float(lag.median()), momentum, lost))
        return found


def _run(series: Tensor, momentum: float, steps: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(32-bit end, 16-bit end) of one statistic, per channel."""
    seen = (series[1:] - (1 - momentum) * series[:-1]) / momentum
    tail = max(len(seen) // 3, 1)
    wide, low = series[0].clone(), series[0].to(dtype).float()
    for step in range(steps):
        at = step if step < len(seen) else len(seen) - tail + (step - len(seen)) % tail
        wide = (1 - momentum) * wide + momentum * seen[at]
        low = ((1 - momentum) * low + momentum * seen[at]).to(dtype).float()
    return wide, low
