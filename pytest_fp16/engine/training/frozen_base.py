"""A frozen base in 16 bits under weights that are trained in float32, as adapters are used.

The reference has all of it in float32, a mixed precision as it was handed in: autocast takes the
base's weights as they are. In a pure precision everything is in that one anyway.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from pytest_fp16.engine.emulation.operations import LOW


def frozen_low(model: nn.Module) -> dict[str, torch.dtype]:
    """Frozen weights and buffers in 16 bits, by name; none where a trained weight is so too."""
    trained = {p.dtype for p in model.parameters() if p.requires_grad}
    if not trained or trained & LOW:
        return {}
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: t.dtype for name, t in named if t.dtype in LOW}


def widened(model: nn.Module) -> dict[str, torch.dtype]:
    """Make a frozen base float32, in place; what it was, by name."""
    low = frozen_low(model)
    _cast(model, dict.fromkeys(low, torch.float32))
    return low


def narrowed(model: nn.Module, low: Mapping[str, torch.dtype]) -> None:
    """Make the weights of a frozen base what they were, in place; kept ones are other tensors."""
    _cast(model, low)


def _cast(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in dtypes:
            tensor.data = tensor.data.to(dtypes[name])
