"""Functions that a copied model holds: made to use the copy, where they use the original.

``copy.deepcopy`` takes a function for a constant: a lambda or a hook that knows the model by a
closure, or by a global name, would run the original, in float32, whatever the copy was cast to.
"""

from __future__ import annotations

import copy
import dis
import weakref
from collections import deque
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import islice
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

_CACHED = type(lru_cache(int))
_BARE = (bool, int, float, complex, str, bytes, type(None))
#: What refers to the model's parts behind ``deepcopy``'s back.
_REFERRING = (FunctionType, MethodType, partial, _CACHED, weakref.ref)
_NO_PARTS = (*_BARE, Tensor, ModuleType, type)


def rebind(copied: Any, memo: dict[int, Any]) -> None:
    """Make functions within a copy use the copy; those that use nothing of the model are shared.

    Args:
        copied: what ``copy.deepcopy`` made.
        memo: its memo, which tells by id what was made of what.
    """
    _Rebinding(memo).within(copied)


class _Globals(dict[str, Any]):
    """The global names of a function, some of them its own; a function writes to none of those."""

    def __init__(self, real: dict[str, Any]) -> None:
        super().__init__((n, v) for n, v in real.items() if n.startswith("__"))
        self._real = real

    def __missing__(self, name: str) -> Any:
        return self._real[name]


class _Rebinding:
    def __init__(self, memo: dict[int, Any]) -> None:
        self.memo = memo
        self.functions: dict[int, tuple[Any, Any]] = {}  # the original (so that its id stays), ours
        self.cells: dict[int, tuple[CellType, CellType]] = {}
        self.left: list[Any] = []  # holders that are still to be looked through
        self.made: set[int] = set()
        self.counted = 0

    def within(self, copied: Any) -> None:
        seen: dict[int, Any] = {}
        self.left.append(copied)
        while self.left:
            holder = self.left.pop()
            if id(holder) not in seen:
                seen[id(holder)] = holder
                self._look_through(holder)

    def _look_through(self, holder: Any) -> None:
        """Exchange what a container, or an object, holds."""
        space = holder if isinstance(holder, dict) else getattr(holder, "__dict__", {})
        for name, value in list(space.items()):
            if (bound := self._bound(value)) is not value:
                space[name] = bound
        if isinstance(holder, (list, deque)):
            for i, value in enumerate(holder):
                if (bound := self._bound(value)) is not value:
                    holder[i] = bound

    def _bound(self, value: Any) -> Any:
        """What takes the place of a value in the copy: mostly itself, to be looked through."""
        if isinstance(value, _NO_PARTS):
            return value
        if isinstance(value, _REFERRING):
            return self._referring(value)
        if isinstance(value, tuple):
            parts = [self._bound(part) for part in value]
            if all(map(_is, parts, value)):
                return value
            return value._make(parts) if hasattr(value, "_make") else type(value)(parts)
        if self._is_copy(value):
            self.left.append(value)
        return value

    def _referring(self, value: Any) -> Any:
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, MethodType):
            function, owner = self._bound(value.__func__), self._bound(value.__self__)
            return value if function is value.__func__ else MethodType(function, owner)
        if isinstance(value, partial):
            known = (value.func, *value.args, *value.keywords.values())
            bound = [self._bound(part) for part in known]
            if all(map(_is, bound, known)):
                return value
            named = dict(zip(reversed(value.keywords), reversed(bound), strict=False))
            args = bound[1 : len(known) - len(named)]
            return partial(bound[0], *args, **named)
        if isinstance(value, weakref.ref):
            target = value()
            return weakref.ref(self.memo[id(target)]) if self._is_known(target) else value
        if not self._reaches(value):
            return value
        again = self._of_original(value.__wrapped__)
        return lru_cache(**value.cache_parameters())(again)  # which begins without results

    def _function(self, function: FunctionType) -> Any:
        if id(function) in self.functions:
            return self.functions[id(function)][1]
        if not self._reaches(function):
            self.functions[id(function)] = function, function
            return function
        known = {n: v for n, v in _global_values(function).items() if self._reaches(v)}
        names = _Globals(function.__globals__) if known else function.__globals__
        cells = tuple(self._cell(cell) for cell in function.__closure__ or ())
        ours = FunctionType(function.__code__, names, function.__name__, None, cells)
        self.functions[id(function)] = function, ours  # before its parts, which may know it
        for name in ("__qualname__", "__doc__", "__module__", "__annotations__"):
            setattr(ours, name, getattr(function, name))
        ours.__defaults__ = self._of_original(function.__defaults__)
        ours.__kwdefaults__ = self._of_original(function.__kwdefaults__)
        vars(ours).update({n: self._of_original(v) for n, v in vars(function).items()})
        names.update({n: self._of_original(v) for n, v in known.items()})
        for theirs, cell in zip(function.__closure__ or (), cells, strict=True):
            if cell is not theirs and not _holds(cell):
                cell.cell_contents = self._of_original(theirs.cell_contents)
        return ours

    def _cell(self, cell: CellType) -> CellType:
        """The cell to use: one of its own, still empty, where what it holds is the model's."""
        if id(cell) not in self.cells:
            own = _holds(cell) and self._reaches(cell.cell_contents)
            self.cells[id(cell)] = cell, CellType() if own else cell
        return self.cells[id(cell)][1]

    def _of_original(self, value: Any) -> Any:
        """The copy of what a function of the original knows; that itself, where it has no part."""
        if not self._reaches(value):
            return value
        return self._bound(copy.deepcopy(value, self.memo))

    def _reaches(self, value: Any) -> bool:
        """Whether something knows a part of the original.

        Objects that were not copied are looked into, those in them are not: whole programs hang
        together somehow.
        """
        seen: dict[int, Any] = {}
        left = [(value, 1)]
        while left:
            one, depth = left.pop()
            if isinstance(one, _BARE) or id(one) in seen:
                continue
            seen[id(one)] = one
            if self._is_known(one):
                return True
            left += parts_of(one, depth)
        return False

    def _is_known(self, value: Any) -> bool:
        return self.memo.get(id(value), value) is not value

    def _is_copy(self, value: Any) -> bool:
        """Whether it was made, and may be changed."""
        if self.counted < len(self.memo):
            self.made |= {id(made) for made in islice(self.memo.values(), self.counted, None)}
            self.counted = len(self.memo)
        return id(value) in self.made


def _is(one: Any, other: Any) -> bool:
    return one is other


def _holds(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _contents(function: FunctionType) -> list[Any]:
    return [cell.cell_contents for cell in function.__closure__ or () if _holds(cell)]


def parts_of(value: Any, depth: int) -> Iterator[tuple[Any, int]]:
    """What something holds or knows, each with how many objects deep to look in it."""
    parts: list[Any] = []
    if isinstance(value, FunctionType):
        parts += [value.__defaults__, value.__kwdefaults__, vars(value)]
        parts += _contents(value)
        parts += _global_values(value).values()
    elif isinstance(value, MethodType):
        parts += [value.__self__, value.__func__]
    elif isinstance(value, partial):
        parts += [value.func, value.args, value.keywords]
    elif isinstance(value, _CACHED):
        parts.append(value.__wrapped__)
    elif isinstance(value, weakref.ref):
        parts.append(value())
    elif isinstance(value, dict):
        parts += value.values()
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        parts += value
    elif isinstance(value, nn.Module):
        parts += vars(value).values()
    elif depth and not isinstance(value, _NO_PARTS):
        depth -= 1
        parts += getattr(value, "__dict__", {}).values()
    return ((part, depth) for part in parts)


def _global_values(function: FunctionType) -> dict[str, Any]:
    """Modules, tensors and functions of the same file that a function knows by a global name.

    None where it sets such a name: its own would not be seen by others.
    """
    names = function.__globals__
    codes = list(_codes(function.__code__))
    known = {name for code in codes for name in code.co_names if name in names}
    found = {n: names[n] for n in known if _may_be_used(names[n], names)}
    if found and any(i.opname == "STORE_GLOBAL" for c in codes for i in dis.get_instructions(c)):
        return {}
    return found


def _may_be_used(value: Any, names: dict[str, Any]) -> bool:
    if isinstance(value, FunctionType):
        return value.__globals__ is names
    return isinstance(value, (nn.Module, Tensor, MethodType, partial))


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of the functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
