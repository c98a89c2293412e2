"""What may be changed about a model to make it pass, as it is handed to whoever tries it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Remedy:
    """One cure to try.

    Attributes:
        precision: the precision to run in.
        keep: modules to keep in float32.
        lines: lines of code, ``"file:number"``, whose operations are computed in float32.
        meeting: wherever else tensors of different dtypes meet, they are brought to one, too.
        narrow: where they meet, there and elsewhere, the wider are cast, and nothing is widened.
    """

    precision: str
    keep: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    meeting: bool = False
    narrow: bool = False
