"""Cures that compute a part of a training's own code in float32: the culprit's line, its function.

What a line divides by may be lost a line before it, so its function follows. A result that falls to
zero, or a guard that is none, is not brought back by the line that stumbles over it; and behind a
line without a kernel another may be at fault, which is reached only with the first one mended. A
mask's constant that does not fit is first replaced by one that does, which costs nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pytest_fp16.diagnosis.advice import advice, brought, fitting
from pytest_fp16.diagnosis.proposal import Proposal
from pytest_fp16.diagnosis.remedy import Meeting
from pytest_fp16.diagnosis.upcast import lines_in_float32, mode_for
from pytest_fp16.engine.training.lightning import is_lightning
from pytest_fp16.engine.training.place import Amendment
from pytest_fp16.precision import Precision
from pytest_fp16.report.model import Culprit
from pytest_fp16.subject import Training


def at_its_line(model: nn.Module, precision: Precision, culprit: Culprit) -> list[Proposal]:
    """The culprit's line in float32, then its function, where the forward of the model runs it."""
    if any(isinstance(m, torch.jit.ScriptModule) for m in model.modules()):
        return []
    found = []
    for what, at, meeting in _parts(culprit, precision):
        amendment = Amendment(partial(lines_in_float32, lines=[at], meeting=meeting))
        found.append(_changed(culprit, what, meeting, amendment))
    return found


def at_the_steps_line(
    subject: Training, model: nn.Module, precision: Precision, culprit: Culprit | None
) -> list[Proposal]:
    """The same, where the user's own training step runs it.

    Of a `loss=` only a mask's constant is changed: all of it in float32 is another cure's.
    """
    own = subject.training_step
    if culprit is None:
        return []
    if own is None and subject.loss is not None and not is_lightning(model):
        return _masks_in_the_loss(subject, subject.loss, culprit)
    found = []
    for what, at, meeting in [*_parts(culprit, precision), *_whole(culprit, precision)]:
        if own is None:  # it is a Lightning module's
            amendment = Amendment(partial(_with_step, line=at, meeting=meeting))
            found.append(_changed(culprit, what, meeting, amendment))
        else:
            changed = replace(subject, training_step=_watched(own, at, meeting))
            found.append(_changed(culprit, what, meeting, subject=changed))
    return found


def _masks_in_the_loss(
    subject: Training, loss: Callable[..., Any], culprit: Culprit
) -> list[Proposal]:
    if culprit.mechanism != "mask-inf" or culprit.source is None:
        return []
    changed = replace(subject, loss=_watched(loss, culprit.source, "fitted"))
    return [_changed(culprit, fitting(culprit), "fitted", subject=changed)]


def _parts(culprit: Culprit, precision: Precision) -> Iterator[tuple[str, str, Meeting | None]]:
    """(what to do, where, and what with tensors of different dtypes that meet there or elsewhere).

    To widen all of those is left to the mixed precision where there is one to try.
    """
    line = culprit.source
    if line is None:
        return
    outside = ", outside autocast" * precision.mixed
    # One operation's name would say less than was tried: what it is given may be lost before it.
    reads = "from what the line reads on, its casts included"
    what = f"compute all of {line} in float32{outside}, {reads}"
    back = ", and cast back only where a layer takes the result"
    if culprit.variant == "mixed dtypes":
        elsewhere = "wherever else tensors of two dtypes meet"
        _, meet = advice(culprit)
        yield f"{meet} and {elsewhere}: {brought('narrowed', culprit)}", line, "narrowed"
        yield f"{what}{back}", line, None
        if precision.mixed:
            yield f"{what}, and so {elsewhere}{back}", line, "widened"
        return
    if culprit.mechanism == "mask-inf":
        yield fitting(culprit), line, "fitted"
    yield f"{what}{back}", line, None
    around = function_of(line)
    if around is not None:
        name, lines = around
        yield f"compute all of {name} but its products in float32 ({lines}){back}", lines, None


def _whole(culprit: Culprit, precision: Precision) -> Iterator[tuple[str, str, None]]:
    """The function of a loss with its products, where these are no layers but filters and sums."""
    around = function_of(culprit.source) if culprit.source is not None else None
    if around is not None and culprit.variant != "mixed dtypes":
        name, lines = around
        outside = ", outside autocast" * precision.mixed
        what = f"compute all of {name} in float32{outside}, its products as well ({lines})"
        path, _, numbers = lines.rpartition(":")
        yield what, f"{path}:{numbers.replace('-', '..')}", None


def function_of(line: str) -> tuple[str, str] | None:
    """(name, ``"file:first-last"``) of the function that a line is in; None where it is all of it.

    Args:
        line: ``"file:number"``, as of `Upcast`.
    """
    path, _, number = line.rpartition(":")
    try:
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, kinds) and node.lineno <= int(number) <= (node.end_lineno or 0)
    ]
    if not around:
        return None
    innermost = max(around, key=lambda node: node.lineno)
    first, last = innermost.body[0].lineno, innermost.end_lineno
    return None if first == last else (innermost.name, f"{path}:{first}-{last}")


def _watched(own: Callable[..., Any], line: str, meeting: Meeting | None) -> Callable[..., Any]:
    @wraps(own)
    def step(*args: Any, **kwargs: Any) -> Any:
        with mode_for([line], meeting):
            return own(*args, **kwargs)

    return step


def _with_step(model: Any, line: str, meeting: Meeting | None) -> Any:
    model.training_step = _watched(model.training_step, line, meeting)
    return model


def _changed(
    culprit: Culprit,
    what: str,
    meeting: Meeting | None,
    amendment: Amendment | None = None,
    subject: Training | None = None,
) -> Proposal:
    return Proposal(
        kind="mask constant" if meeting == "fitted" else "upcast",
        description=what,
        subject=subject,
        amendment=amendment,
        points_to=culprit.module,
        mechanism=culprit.mechanism,
    )
