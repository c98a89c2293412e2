"""Which line and module of the user's an operation of a backward pass belongs to.

Autograd numbers its nodes as the forward pass makes them, and says while it runs backwards which of
them it is at. So the line that made a node is known by its number.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from pytest_fp16.engine.source import Line, user_line

#: The number of autograd's next node, and the node it is at: torch's own, so they may go. Without
#: them an operation of the backward pass has the line that called it.
_NEXT: Any = getattr(torch.autograd, "_get_sequence_nr", None)
_CURRENT: Any = getattr(torch._C, "_current_autograd_node", None)
#: The number of the backward pass that is running. Without it, all would seem to run forwards.
_PASS: Any = getattr(torch._C, "_current_graph_task_id", lambda: -1)


def backward_pass() -> int:
    """The number of the backward pass that is running; -1 where none is."""
    number: int = _PASS()
    return number


def goes_backwards() -> bool:
    """Whether what runs is part of a backward pass."""
    return backward_pass() >= 0


class ForwardLines:
    """The lines of the forward operations, and their modules, by the nodes they made."""

    def __init__(self) -> None:
        self._lines: dict[int, Line] = {}
        self._places: dict[int, str] = {}

    def note(self, place: str) -> None:
        """An operation is about to run. One without a node finds its predecessor's taken.

        Args:
            place: the module that runs it.
        """
        if _NEXT is None:
            return
        node = _NEXT() - 1
        self._places.setdefault(node, place)
        line = user_line()
        if line is not None:
            self._lines.setdefault(node, line)

    def clear(self) -> None:
        """Forget them: a step is over."""
        self._lines.clear()
        self._places.clear()

    @property
    def place(self) -> str | None:
        """The module whose forward pass made the node that is running; None where none is."""
        node = _CURRENT() if _CURRENT is not None else None
        return self._places.get(node._sequence_nr()) if node is not None else None

    def here(self) -> tuple[str | None, str | None]:
        """(line, forward operation) of what runs now; no operation where it runs forwards."""
        node = _CURRENT() if _CURRENT is not None else None
        line = self._lines.get(node._sequence_nr()) if node is not None else None
        line = line or user_line()
        return str(line) if line else None, forward_name(node.name()) if node is not None else None


def forward_name(node: str) -> str:
    """``"nll_loss"`` of ``"NllLossBackward0"``."""
    words = re.sub(r"Backward\d*$", "", node.rpartition("::")[2])
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", words).lower()
