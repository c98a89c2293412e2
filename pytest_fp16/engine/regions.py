"""What a program finds of CUDA's autocast where there is no CUDA: regions, checkpoints, casts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import DefaultDeviceType


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
    warning.
    """
    own = torch.autocast.__init__

    @functools.wraps(own)  # nested, its signature is still that of torch's
    def made(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(own).bind(self, device_type, *args, **kwargs)
        enabled = given.arguments.get("enabled", True)
        if device_type == "cuda":
            given.arguments["enabled"] = False  # or else it asks for a device
        own(*given.args, **given.kwargs)
        if device_type == "cuda":
            self._enabled = enabled

    if torch.cuda.is_available():
        yield
        return
    torch.autocast.__init__ = made  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autocast.__init__ = own  # type: ignore[method-assign]


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

    home._cast = cast
    try:
        yield
    finally:
        home._cast = own
