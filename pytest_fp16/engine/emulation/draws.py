"""Numbers drawn in 16 bits: drawn in 32 and rounded, but for the bounds of what may be drawn.

A uniform draw that rounds to the upper bound, which is excluded, becomes the lower one
(``uniform_kernel`` in ATen's ``DistributionTemplates.h``): of [0, 1) float16 draws an exact zero
once in 4,096, bfloat16 once in 512, and neither ever draws one. An exponential draw is ε/2 of
float32 at least, so that it is no zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.emulation.operations import LOW, flat, tensors

_UNIFORM = frozenset({"rand", "rand_like", "uniform"})
_LEAST = torch.finfo(torch.float32).eps / 2


def keep_within_bounds(name: str, drawn: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Change draws in place to those that, once rounded, are what a 16-bit kernel draws.

    Args:
        name: the operation; what others than draws give is left as it is.
        drawn: what it gave, in float32.
        args, kwargs: as the 16-bit program calls it.
    """
    if name not in _UNIFORM and name != "exponential":
        return
    given = next((t.dtype for t in tensors(args, kwargs)), None)
    dtype = kwargs.get("dtype") or given
    if dtype not in LOW:
        return
    for values in flat(drawn):
        if not isinstance(values, Tensor):
            continue
        if name == "exponential":
            rate = args[1] if len(args) > 1 else kwargs.get("lambd", 1.0)
            values.clamp_min_(_LEAST / rate)
        else:
            low, high = _bounds(name, args, kwargs)
            excluded = torch.tensor(high, dtype=dtype, device=values.device)
            values.masked_fill_(values.to(dtype) == excluded, low)


def _bounds(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[float, float]:
    if name != "uniform":
        return 0.0, 1.0
    low = args[1] if len(args) > 1 else kwargs.get("from", 0.0)
    high = args[2] if len(args) > 2 else kwargs.get("to", 1.0)
    return low, high
