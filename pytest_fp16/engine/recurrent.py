"""Recurrent layers step by step, where rounding is followed.

cuDNN runs a whole layer in one kernel, which rounds the state at every step out of sight. ATen's
own kernels round in the same places, one operation each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_LAYERS = ("lstm", "gru", "rnn_tanh", "rnn_relu")


@contextmanager
def recurrent_by_steps() -> Iterator[None]:
    """Keep cuDNN out of torch's recurrent layers, and of nothing else."""
    home: Any = torch._VF
    held = {name: vars(home)[name] for name in _LAYERS if name in vars(home)}
    for name in _LAYERS:
        setattr(home, name, _without_cudnn(getattr(home, name)))
    try:
        yield
    finally:
        for name in _LAYERS:
            delattr(home, name)
        vars(home).update(held)


def _without_cudnn(own: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        cudnn: Any = torch.backends.cudnn
        was = cudnn.enabled
        cudnn.enabled = False
        try:
            return own(*args, **kwargs)
        finally:
            cudnn.enabled = was

    return run
