"""Decisions inside a model: comparisons, selections and integer parts that rounding could change.

They have no useful gradient, so an input whose values come near one loses its certificate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.theory.rounding import Format, ulp

#: A comparison whose operands are closer than this many ulps may fall either way.
DECISION_ULPS = 16.0


def near_decision(
    name: str, x: Tensor, rest: Sequence[Any], kwargs: dict[str, Any], fmt: Format
) -> Tensor | None:
    """Where the outcome of a discrete operation lies within `DECISION_ULPS` of the other one.

    Args:
        name: the operation.
        x: its first argument, float32.
        rest: the other positional arguments.
        kwargs: its keyword arguments.
        fmt: the format of the 16-bit program.

    Returns:
        Bool, of the shape of `x` or reduced along the dimension that was searched; None where
        there is nothing to decide.
    """
    if not x.is_floating_point():
        return None
    if name in ("gt", "lt", "ge", "le", "eq", "ne"):
        other = rest[0] if rest else kwargs.get("other")
        gap = (x - other).abs()
        scale = torch.maximum(x.abs(), torch.as_tensor(other, dtype=x.dtype, device=x.device).abs())
        return gap <= DECISION_ULPS * ulp(scale, fmt)
    if name in ("floor", "ceil", "trunc", "round"):
        shift = 0.5 if name == "round" else 0.0
        distance = (x - shift - (x - shift).round()).abs()
        return distance <= DECISION_ULPS * ulp(x, fmt)
    if name in ("argmax", "argmin", "topk", "sort", "argsort", "kthvalue", "median", "mode"):
        ordered = (
            x.flatten(1).sort(dim=-1).values
            if x.dim() > 2 and name == "argmax"
            else x.sort(dim=-1).values
        )
        if ordered.shape[-1] < 2:
            return None
        gaps = ordered.diff(dim=-1)
        k = int(rest[0]) if name == "topk" and rest else 1
        if name in ("argmax", "topk"):
            at = max(0, ordered.shape[-1] - k - 1)
            gaps, base = gaps[..., at : at + 1], ordered[..., at + 1 : at + 2]
        else:
            base = ordered[..., 1:]
        return gaps <= DECISION_ULPS * ulp(base.contiguous(), fmt)
    return None
