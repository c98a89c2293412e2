"""Programs that enter ``torch.inference_mode`` themselves, where each operation is followed.

There, composite operations (a linear layer, attention) reach no mode in their parts, and nothing
keeps a gradient. ``no_grad`` gives the same values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_depth = 0


@contextmanager
def inference_as_no_grad() -> Iterator[None]:
    """Let ``torch.inference_mode``, wherever it is entered, be ``no_grad``."""
    global _depth
    if _depth:
        yield
        return
    kind: Any = torch.inference_mode
    own = kind.__enter__, kind.__exit__
    before: list[bool] = []  # a stack: what is entered last is left first

    def enter(self: Any) -> None:
        before.append(torch.is_grad_enabled())
        torch.set_grad_enabled(not self.mode)

    def leave(self: Any, *exception: Any) -> None:
        torch.set_grad_enabled(before.pop())

    _depth += 1
    kind.__enter__, kind.__exit__ = enter, leave
    try:
        yield
    finally:
        _depth -= 1
        kind.__enter__, kind.__exit__ = own
