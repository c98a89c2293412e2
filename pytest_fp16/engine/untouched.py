"""What a model keeps: left as it was, or the same in another model.

Averages live in buffers, frozen weights or plain attributes, and a count of steps is a number. A
forward pass that is no step of the training must leave no trace in them.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_CONTAINERS = (list, dict, set, deque)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Afterwards everything but gradients is as it was before.

    Trained weights too: a training step that has an optimizer of its own (a discriminator's) moves
    some of them.
    """
    held = [(module, dict(vars(module))) for module in model.modules()]
    contents = [(v, v.copy()) for _, own in held for v in own.values() if type(v) in _CONTAINERS]
    tensors = [(t, t.detach().clone()) for t in _kept(model)]
    optimizers = [(o, copy.deepcopy(o.state_dict())) for o in _optimizers(model)]
    try:
        yield
    finally:
        for module, own in held:
            vars(module).clear()
            vars(module).update(own)
        for container, before in contents:
            container.clear()
            (container.update if isinstance(before, (dict, set)) else container.extend)(before)
        with torch.no_grad():
            for tensor, value in tensors:
                tensor.copy_(value)
        for optimizer, state in optimizers:
            optimizer.load_state_dict(state)


def _kept(model: nn.Module) -> list[Tensor]:
    """Weights, buffers, and tensors that are plain attributes."""
    plain = [v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor)]
    return [*model.buffers(), *model.parameters(), *(t for t in plain if not t.requires_grad)]


def _optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Those that a model keeps: they step inside of the user's own training step."""
    held = [v for m in model.modules() for v in vars(m).values()]
    return [v for v in held if isinstance(v, torch.optim.Optimizer)]


def follow(model: nn.Module, leader: nn.Module) -> None:
    """Give a model the state of another, and the numbers that its modules have counted to."""
    for own, other in zip(model.modules(), leader.modules(), strict=False):
        for name, there in other._buffers.items():
            here = own._buffers.get(name)
            if there is not None and here is not None and here.shape != there.shape:
                own._buffers[name] = there.detach().to(here.dtype, copy=True)
    model.load_state_dict(leader.state_dict())
    count_alike(model, leader)


def count_alike(model: nn.Module, leader: nn.Module) -> None:
    """Give a model's modules the plain numbers of another's."""
    for own, other in zip(model.modules(), leader.modules(), strict=False):
        if type(own) is type(other):
            vars(own).update({k: v for k, v in vars(other).items() if _counts(k, v, own)})


def _counts(name: str, value: Any, module: nn.Module) -> bool:
    return type(value) in (int, float) and type(vars(module).get(name)) in (int, float)
