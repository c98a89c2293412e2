"""Which line of the user's own code is running, or raised."""

from __future__ import annotations

import sys
import traceback
from functools import cache
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple

import torch

_OWN = str(Path(__file__).parents[1])
_TORCH = str(Path(torch.__file__).parent)
_MODULES = str(Path(torch.__file__).parent / "nn" / "modules")
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


def user_line() -> Line | None:
    """The line of the innermost frame outside of torch and of this package."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if _is_users(frame.f_code.co_filename):
            return Line(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return None


def calling_line() -> Line | None:
    """`user_line`, or None where one of torch's modules runs in between."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        filename = frame.f_code.co_filename
        if _is_users(filename):
            return Line(filename, frame.f_lineno)
        if filename.startswith(_MODULES):
            return None
        frame = frame.f_back
    return None


def frames_of(error: BaseException) -> list[tuple[FrameType, int]]:
    """The frames an exception passed, innermost first, each with its line."""
    found: list[tuple[FrameType, int]] = []
    step: TracebackType | None = error.__traceback__
    while step is not None:
        found.append((step.tb_frame, step.tb_lineno))
        step = step.tb_next
    return found[::-1]


def raised_at(error: BaseException) -> str | None:
    """File and line of the user's code where an exception came from."""
    for frame, line in frames_of(error):
        if _is_users(frame.f_code.co_filename):
            return str(Line(frame.f_code.co_filename, line))
    return None
