"""What a model returns beside its predictions: no check judges it, but it should stay finite."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

#: Containers in containers that are looked into: hidden states by layer, and no caches.
_DEPTH = 3


def not_finite(output: Any, predictions: Tensor) -> Counter[str]:
    """How many values of each other output are NaN or infinite, by its name."""
    found: Counter[str] = Counter()
    for name, tensor in _named(output, "", _DEPTH):
        if tensor is not predictions and tensor.is_floating_point():
            found[name] += tensor.numel() - int(tensor.isfinite().sum())
    return +found


def _named(value: Any, name: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif depth:
        for key, part in _parts(value):
            yield from _named(part, f"{name}.{key}" if name else str(key), depth - 1)


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from zip(value._fields, value, strict=True)
    elif isinstance(value, (list, tuple)):
        yield from enumerate(value)
    elif dataclasses.is_dataclass(value):
        yield from ((f.name, getattr(value, f.name, None)) for f in dataclasses.fields(value))
