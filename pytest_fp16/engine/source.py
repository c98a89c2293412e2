"""Which line of the user's own code is running, or raised."""

from __future__ import annotations

import dis
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any, NamedTuple, TypeVar

import torch

_OWN = str(Path(__file__).parents[1])
_TORCH = str(Path(torch.__file__).parent)
_MODULES = str(Path(torch.__file__).parent / "nn" / "modules")
#: Parts of torch that check what a program gives them; others raise where dispatch fails.
_CHECKED = tuple(str(Path(torch.__file__).parent / part) for part in ("distributions", "nn"))
_LIBRARY = str(Path(traceback.__file__).parent)


class Line(NamedTuple):
    """A line of code."""

    filename: str
    number: int

    def __str__(self) -> str:
        """File and line, the file as seen from the current folder where it lies below it."""
        path, here = Path(self.filename), Path.cwd()
        shown = path.relative_to(here) if path.is_relative_to(here) else path
        return f"{shown}:{self.number}"


@cache
def _is_users(filename: str) -> bool:
    if filename.startswith("<") or filename.startswith((_OWN, _TORCH)):
        return False
    return not filename.startswith(_LIBRARY) or "site-packages" in filename


@cache
def is_program(filename: str) -> bool:
    """Whether a file is of the user's own program: not Python's, torch's, ours, nor installed."""
    installed = "site-packages" in filename or "dist-packages" in filename
    return bool(filename) and _is_users(filename) and not installed


_F = TypeVar("_F", bound=Callable[..., Any])
_ENTRANCES: dict[int, CodeType] = {}  # by id: a code object's hash reads all of it


def entrance(function: _F) -> _F:
    """Mark a function of this package that calls the user's program: who called it is no part."""
    code = function.__code__
    _ENTRANCES[id(code)] = code
    return function


def _frames() -> Iterator[FrameType]:
    """The frames of the running program, innermost first, up to where this package called it."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and id(frame.f_code) not in _ENTRANCES:
        yield frame
        frame = frame.f_back


def user_line() -> Line | None:
    """The line of the program's innermost frame outside of torch and of this package.

    None where no such code takes part, as in a plain ``nn.Sequential``.
    """
    for frame in _frames():
        if _is_users(frame.f_code.co_filename):
            return Line(frame.f_code.co_filename, frame.f_lineno)
    return None


def user_source() -> str | None:
    """`user_line` in words; None where there is none."""
    line = user_line()
    return None if line is None else str(line)


def calling_line() -> Line | None:
    """`user_line`, or None where one of torch's modules runs in between."""
    for frame in _frames():
        filename = frame.f_code.co_filename
        if _is_users(filename):
            return Line(filename, frame.f_lineno)
        if filename.startswith(_MODULES):
            return None
    return None


def frames_of(error: BaseException) -> list[tuple[FrameType, int]]:
    """The frames an exception passed, innermost first, each with its line."""
    found: list[tuple[FrameType, int]] = []
    step: TracebackType | None = error.__traceback__
    while step is not None:
        found.append((step.tb_frame, step.tb_lineno))
        step = step.tb_next
    return found[::-1]


def raised_by_program(error: BaseException) -> bool:
    """Whether a statement of the program raised it: no kernel, no dispatcher, nor this package."""
    while error.__context__ is not None:  # what was caught, to raise another in its place
        error = error.__context__
    step = error.__traceback__
    if step is None:
        return False
    while step.tb_next is not None:
        step = step.tb_next
    code = step.tb_frame.f_code
    if dis.opname[code.co_code[step.tb_lasti]] != "RAISE_VARARGS":
        return False
    return code.co_filename.startswith(_CHECKED) or not code.co_filename.startswith((_OWN, _TORCH))


def raised_at(error: BaseException) -> str | None:
    """File and line of the user's code where an exception came from."""
    for frame, line in frames_of(error):
        if _is_users(frame.f_code.co_filename):
            return str(Line(frame.f_code.co_filename, line))
    return None
