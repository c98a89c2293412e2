"""A native run that draws what an emulated one draws, so that the two can be compared.

A CPU draws other numbers in 16 bits than in 32, for some sizes: beside two different dice no
difference between kernels is seen.
"""

from __future__ import annotations

from typing import Any

from pytest_fp16.engine.emulation.emulate import Emulation
from pytest_fp16.engine.emulation.operations import facts
from pytest_fp16.engine.uncompiled import FollowingMode


class DrawnAlike(FollowingMode):
    """Runs this device's own kernels, but for those that draw.

    Args:
        target: of the emulation whose draws are taken.

    Attributes:
        drew: something was drawn.
    """

    def __init__(self, target: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drew = False
        self._emulation = Emulation(target)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if not facts(func).random:
            return func(*args, **(kwargs or {}))
        self.drew = True
        return self._emulation.run(func, types, args, kwargs or {})
