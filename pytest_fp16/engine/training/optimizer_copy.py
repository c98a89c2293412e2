"""A copy of an optimizer over tensors of its own, whoever wrote it.

Torch's own way to copy an optimizer keeps groups and state and nothing else: one written by hand
loses the attributes its step reads, and one that wraps another would go on to step the original.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch


def copied_over(optimizer: Any, groups: Mapping[int, dict[str, Any]]) -> Any:
    """A copy without state, whose groups are others; optimizers inside of it are copied too.

    Args:
        optimizer: it, or one that it wraps.
        groups: by id of a group of the original, the group that takes its place.
    """
    made = object.__new__(type(optimizer))
    for name, value in vars(optimizer).items():
        # A scheduler counts steps through an attribute that is bound to the original.
        if not hasattr(type(optimizer), name):
            made.__dict__[name] = _copied(name, value, groups)
    return made


def _copied(name: str, value: Any, groups: Mapping[int, dict[str, Any]]) -> Any:
    if isinstance(value, torch.optim.Optimizer):
        return copied_over(value, groups)
    if name == "state":
        return defaultdict(dict)
    if name == "param_groups":
        return [groups.get(id(group), group) for group in value]
    if name.endswith("_hooks"):
        return type(value)()
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    return copy.copy(value) if isinstance(value, (list, dict, set)) else value
