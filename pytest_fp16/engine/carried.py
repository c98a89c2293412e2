"""What a model has carried along, given to another one of the same modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pytest_fp16.engine.containers import all_tensors, map_tensors
from pytest_fp16.engine.untouched import TORCHS_OWN, attribute, memory, plain_tensors


def carry_over(
    leader: nn.Module,
    model: nn.Module,
    dtype: torch.dtype | None,
    weights: bool = False,
    formats: Mapping[str, torch.dtype] | None = None,
) -> None:
    """Give a model what another has carried along: hidden states, caches, averages, counts.

    Args:
        leader: the model whose state it is.
        model: one of the same modules, which gets its own copy.
        dtype: of floating tensors in plain attributes; None for the leader's. A buffer, and a
            weight, keeps its own.
        weights: its weights, too.
        formats: what is known of `dtype`, by name, as `formats_of` tells it: a program may keep an
            average in float32, and may not take it in another.
    """
    known = dict(formats or {})
    names = {id(t): n for n, t in plain_tensors(leader).items()} if known else {}

    def cast(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.detach().clone()
        name = names.get(id(tensor), "")
        own = known.get(name) or known.get(attribute(name)) or dtype or tensor.dtype
        return tensor.detach().to(own, copy=True)

    owned = {memory(p) for p in leader.parameters()}
    for own, other in zip(model.modules(), leader.modules(), strict=False):
        for name, there in other._buffers.items():
            here = own._buffers.get(name)
            if there is None or here is None:
                continue
            if weights and here.shape == there.shape:
                here.detach().copy_(there)  # in place: modules may share it
            else:
                own._buffers[name] = there.detach().to(here.dtype, copy=True)
        if type(own) is type(other):
            carried = {k: v for k, v in vars(other).items() if _is_carried(k, v, owned)}
            vars(own).update({k: map_tensors(v, cast) for k, v in carried.items()})
    if weights:
        model.load_state_dict(leader.state_dict())


def _is_carried(name: str, value: Any, owned: set[int]) -> bool:
    """A plain attribute that a program writes; not its weights under another name."""
    if name in TORCHS_OWN:
        return False
    tensors = all_tensors(value)
    if not tensors:
        return value is None or type(value) in (bool, int, float)
    return not any(t.requires_grad or memory(t) in owned for t in tensors)
