"""What may be changed about a model to make it pass, as it is handed to whoever tries it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: What is done wherever tensors of different dtypes meet: all in float32, or the wider ones cast.
#: Or where a constant meets a format that does not hold it: its largest number is taken.
Meeting = Literal["widened", "narrowed", "fitted"]


@dataclass(frozen=True)
class Remedy:
    """One cure to try.

    Attributes:
        precision: the precision to run in.
        keep: modules to keep in float32.
        lines: lines of code, ``"file:number"``, whose operations are computed in float32.
        meeting: what is done where tensors of different dtypes meet, there and elsewhere; of
            "narrowed" and "fitted" ones the lines are not widened. None: they are left.
        anew: autocast casts its weights anew each time, and keeps nothing.
        buffers: names of buffers that are not cast.
        unpacked: encoders do without torch's fast path for padding.
        inputs: places or keys of inputs that are not cast, beside those of `keep_inputs`.
    """

    precision: str
    keep: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    meeting: Meeting | None = None
    anew: bool = False
    buffers: tuple[str, ...] = ()
    unpacked: bool = False
    inputs: tuple[int | str, ...] = ()
