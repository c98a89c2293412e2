"""One batch of the data, as the reference has gone through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.batching import take
from pytest_fp16.engine.device import is_out_of_memory
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


def in_halves(run: Callable[[Any], Tensor], batch: Batch, whole: bool = False) -> Tensor:
    """`run` on a batch; where memory does not do, once more on each half of it alone.

    Not where it only runs `whole`: half of a graph is another graph, or none.
    """
    try:
        return run(batch.inputs)
    except Exception as error:
        if not is_out_of_memory(error) or batch.n < 2 or whole:
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = batch.n // 2
    parts = [list(range(half)), list(range(half, batch.n))]
    return torch.cat([run(take(batch.inputs, batch.n, part)) for part in parts])
