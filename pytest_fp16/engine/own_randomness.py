"""Generators of random numbers that a model holds: put back, as the default ones are seeded."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from pytest_fp16.engine.rebinding import parts_of

#: How many objects deep they are looked for: a sampler in a scheduler.
_DEEP = 2
_KINDS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_KNOWN: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()


def generators(*roots: Any) -> list[Any]:
    """Those that models and functions hold, also in closures and in attributes of objects.

    The default ones are not among them: who runs a model seeds those.
    """
    found = []
    seen: dict[int, Any] = {}
    left = [(root, _DEEP) for root in roots]
    while left:
        one, depth = left.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one
        if isinstance(one, _KINDS):
            found.append(one)
        else:
            left += parts_of(one, depth)
    return [g for g in found if g is not torch.default_generator]


def put_back(model: nn.Module, forward: Callable[..., Any] | None) -> None:
    """From now on, each run of a model leaves its generators as they were before."""
    _KNOWN[model] = generators(model, forward)


@contextmanager
def as_before(model: Any) -> Iterator[None]:
    """The generators that are to be put back begin again afterwards."""
    known = _KNOWN.get(model, []) if isinstance(model, nn.Module) else []
    states = [_state(g) for g in known]
    try:
        yield
    finally:
        for generator, state in zip(known, states, strict=True):
            _set(generator, state)


def _state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.get_state()


def _set(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)
