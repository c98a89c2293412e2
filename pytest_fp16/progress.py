"""How long work tells whoever is watching where it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called now and then; it must be quick and must not raise."""

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """`what` is going on, `done` of `total` (None where nobody knows)."""
