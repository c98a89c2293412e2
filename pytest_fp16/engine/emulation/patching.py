"""Parts of torch that are others for a while: members of its classes, and functions by any name.

``torch.fft.rfft`` is looked up when it is called; of ``from torch.fft import rfft`` a file holds
the function itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

#: A namespace, the name a function has there, and the name torch gave it.
_Place = tuple[dict[str, Any], str, str]

#: Places by torch's module, and what had been imported when they were looked for.
_found: dict[str, tuple[tuple[int, int], list[_Place]]] = {}


@contextmanager
def replaced_everywhere(home: Any, functions: Mapping[str, Any]) -> Iterator[None]:
    """Put functions in place of those of the same name, and into every file that imported these.

    Args:
        home: the module of torch's that they belong to; of one module always the same names.
        functions: what takes the place of each, by name.
    """
    own = {name: getattr(home, name) for name in functions}
    places = [p for p in _places(home.__name__, own) if p[0].get(p[1]) is own[p[2]]]
    loaded = _loaded()
    for name, function in functions.items():
        setattr(home, name, function)
    for space, key, name in places:
        space[key] = functions[name]
    try:
        yield
    finally:
        if _loaded() != loaded:  # files that were imported meanwhile took ours
            places += _holding(functions)
        for name, function in own.items():
            setattr(home, name, function)
        for space, key, name in places:
            if space.get(key) is functions[name]:
                space[key] = own[name]


@contextmanager
def replaced(owner: Any, **members: Any) -> Iterator[None]:
    """Give a class of torch's, or a module, other members; what it had inherited it inherits again.

    Args:
        owner: the class or module.
        members: what takes the place of each, by name.
    """
    held = {name: vars(owner)[name] for name in members if name in vars(owner)}
    for name, member in members.items():
        setattr(owner, name, member)
    try:
        yield
    finally:
        for name in members:
            if name in held:
                setattr(owner, name, held[name])
            else:
                delattr(owner, name)


def _loaded() -> tuple[int, int]:
    """Tells whether anything has been imported since: the number of modules, and the last one."""
    return len(sys.modules), id(next(reversed(sys.modules.values())))


def _places(home: str, own: Mapping[str, Any]) -> list[_Place]:
    """Where these functions are; looked for again where more has been imported since."""
    loaded, places = _found.get(home, (None, []))
    if loaded != _loaded():
        places = _holding(own)
        _found[home] = _loaded(), places
    return list(places)


def _holding(functions: Mapping[str, Any]) -> list[_Place]:
    """Every name that one of these functions has in a file that is not torch's."""
    ids = {id(function): name for name, function in functions.items()}
    found = []
    for space in _namespaces():
        if not ids.keys().isdisjoint(map(id, space.values())):
            held = [(key, ids.get(id(value))) for key, value in space.items()]
            found += [(space, key, name) for key, name in held if name is not None]
    return found


def _namespaces() -> Iterable[dict[str, Any]]:
    for name, module in list(sys.modules.items()):
        space = getattr(module, "__dict__", None)
        if name.partition(".")[0] != "torch" and isinstance(space, dict):
            yield space
