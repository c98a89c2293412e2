"""What a trial of lines in float32 did, so that its cure can be told in the program's own words."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import nn

from pytest_fp16.engine.emulation.operations import facts
from pytest_fp16.engine.source import calling_line
from pytest_fp16.report.figures import written

#: Functions that only bring numbers to another dtype.
CASTS = frozenset("to type_as type half bfloat16".split())
#: Those that bring them to a wide one whatever they are told.
WIDENING = frozenset("float double".split())
#: What is no operation of ATen's by that name, and moves values.
_MOVES = frozenset("getitem reshape_as view_as expand_as".split())
#: Those that round nothing but the bound that they are given.
BOUNDS = frozenset("clamp clamp_min clamp_max clip maximum minimum fmax fmin".split())


@dataclass
class Applied:
    """What was done on the lines, each in the order of the program.

    Attributes:
        computed: functions that were computed in float32, and would have been in 16 bits.
        made: functions that were to bring numbers to 16 bits, and gave float32 ones.
        uncast: whether autocast would cast what they are given, float32 or not.
        out_of_place: whether one of them writes into its argument, whose name stands for the
            float32 result from there on.
        complex: whether a result is of complex numbers.
        taken: what refuses float32 results, which were cast back there: modules, or functions with
            their line. Of tensors brought to one dtype, what refused to take them together.
    """

    computed: dict[str, None] = field(default_factory=dict)
    made: dict[str, None] = field(default_factory=dict)
    uncast: bool = False
    out_of_place: bool = False
    complex: bool = False
    taken: dict[str, None] = field(default_factory=dict)
    _takers: dict[int, nn.Module] = field(default_factory=dict, repr=False)

    def took(self, function: str) -> None:
        """A function that runs refused the float32 result."""
        line = calling_line()
        module = None if line is not None else _running()
        if line is not None:
            self.taken[f"{written(as_called(function))} at {line}"] = None
        elif module is not None:
            self._takers[id(module)] = module

    def named(self, model: nn.Module) -> None:
        """Tell the modules that took a result by their names."""
        names = {id(module): name for name, module in model.named_modules()}
        self.taken.update({names[i]: None for i in self._takers if names.get(i)})
        self._takers.clear()


def as_called(function: str) -> str:
    """The name of a function without what Python's operators add: ``sub`` for ``__rsub__``."""
    if not function.startswith("__"):
        return function.strip("_")
    name = function.strip("_")
    plain = name[1:] if name[:1] in "ri" and hasattr(torch.Tensor, f"__{name[1:]}__") else name
    return {"truediv": "div", "floordiv": "floor_divide"}.get(plain, plain)


@cache
def moves(function: str) -> bool:
    """Whether a function (as called) moves or selects values, and never rounds one."""
    packet: Any = getattr(torch.ops.aten, function, None)
    if packet is None or not hasattr(packet, "overloads"):
        return function in _MOVES
    known = facts(getattr(packet, packet.overloads()[0]))
    return known.view or known.exact


def _running() -> nn.Module | None:
    """The innermost module whose method is running."""
    frame = sys._getframe(1)
    while frame is not None:
        held = frame.f_locals.get("self")
        if isinstance(held, nn.Module):
            return held
        frame = frame.f_back  # type: ignore[assignment]
    return None
