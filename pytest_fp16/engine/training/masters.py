"""Float32 copies of 16-bit weights, on which an optimizer steps: whatever it keeps is float32, too.

What mixed precision does for the weights, while the model stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pytest_fp16.engine.emulation.operations import LOW


class Masters:
    """The copies of one optimizer's weights.

    Args:
        optimizer: of whoever's making; it sees float32 weights and gradients from now on.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._wide: dict[nn.Parameter, Tensor] = {}
        self._low: dict[nn.Parameter, Tensor] = {}
        self._depth = 0  # a class's own step, within its heir's, fires the same hooks
        optimizer.register_step_pre_hook(lambda *_: self._begin())
        optimizer.register_step_post_hook(lambda *_: self._end())

    def _weights(self) -> Iterator[nn.Parameter]:
        for group in self._optimizer.param_groups:
            yield from group["params"]

    def _begin(self) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        for p in self._weights():
            if p.dtype in LOW:
                self._low[p] = p.data
                _given(p, self._wide.setdefault(p, p.data.float()))

    @torch.no_grad()
    def _end(self) -> None:
        self._depth -= 1
        if self._depth:
            return
        for p, low in self._low.items():
            self._wide[p] = p.data
            low.copy_(p.data)
            _given(p, low)
        self._low.clear()


def _given(parameter: nn.Parameter, values: Tensor) -> None:
    """Put values of another dtype into a parameter, and its gradient into the same."""
    gradient, parameter.grad = parameter.grad, None
    parameter.data = values
    parameter.grad = None if gradient is None else gradient.to(values.dtype)
