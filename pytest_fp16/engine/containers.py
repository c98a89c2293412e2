"""What a batch holds its tensors in: tuples, mappings, dataclasses, packed sequences, objects."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

#: The containers that were met, by their ids (and kept, so that ids stay theirs). One may hold
#: itself, as a tree does whose nodes know their parents, and be held in more ways than can be gone.
Met = dict[int, Any]

_NO_HOLDERS = (nn.Module, ModuleType, FunctionType, type)


def map_tensors(
    value: Any,
    change: Callable[[Tensor], Any],
    packed: Callable[[PackedSequence], Any] | None = None,
    done: Met | None = None,
) -> Any:
    """`value` with every tensor in it changed, in containers of the same types.

    What required a gradient still does: the model may ask for one with respect to its inputs. A
    container within itself is left there as it is.

    Args:
        value: anything.
        change: what becomes of a tensor.
        packed: what becomes of a packed sequence; None changes its tensors.
        done: the containers before it, each with what became of it.
    """
    done = {} if done is None else done

    def inner(part: Any) -> Any:
        return map_tensors(part, change, packed, done)

    if isinstance(value, Tensor):
        changed = change(value)
        keeps = value.requires_grad and isinstance(changed, Tensor)
        return changed.requires_grad_() if keeps else changed
    if isinstance(value, PackedSequence):
        return packed(value) if packed is not None else _packed_with(value, change)
    if id(value) in done:
        return done[id(value)][1]
    if isinstance(value, (Mapping, list, tuple)) or held_tensors(value):
        done[id(value)] = value, value  # while it is being made
        done[id(value)] = value, _with_parts(value, inner)
        return done[id(value)][1]
    return value


def _with_parts(value: Any, inner: Callable[[Any], Any]) -> Any:
    """A container of the same type, with what becomes of its parts."""
    if isinstance(value, Mapping):
        return mapping_like(value, {k: inner(v) for k, v in value.items()})
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(map(inner, value))
    if isinstance(value, (list, tuple)):
        return type(value)(map(inner, value))
    made = copy.copy(value)
    for name, part in held_tensors(value).items():
        object.__setattr__(made, name, inner(part))  # a dataclass may be frozen
    return made


def _packed_with(value: PackedSequence, change: Callable[[Tensor], Any]) -> PackedSequence:
    """Its data and its order changed; its sizes are counts, which stay on the CPU."""
    indices = (value.sorted_indices, value.unsorted_indices)
    changed = (None if i is None else change(i) for i in indices)
    return PackedSequence(change(value.data), value.batch_sizes, *changed)


def named_parts(value: Any) -> dict[Any, Any]:
    """What a container holds, by key, place or field; a tensor alone is at place 0."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if isinstance(value, (list, tuple)) and not isinstance(value, PackedSequence):
        return dict(enumerate(value))
    if (keys := _keys(value)) is not None:
        return {key: value[key] for key in keys}
    return dict(held_tensors(value)) or {0: value}


def _keys(value: Any) -> list[Any] | None:
    """Of an object that is read and written by keys and is no mapping, as a graph with its data."""
    kind = type(value)
    if not all(callable(getattr(kind, n, None)) for n in ("keys", "__getitem__", "__setitem__")):
        return None
    keys = [key for key in value.keys() if isinstance(key, str)]  # noqa: SIM118
    return keys if all(hasattr(value, key) for key in keys) else None  # keys of its parts are none


def with_parts(value: Any, parts: dict[Any, Any]) -> Any:
    """A container like `value` with other `parts`, as `named_parts` tells them."""
    if isinstance(value, Mapping):
        return mapping_like(value, parts)
    if isinstance(value, (list, tuple)) and not isinstance(value, PackedSequence):
        made = list(parts.values())
        return value._make(made) if hasattr(value, "_make") else type(value)(made)
    if _keys(value) is not None:
        made = copy.copy(value)
        for key, part in parts.items():
            made[key] = part
        return made
    if not held_tensors(value):
        return parts[0]
    made = copy.copy(value)
    for name, part in parts.items():
        object.__setattr__(made, name, part)  # a dataclass may be frozen
    return made


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


def leaves(value: Any, met: Met | None = None) -> Iterator[Any]:
    """What is in the containers: tensors, packed sequences, and all that is neither.

    A container that is there more than once is gone through once.
    """
    met = {} if met is None else met
    if isinstance(value, (Tensor, PackedSequence)):
        yield value
        return
    if id(value) in met:
        return
    if isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, (list, tuple)):
        parts = list(value)
    else:
        parts = list(held_tensors(value).values())
        if not parts:
            yield value
            return
    met[id(value)] = value
    for part in parts:
        yield from leaves(part, met)


def all_tensors(value: Any) -> list[Tensor]:
    """Every tensor in nested containers."""
    data = (v.data if isinstance(v, PackedSequence) else v for v in leaves(value))
    return [v for v in data if isinstance(v, Tensor)]


def foreign(value: Any) -> list[str]:
    """Types of objects that can be moved as tensors can, and show none of those they hold."""
    others = (v for v in leaves(value) if not isinstance(v, (Tensor, PackedSequence, nn.Module)))
    return sorted({type(v).__name__ for v in others if callable(getattr(v, "to", None))})


def held_tensors(value: Any) -> dict[str, Any]:
    """The attributes of an object that are tensors, or containers with some in them.

    Empty for a module, and for whatever else has tensors that are no part of a batch.
    """
    return {n: part for n, part in _attributes(value).items() if _holds(part, {id(value): value})}


def dataclass_fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass by name; None for one that it does not give out.

    A configuration may refuse an attribute that its layers have each of their own.
    """
    found = {}
    for field in dataclasses.fields(value):
        try:
            found[field.name] = getattr(value, field.name)
        except Exception:  # of any kind: it is code of the user's
            found[field.name] = None
    return found


def _attributes(value: Any) -> dict[str, Any]:
    """The attributes of an object that may be tensors, or hold some."""
    if isinstance(value, _NO_HOLDERS):
        return {}
    if dataclasses.is_dataclass(value):
        own = dataclass_fields(value)
    else:
        own = getattr(value, "__dict__", {})
    return {name: part for name, part in own.items() if _may_hold(part)}


def _may_hold(part: Any) -> bool:
    return isinstance(part, (Tensor, Mapping, list, tuple)) or dataclasses.is_dataclass(part)


def _holds(part: Any, met: Met) -> bool:
    """Whether there is a tensor in it; what was met has shown none so far."""
    if isinstance(part, (Tensor, PackedSequence)):
        return True
    if id(part) in met:
        return False
    met[id(part)] = part
    parts: Iterable[Any] = part
    if not isinstance(part, (list, tuple)):
        parts = (part if isinstance(part, Mapping) else _attributes(part)).values()
    return any(_holds(one, met) for one in parts)
