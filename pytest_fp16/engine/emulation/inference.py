"""Programs that enter ``torch.inference_mode`` themselves, where each operation is followed.

There, composite operations (a linear layer, attention) reach no mode in their parts, and nothing
keeps a gradient. ``no_grad`` gives the same values, where autocast keeps casts as it would there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pytest_fp16.engine.emulation.cast_cache import FOR_TRAINING
from pytest_fp16.engine.emulation.patching import replaced

_depth = 0


@contextmanager
def inference_as_no_grad() -> Iterator[None]:
    """Let ``torch.inference_mode``, wherever it is entered, be ``no_grad``."""
    global _depth
    if _depth:
        yield
        return
    before: list[tuple[bool, bool]] = []  # a stack: what is entered last is left first

    def enter(self: Any) -> None:
        before.append((torch.is_grad_enabled(), torch.is_autocast_cache_enabled()))
        torch.set_grad_enabled(not self.mode)
        keeps = not self.mode or not FOR_TRAINING
        torch.set_autocast_cache_enabled(before[0][1] and keeps)

    def leave(self: Any, *exception: Any) -> None:
        grad, keeps = before.pop()
        torch.set_grad_enabled(grad)
        torch.set_autocast_cache_enabled(keeps)

    _depth += 1
    try:
        with replaced(torch.inference_mode, __enter__=enter, __exit__=leave):
            yield
    finally:
        _depth -= 1
