"""One batch of the data, as the reference has gone through it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.outputs import Others


@dataclass
class Batch:
    """One batch and what the reference made of it, in the CPU's memory but for the inputs.

    Attributes:
        inputs: on the device, float32.
        raw_labels: as the user gave them, or None.
        n: number of inputs; `first` is the position of the first one in the data.
        output: the reference's raw output.
        logits: canonical, [N, P, C] (regression: values [N, 1, D]).
        labels: canonical [N, P] (regression: [N, D]), or None.
        valid: decisions that count, bool [N, P].
        seed: the random state its runs start from.
        beside: what the reference returned beside its predictions, on the device.
    """

    inputs: Any
    raw_labels: Any
    n: int
    first: int
    output: Tensor
    logits: Tensor
    labels: Tensor | None
    valid: Tensor
    seed: int
    beside: Others = field(default_factory=Others)

    @property
    def top(self) -> Tensor:
        """The reference's classes, [N, P]."""
        return self.logits.nan_to_num(nan=-torch.inf).argmax(-1)
