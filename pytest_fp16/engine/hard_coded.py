"""16 bits in the reference itself: a program that casts to them whatever precision it runs in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.candidate import Candidate
from pytest_fp16.engine.emulation.operations import LOW, facts, flat
from pytest_fp16.engine.models import Location
from pytest_fp16.engine.source import user_source
from pytest_fp16.engine.uncompiled import FollowingMode


class HardCoded(FollowingMode):
    """Sees where a program that runs in float32 makes 16-bit values of its own accord.

    Args:
        where: tells the module that is running.

    Attributes:
        found: by 16-bit dtype the first place where it comes up: operation, module, line.
    """

    def __init__(self, where: Location) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.where = where
        self.found: dict[torch.dtype, tuple[str, str, str | None]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        known = facts(func)
        if not known.view:  # of a stored value: that is none which the program makes
            for low in {t.dtype for t in flat(out) if isinstance(t, Tensor)} & LOW:
                name = "a cast" if known.name == "_to_copy" else known.name
                self.found.setdefault(low, (name, self.where(), user_source()))
        return out

    @property
    def remarks(self) -> list[str]:
        """A warning for each 16-bit dtype that came up."""
        return [_remark(low, *place) for low, place in self.found.items()]


def _remark(low: torch.dtype, operation: str, module: str, source: str | None) -> str:
    place = f" in {module}" if module else ""
    line = f" ({source})" if source else ""
    return (
        f"32-true itself computes in {str(low).removeprefix('torch.')}, as the program asks: "
        f"{operation}{place}{line}; what that costs is in the reference, too, and not seen here: "
        "cast to the dtype of the values instead"
    )


def hard_coded(reference: Candidate, inputs: Any, seed: int) -> list[str]:
    """What `HardCoded` says of a reference on some inputs; nothing where it cannot look.

    Args:
        reference: the candidate in float32; what the run leaves in it is the caller's to undo.
        inputs: as `Candidate.outputs` takes them.
        seed: the random state.
    """
    seen = HardCoded(reference.where)
    try:
        reference.outputs(inputs, seed, observer=seen)
    except Exception:  # torch lets nobody watch some programs; this one has run without
        reference.where.reset()
    return seen.remarks
