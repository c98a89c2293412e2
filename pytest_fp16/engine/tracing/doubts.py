"""Decisions that rounding could change, followed from where they fall to where they are used.

Indices and masks carry the doubt until something uses them: the order of a sort changes nothing if
only its values are read. Where a mask chooses between two values that meet at its threshold, as in
a leaky ReLU written with ``where``, either choice is right to first order: a kink and no decision.
So it is where a sign is given back to a size, ``x.sign() * x.abs()``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pytest_fp16.engine.emulation.operations import flat
from pytest_fp16.engine.tracing.decisions import (
    SIGNS,
    STEEPEST,
    Doubt,
    Errors,
    Operands,
    compared,
    falls,
    gap,
    near_decision,
    predicted_error,
)
from pytest_fp16.engine.tracing.shadow import Shadow, unwrap

if TYPE_CHECKING:
    from pytest_fp16.engine.tracing.compute import Call
    from pytest_fp16.engine.tracing.recorder import Recorder

#: What float32 itself leaves between two values that meet, relative to them.
_FLOAT32 = 8 * torch.finfo(torch.float32).eps
#: Operations whose result is the mask again: negated, or as numbers.
_CARRY = frozenset({"_to_copy", "logical_not", "bitwise_not"})


class Doubts:
    """The decisions of one traced run.

    Args:
        recorder: knows whose input an element belongs to.
        errors: predicted errors of what the decisions compare.
        collect: keep what they compare.

    Attributes:
        operands: what the decisions compared, if it is kept.
        decisions: how many there were.
        undecided: inputs that hang on one that rounding could change, bool [B].
        branches: the program branches on such a one.
    """

    def __init__(self, recorder: Recorder, errors: Errors, collect: bool) -> None:
        self.recorder = recorder
        self.errors = errors
        self.collect = collect
        self.operands: Operands = []
        self.decisions = 0
        self.undecided = torch.zeros_like(recorder.overflowed)
        self.branches = False

    def use(self, call: Call, doubts: list[Doubt], results: Any) -> None:
        """An operation takes what hangs on decisions in doubt."""
        name = call.known.name
        if name == "_local_scalar_dense":
            self.branches = True
            return
        given = [r for r in flat(results) if isinstance(r, Shadow)]
        for doubt in doubts:
            masks = [r for r in given if r.dtype is torch.bool]
            if name in _CARRY and doubt.gap is not None:
                masks = given
            else:
                self.undecided |= self._undecided(call, doubt)
            for mask in masks:
                if mask.cell.doubt is None:
                    mask.cell.doubt = doubt

    def _undecided(self, call: Call, doubt: Doubt) -> Tensor:
        jump = _jump(call, doubt)
        if jump is None or doubt.gap is None:
            return doubt.rows
        height, size = jump
        kink = height.isfinite() & (height <= STEEPEST * doubt.gap + _FLOAT32 * size)
        return self.recorder.any_row(~kink & doubt.gap.isfinite())

    def watch(self, call: Call, results: Any) -> None:
        """A decision falls: note for whom rounding could change it."""
        name = call.known.name
        asked = compared(name, call.args)  # in float32, too: errors have entered a router's softmax
        decided = [r for r in flat(results) if isinstance(r, Shadow)]
        if not isinstance(asked, Shadow) or not asked.is_floating_point():
            return
        if not falls(name, call.kwargs, next(iter(decided), None)):
            return
        key, index = (self.recorder.where(), name), self.decisions
        self.decisions += 1
        args, kwargs = unwrap(call.args), unwrap(call.kwargs)
        if self.collect:
            self.operands.append((key, asked.inner.detach().to(torch.float32)))
        error = predicted_error(self.errors, index, key)
        near = near_decision(name, args, kwargs, self.recorder.formats[0], error)
        if near is None or not bool(near.any()):
            return
        if not decided:  # the program reads it on the host
            self.branches = True
            return
        rows = self.recorder.any_row(near)
        apart = gap(name, args, kwargs)
        signs = name in SIGNS
        whole = [r for r in decided if signs or not r.is_floating_point()]
        for result in whole:
            far = None if apart is None else apart.masked_fill(~near, torch.inf)
            result.cell.doubt = Doubt(rows, far, 2.0 if signs else 1.0)
        if not whole and name not in ("max", "min", "median"):
            self.undecided |= rows


def _jump(call: Call, doubt: Doubt) -> tuple[Tensor, Tensor] | None:
    """By how much a result changes where the mask in doubt changes, and the size of its values.

    None where the operation does not choose by that mask, element by element.
    """
    args = call.args
    of_mask = [isinstance(a, Shadow) and a.cell.doubt is doubt for a in args]
    mask = next((a for a, own in zip(args, of_mask, strict=True) if own), None)
    if mask is None or doubt.gap is None or mask.shape != doubt.gap.shape or sum(of_mask) != 1:
        return None
    others: list[Any] = [unwrap(a) for a, own in zip(args, of_mask, strict=True) if not own]
    name = call.known.name
    chosen = (name == "where" and of_mask[0]) or (name == "masked_fill" and of_mask[1])
    if name == "mul":
        others.append(0.0)
    elif not chosen:
        return None
    if len(others) != 2:
        return None
    gap = doubt.gap  # masks may be among them, too
    first, second = (torch.as_tensor(o, device=gap.device).detach().to(gap.dtype) for o in others)
    height = (first - second).abs() * doubt.apart
    return height, torch.maximum(first.abs(), second.abs())
