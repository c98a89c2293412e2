"""Whether a copy of a model still reads the weights of the model that it was copied from.

What keeps a model where no copy can follow (in a registry, in a class) runs the original in every
precision, in float32.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from pytest_fp16.engine.emulation.operations import tensors
from pytest_fp16.engine.models import Location
from pytest_fp16.engine.origins import originals
from pytest_fp16.engine.uncompiled import FollowingMode
from pytest_fp16.engine.untouched import memory


def belongs(name: str) -> str:
    """The mistake that a copy reads a weight of the original."""
    return (
        f"a function or hook of the model still belongs to the original: it reads {name} of the "
        "module that was passed, in float32 whatever the precision; let it use the module that it "
        "is given, or self, or pass a function that makes the model, a new one in each call"
    )


class Reads(FollowingMode):
    """Watches a copy for operations on weights of its original.

    Args:
        model: the copy.
        where: tells the module that is running.
        inside: watch modules only: a function that the copy is handed to may know the original,
            and a loss may hold the weights against it.

    Attributes:
        found: the name of the first weight that was read; None without one.
    """

    def __init__(self, model: nn.Module, where: Location, inside: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.where, self.inside = where, inside
        self.found: str | None = None
        own = {memory(p) for p in model.parameters()}
        alive = ((name, original()) for name, original in originals(model))
        theirs = {memory(p): name for name, p in alive if p is not None and p.numel()}
        self._theirs = {place: name for place, name in theirs.items() if place not in own}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if self.found is None and self._theirs and (self.where.stack or not self.inside):
            read = (self._theirs.get(memory(t)) for t in tensors(args, kwargs or {}))
            self.found = next((name for name in read if name is not None), None)
        return func(*args, **(kwargs or {}))
