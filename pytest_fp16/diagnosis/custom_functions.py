"""Functions with a gradient of their own, whose backward pass autocast does not reach.

Its gradient arrives in 16 bits where what it has saved is float32. Torch's remedy is to keep both
passes out of autocast and in one dtype (``torch.amp.custom_fwd``), which is advice: a class of the
program's own is not changed to try it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from pytest_fp16.precision import Precision
from pytest_fp16.report.model import Culprit, Cure

_PASSES = ("forward", "backward")


def advised(culprit: Culprit | None, precision: Precision, device: str) -> Cure | None:
    """What to do about dtypes that meet in such a function under autocast; None elsewhere."""
    if culprit is None or culprit.variant != "mixed dtypes" or not precision.mixed:
        return None
    name = function_at(culprit.source)
    if name is None:
        return None
    return Cure(
        kind="upcast",
        verified=False,
        description=f"decorate {name}.forward with torch.amp.custom_fwd(device_type={device!r}, "
        f"cast_inputs=torch.float32) and {name}.backward with torch.amp.custom_bwd(device_type="
        f"{device!r})",
        untried="it changes a class of your program",
    )


def function_at(source: str | None) -> str | None:
    """The name of the autograd function one of whose passes has a line, ``"file:number"``."""
    file, _, number = (source or "").rpartition(":")
    if not file or not number.isdigit():
        return None
    path = Path(file).resolve()
    for kind in _below(torch.autograd.Function):
        for name in _PASSES:
            code = getattr(getattr(kind, name, None), "__code__", None)
            if code is None or Path(code.co_filename).resolve() != path:
                continue
            if any(line == int(number) for *_, line in code.co_lines()):
                return kind.__name__
    return None


def _below(kind: type) -> Iterator[type]:
    known: list[type] = kind.__subclasses__()
    for below in known:
        yield below
        yield from _below(below)
