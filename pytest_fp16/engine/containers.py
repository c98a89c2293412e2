"""What a batch holds its tensors in: tuples, mappings, dataclasses, packed sequences, objects."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

#: The containers around a value, by their ids: one may hold itself, as a tree does whose nodes know
#: their parents.
Around = tuple[int, ...]

_NO_HOLDERS = (nn.Module, ModuleType, FunctionType, type)


def map_tensors(
    value: Any,
    change: Callable[[Tensor], Any],
    packed: Callable[[PackedSequence], Any] | None = None,
    around: Around = (),
) -> Any:
    """`value` with every tensor in it changed, in containers of the same types.

    What required a gradient still does: the model may ask for one with respect to its inputs. A
    container within itself is left there as it is.

    Args:
        value: anything.
        change: what becomes of a tensor.
        packed: what becomes of a packed sequence; None changes its tensors.
        around: the containers around it.
    """

    def inner(part: Any) -> Any:
        return map_tensors(part, change, packed, (*around, id(value)))

    if isinstance(value, Tensor):
        changed = change(value)
        keeps = value.requires_grad and isinstance(changed, Tensor)
        return changed.requires_grad_() if keeps else changed
    if isinstance(value, PackedSequence):
        return packed(value) if packed is not None else _packed_with(value, change)
    if id(value) in around:
        return value
    if isinstance(value, Mapping):
        return mapping_like(value, {k: inner(v) for k, v in value.items()})
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(map(inner, value))
    if isinstance(value, (list, tuple)):
        return type(value)(map(inner, value))
    held = held_tensors(value, around)
    if not held:
        return value
    made = copy.copy(value)
    for name, part in held.items():
        object.__setattr__(made, name, inner(part))  # a dataclass may be frozen
    return made


def _packed_with(value: PackedSequence, change: Callable[[Tensor], Any]) -> PackedSequence:
    """Its data and its order changed; its sizes are counts, which stay on the CPU."""
    indices = (value.sorted_indices, value.unsorted_indices)
    changed = (None if i is None else change(i) for i in indices)
    return PackedSequence(change(value.data), value.batch_sizes, *changed)


def mapping_like(mapping: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """A mapping of the same type with these items: code may read them as attributes."""
    if type(mapping) is dict or not isinstance(mapping, MutableMapping):
        return items
    made = copy.copy(mapping)
    for key in set(made) - set(items):
        del made[key]
    for key, item in items.items():
        made[key] = item
    return made


def leaves(value: Any, around: Around = ()) -> Iterator[Any]:
    """What is in the containers: tensors, packed sequences, and all that is neither."""
    if isinstance(value, (Tensor, PackedSequence)):
        yield value
        return
    if id(value) in around:
        return
    if isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, (list, tuple)):
        parts = list(value)
    else:
        parts = list(held_tensors(value, around).values())
        if not parts:
            yield value
    for part in parts:
        yield from leaves(part, (*around, id(value)))


def all_tensors(value: Any, around: Around = ()) -> list[Tensor]:
    """Every tensor in nested containers."""
    data = (v.data if isinstance(v, PackedSequence) else v for v in leaves(value, around))
    return [v for v in data if isinstance(v, Tensor)]


def foreign(value: Any) -> list[str]:
    """Types of objects that can be moved as tensors can, and show none of those they hold."""
    others = (v for v in leaves(value) if not isinstance(v, (Tensor, PackedSequence, nn.Module)))
    return sorted({type(v).__name__ for v in others if callable(getattr(v, "to", None))})


def held_tensors(value: Any, around: Around = ()) -> dict[str, Any]:
    """The attributes of an object that are tensors, or containers with some in them.

    Empty for a module, and for whatever else has tensors that are no part of a batch.
    """
    if isinstance(value, _NO_HOLDERS):
        return {}
    if dataclasses.is_dataclass(value):
        own = {f.name: getattr(value, f.name, None) for f in dataclasses.fields(value)}
    else:
        own = getattr(value, "__dict__", {})
    path = (*around, id(value))
    return {name: part for name, part in own.items() if _holds(part, path)}


def _holds(part: Any, around: Around) -> bool:
    known = isinstance(part, (Tensor, Mapping, list, tuple)) or dataclasses.is_dataclass(part)
    return known and bool(all_tensors(part, around))
