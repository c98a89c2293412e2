"""What a program finds of CUDA's autocast where there is no CUDA: regions, checkpoints, casts."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch.utils.checkpoint import DefaultDeviceType

from pytest_fp16.engine.emulation.patching import replaced

#: Frames from one that asks of a region up to the function that its decorator put around another.
_NESTED = 5


@contextmanager
def checkpoints_on_cuda() -> Iterator[None]:
    """Let gradient checkpointing save CUDA's autocast state, and enter it to compute again."""
    saved = DefaultDeviceType.get_device_type()
    if torch.cuda.is_available():
        yield
        return
    DefaultDeviceType.set_device_type("cuda")
    try:
        yield
    finally:
        DefaultDeviceType.set_device_type(saved)


@contextmanager
def cuda_regions() -> Iterator[None]:
    """Let ``torch.autocast("cuda")`` be entered where there is no CUDA, as on the target.

    A model may enter it itself, and gradient checkpointing does; torch would switch it off with a
    warning. One that decorates a function was made, and switched off, when its module was imported.
    """
    own, enter = torch.autocast.__init__, torch.autocast.__enter__

    @functools.wraps(own)  # nested, its signature is still that of torch's
    def made(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(own).bind(self, device_type, *args, **kwargs)
        enabled = given.arguments.get("enabled", True)
        if device_type == "cuda":
            given.arguments["enabled"] = False  # or else it asks for a device
        own(*given.args, **given.kwargs)
        if device_type == "cuda":
            self._enabled, self._asked = enabled, enabled

    def entered(self: Any) -> Any:
        was, self._enabled = self._enabled, is_on(self)
        try:
            return enter(self)  # type: ignore[no-untyped-call]
        finally:
            self._enabled = was

    if torch.cuda.is_available():
        yield
        return
    with replaced(torch.autocast, __init__=made, __enter__=entered):
        yield


@contextmanager
def regions_that_cast() -> Iterator[None]:
    """Let a CUDA region cast where autocast is off, too: one entered in a backward pass, say.

    It is the CPU's autocast that casts, by CUDA's lists.
    """
    if torch.cuda.is_available():
        yield
        return
    enter, leave = torch.autocast.__enter__, torch.autocast.__exit__

    def entered(self: Any) -> Any:
        on = self.device == "cuda" and is_on(self) and not torch.is_autocast_enabled("cpu")
        region = torch.autocast("cpu", dtype=self.fast_dtype, enabled=True) if on else None
        vars(self).setdefault("_fp16_casts", []).append(region)
        if region is not None:
            enter(region)  # type: ignore[no-untyped-call]
        return enter(self)  # type: ignore[no-untyped-call]

    def left(self: Any, *exception: Any) -> Any:
        try:
            return leave(self, *exception)
        finally:
            held = vars(self).get("_fp16_casts")
            region = held.pop() if held else None
            if region is not None:
                leave(region, *exception)

    with replaced(torch.autocast, __enter__=entered, __exit__=left):
        yield


class LeftOff:
    """Regions that a program entered where no autocast is to cast.

    Attributes:
        any: there were some that would be on.
    """

    def __init__(self) -> None:
        self.any = False


@contextmanager
def regions_off() -> Iterator[LeftOff]:
    """No autocast that a program enters itself casts: a reference in 32 bits computes in them."""
    enter, seen = torch.autocast.__enter__, LeftOff()

    def entered(self: Any) -> Any:
        was, self._enabled = self._enabled, False
        seen.any |= was
        try:
            return enter(self)  # type: ignore[no-untyped-call]
        finally:
            self._enabled = was

    with replaced(torch.autocast, __enter__=entered):
        yield seen


def is_on(region: torch.autocast) -> bool:
    """Whether a region that is being entered is on, or would be where there is CUDA."""
    if region._enabled or region.device != "cuda" or hasattr(region, "_asked"):
        return bool(region._enabled)
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_NESTED):
        if frame is None:
            break
        if frame.f_locals.get("autocast_instance") is region:
            return _asked_for(frame.f_locals.get("func"), type(region))  # type: ignore[arg-type]
        frame = frame.f_back
    return False


@functools.cache
def _asked_for(function: Callable[..., Any] | None, region: type[torch.autocast]) -> bool:
    """Whether the decorator of a function, as it is written, asks for a region that is on.

    torch keeps no trace of it. What is not written out (``enabled=flag``) is left off.
    """
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body  # type: ignore[arg-type]
    except (OSError, TypeError, SyntaxError, ValueError):
        return False
    asked = []
    for made in getattr(tree, "decorator_list", ()):
        if isinstance(made, ast.Call) and ast.unparse(made.func).endswith("autocast"):
            # Of the constructor: Python 3.13 does not see through "deprecated" on a class.
            at = list(inspect.signature(region.__init__).parameters).index("enabled") - 1
            given = {k.arg: k.value for k in made.keywords}
            value = given.get("enabled", made.args[at] if len(made.args) > at else None)
            asked.append(value is None or (isinstance(value, ast.Constant) and bool(value.value)))
    return bool(asked) and all(asked)


@contextmanager
def custom_inputs() -> Iterator[None]:
    """``custom_fwd(device_type="cuda", cast_inputs=…)`` looks for tensors on CUDA: take these."""
    home = torch.amp.autocast_mode
    own = getattr(home, "_cast", None)
    if own is None:
        yield
        return

    def cast(value: Any, device_type: str, dtype: torch.dtype) -> Any:
        return own(value, "cpu" if device_type == "cuda" else device_type, dtype)

    with replaced(home, _cast=cast):
        yield
