"""Tensors that a program keeps outside its model from one run to the next: a table made once.

A dictionary of a module, of a class or of a function, a name that is declared ``global``, an
``lru_cache``: such a table has the format of whichever run came first, and a 16-bit candidate
would go on with the reference's. A process that runs in 16 bits alone makes its own. So each run
begins without them, and leaves them as they were; one of a training takes its own along from step
to step. What the program cannot make again (constants) is no cache, and stays.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pytest_fp16.engine.own_code import file_of, names_in, own_functions
from pytest_fp16.engine.source import is_program

_LRU = type(functools.lru_cache(lambda: None))


@dataclass(frozen=True)
class Cache:
    """A mapping whose tensors may be a cache.

    Attributes:
        name: what the program calls it.
        mapping: where it is.
        only: the one key that is looked at, which is set to None; of others all are taken out.
    """

    name: str
    mapping: Any
    only: str | None = None

    @property
    def held(self) -> dict[Any, Any]:
        """What it has of tensors."""
        if self.only is not None:
            items = [(self.only, self.mapping.get(self.only))]
        else:
            items = list(self.mapping.items())
        return {key: value for key, value in items if _holds_tensors(value)}

    @property
    def identity(self) -> dict[Any, int]:
        """Which ones: a run that writes them anew reads none of an earlier one."""
        return {key: id(value) for key, value in self.held.items()}

    @contextmanager
    def holding(self, own: dict[Any, Any]) -> Iterator[None]:
        """With others in their place, which it may change, and as it was afterwards."""
        had = self.held
        self._take_out(had)
        self.mapping.update(own)
        try:
            yield
        finally:
            own.clear()
            own.update(self.held)
            self._take_out(own)
            self.mapping.update(had)

    def _take_out(self, keys: Any) -> None:
        for key in keys:
            if self.only is not None:
                self.mapping[key] = None
            else:
                self.mapping.pop(key, None)


@dataclass(frozen=True)
class Memo:
    """A function under `functools.lru_cache`."""

    name: str
    function: Any

    @property
    def held(self) -> int:
        """How much it remembers."""
        return int(self.function.cache_info().currsize)

    @property
    def identity(self) -> int:
        """As much as is known of what it remembers."""
        return self.held

    @contextmanager
    def holding(self, own: dict[Any, Any]) -> Iterator[None]:
        """Without it, also afterwards: what it remembers can be made again, and not handed over."""
        self.function.cache_clear()
        try:
            yield
        finally:
            self.function.cache_clear()


#: Those of the check that is under way.
_ACTIVE: list[Cache | Memo] = []
#: The run that has its own in their place now, if any.
_RUNNING: list[OwnTables] = []


class OwnTables:
    """What one run keeps outside its model, in the caches of the check."""

    def __init__(self) -> None:
        self._kept: dict[int, dict[Any, Any]] = {}

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Something of the run, which finds them where it has left them.

        What is called within belongs to it.
        """
        if _RUNNING:
            yield
            return
        with ExitStack() as stack:
            for cache in _ACTIVE:
                stack.enter_context(cache.holding(self._kept.setdefault(id(cache), {})))
            _RUNNING.append(self)
            stack.callback(_RUNNING.clear)
            yield


@contextmanager
def caches_apart() -> Iterator[None]:
    """For the length of a check: what is found in it is forgotten afterwards.

    One within another goes on with what that has found.
    """
    before = list(_ACTIVE)
    try:
        yield
    finally:
        _ACTIVE[:] = before


def without_caches() -> AbstractContextManager[None]:
    """One run, which begins without what others have kept, or a part of one that has its own."""
    return OwnTables().lent()


def find_caches(model: nn.Module, given: Sequence[Any], run: Callable[[], Tensor]) -> list[str]:
    """Look for caches, once the reference has run: from now on every run begins without them.

    Args:
        model: the reference.
        given: functions of the user's own that are called with it, or None.
        run: runs it on some inputs it has had, always alike.

    Returns:
        A warning of each that was found.
    """
    known = set(map(_place, _ACTIVE))
    found = [c for c in _kept_outside(model, given) if c.held and _place(c) not in known]
    if not found:
        return []
    had = [(cache, cache.identity) for cache in found]
    wanted = run()
    read = [cache for cache, before in had if cache.identity == before]  # not written each time
    made_again = [cache for cache in read if _made_again(cache, run, wanted)]
    _ACTIVE.extend(made_again)
    return [
        f"{cache.name} keeps tensors outside the model from one run to the next, in the format of "
        "the first: each run here begins without them, a process of yours that changes its "
        "precision does not"
        for cache in made_again
    ]


def _made_again(cache: Cache | Memo, run: Callable[[], Tensor], wanted: Tensor) -> bool:
    try:
        with cache.holding({}):
            return torch.equal(run(), wanted) and bool(cache.held)
    except Exception:  # it has what cannot be made again
        return False


def _kept_outside(model: nn.Module, given: Sequence[Any]) -> Iterator[Cache | Memo]:
    seen: set[tuple[int, str | None]] = set()
    for name, value in _reached(model, given):
        if isinstance(value, dict):
            value = Cache(name, value)
        elif isinstance(value, _LRU):
            value = Memo(name, value)
        if not isinstance(value, (Cache, Memo)):
            continue
        if (place := _place(value)) not in seen:  # several functions may lead to it
            seen.add(place)
            yield value


def _place(cache: Cache | Memo) -> tuple[int, str | None]:
    """Which one it is."""
    if isinstance(cache, Cache):
        return id(cache.mapping), cache.only
    return id(cache.function), None


def _reached(model: nn.Module, given: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """What the functions of the user's own and the classes of the model lead to, by name."""
    for function in own_functions(model, *given):
        yield from _of_function(function)
    for kind in dict.fromkeys(base for m in model.modules() for base in type(m).__mro__):
        if is_program(file_of(kind)):
            yield from ((f"{kind.__name__}.{name}", value) for name, value in vars(kind).items())


def _of_function(function: FunctionType) -> Iterator[tuple[str, Any]]:
    yield function.__name__, vars(function)
    yield from ((function.__name__, value) for value in function.__defaults__ or ())
    names = set(names_in(function.__code__))
    for name in sorted(names & function.__globals__.keys()):
        value = function.__globals__[name]
        if isinstance(value, (ModuleType, type)):
            own = vars(value) if is_program(file_of(value)) else {}
            yield from ((f"{name}.{part}", own[part]) for part in sorted(names & own.keys()))
        else:
            yield name, value
    for instruction in dis.get_instructions(function):
        if instruction.opname == "STORE_GLOBAL":
            yield (
                instruction.argval,
                Cache(instruction.argval, function.__globals__, instruction.argval),
            )


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return any(isinstance(item, Tensor) for item in value)
    return isinstance(value, Tensor)
