"""Weights that change inside an autocast region, which goes on with the cast it has made of them.

The few inputs run once more with every weight cast anew. Where that heals them, and casts of one
weight differ, it is what was kept that does the damage.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pytest_fp16.diagnosis.comparison import Comparison
from pytest_fp16.diagnosis.damage import ENOUGH, Damage
from pytest_fp16.engine.emulation.cast_cache import nothing_kept
from pytest_fp16.engine.emulation.operations import LOW, facts, flat
from pytest_fp16.engine.models import Location
from pytest_fp16.engine.source import user_source
from pytest_fp16.engine.uncompiled import FollowingMode
from pytest_fp16.engine.untouched import memory
from pytest_fp16.report.model import Culprit


def stale(comparison: Comparison, damage: Damage) -> Culprit | None:
    """The operation that first takes the cast of a weight that is another by then.

    None where there is none, or the damage is done without it.

    Args:
        comparison: the candidate, as it failed.
        damage: what is wrong at its outputs.
    """
    if not comparison.candidate.precision.mixed:
        return None
    names = {id(p): n for n, p in comparison.candidate.model.named_parameters() if p.requires_grad}
    seen = CastAnew(names, comparison.where)
    try:
        with nothing_kept():
            output = comparison.observed(seen)
    except Exception:  # a weight of the format that a region then has, or a mode it lets not in
        return None
    if seen.found is None or damage.of(output) > 1 - ENOUGH:
        return None
    return seen.found


class CastAnew(FollowingMode):
    """Sees weights whose casts differ, where each is cast anew.

    Attributes:
        found: the first operation that takes a cast which another one's was before.
    """

    def __init__(self, names: dict[int, str], where: Location) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names, self.where = names, where
        self.found: Culprit | None = None
        self._first: dict[int, Tensor] = {}  # casts, by the weight's id
        self._written: dict[int, str | None] = {}  # lines, by the memory that they write to
        self._changed: dict[int, tuple[Tensor, str]] = {}  # a cast that differs, by its memory

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        known, given = facts(func), [t for t in flat(args) if isinstance(t, Tensor)]
        if self.found is not None or not given:
            return out
        for index in known.mutated:
            target = args[index] if index < len(args) else None
            written = [t for t in flat(target) if isinstance(t, Tensor)]
            self._written |= {memory(t): user_source() for t in written}
        name = self.names.get(id(given[0]))
        if known.name == "_to_copy" and name is not None and out.dtype in LOW:
            self._compare(given[0], name, out)
        elif not known.view and self._changed:
            took = next((t for t in given if memory(t) in self._changed), None)
            if took is not None:
                self.found = self._culprit(known.name, self._changed[memory(took)][1])
        return out

    def _compare(self, weight: Tensor, name: str, cast: Tensor) -> None:
        first = self._first.setdefault(id(weight), cast)
        if first.dtype == cast.dtype and not torch.equal(first, cast):
            at = self._written.get(memory(weight))
            line = f" at {at}" if at else ""
            self._changed[memory(cast)] = cast, f"{name} was changed{line}"

    def _culprit(self, operation: str, what: str) -> Culprit:
        return Culprit(
            module=self.where(),
            operation=operation,
            mechanism="precision-loss",
            evidence=f"{what} after autocast had cast it, and it is computed with the old cast, "
            "which autocast keeps until its outermost region is left",
            source=user_source(),
            variant="stale weight",
        )
