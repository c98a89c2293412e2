"""Programs that branch by ``torch.cond``, where each operation is followed.

Outside of ``torch.compile`` it compiles its branches on the spot, and refuses to do so under the
modes by which a program is followed or emulated. The branch that is taken gives the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from pytest_fp16.engine.emulation.patching import replaced


@contextmanager
def branches_as_python() -> Iterator[None]:
    """Let ``torch.cond`` call the branch that it takes, where a mode is active.

    A plain run, whose time may be taken, keeps torch's own.
    """
    if _get_current_dispatch_mode() is None:
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

    with replaced(torch, cond=cond):
        yield
