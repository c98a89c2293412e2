"""Fewer modules to keep in float32, where those that pass hold much of a model's arithmetic."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from pytest_fp16.diagnosis.origin import Origin
from pytest_fp16.diagnosis.remedy import Remedy
from pytest_fp16.diagnosis.trials import Trials

#: Parts of a module that are let go of one after another, at most; each is a pass of few inputs.
_MOST = 12


def parts(trials: Trials, dear: Remedy, origin: Origin | None) -> Iterator[tuple[str, ...]]:
    """Children of what is kept that heal the few inputs without the rest: the large ones go first.

    Nothing, where all of them do not: it is the module's own forward.
    """
    names = [
        f"{name}.{child}"
        for name in dear.keep
        for child, module in trials.names[name].named_children()
        if not isinstance(module, nn.Identity)
    ]
    if not 1 <= len(names) <= _MOST or not _heal(trials, names, origin):
        return
    for name in sorted(names, key=lambda name: -_size(trials.names[name])):
        fewer = [other for other in names if other != name]
        if fewer and _heal(trials, fewer, origin):
            names = fewer
    yield tuple(names)


def _heal(trials: Trials, names: list[str], origin: Origin | None) -> bool:
    return trials.heals(Remedy(trials.precision, tuple(names)), origin)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
