"""Programs that branch by ``torch.cond``, where each operation is followed.

Outside of ``torch.compile`` it compiles its branches on the spot, and refuses to do so under the
modes by which a program is followed or emulated. The branch that is taken gives the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_depth = 0


@contextmanager
def branches_as_python() -> Iterator[None]:
    """Let ``torch.cond`` call the branch that it takes."""
    global _depth
    if _depth:
        yield
        return
    own = torch.cond

    def cond(
        pred: Any,
        true_fn: Callable[..., Any],
        false_fn: Callable[..., Any],
        operands: Any = (),
    ) -> Any:
        try:
            taken = true_fn if bool(pred) else false_fn
        except RuntimeError as error:  # under vmap a predicate has a value per example
            if "vmap" not in str(error):
                raise
            return own(pred, true_fn, false_fn, operands)
        return taken(*operands)

    _depth += 1
    torch.cond = cond
    try:
        yield
    finally:
        _depth -= 1
        torch.cond = own
