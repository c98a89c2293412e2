"""The functions of the user's own that a pass may call, found by name and without running them.

From where a model is entered, every name that code uses is looked up: in its module, and in the
classes of whatever the model holds. That finds more than one pass calls, and nothing that it hides
from its names.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

from pytest_fp16.engine.source import is_program

#: What runs in a class without being called by its name.
_IMPLIED = ("__init__", "__call__", "__enter__", "__exit__", "forward")
#: Wrappers around a function that are looked through.
_DEEP = 8


def own_functions(model: nn.Module, *given: Any) -> list[FunctionType]:
    """The functions, each once, in the order they are met.

    Args:
        model: its ``forward`` and those of all its modules are entered.
        given: other functions, methods or objects that are called, such as a loss; or None.
    """
    found = _Found()
    for called in (model, *given):
        for module in called.modules() if isinstance(called, nn.Module) else ():
            found.knows(type(module))
            found.enters(getattr(type(module), "forward", None))
            for value in vars(module).values():
                found.holds(value)
        found.holds(getattr(called, "__self__", called))
        found.enters(called)
    return found.all()


class _Found:
    """What has been met so far."""

    def __init__(self) -> None:
        self.functions: dict[CodeType, FunctionType] = {}
        self.classes: dict[type, None] = {}
        self.names: set[str] = set()
        self._looked_at: set[type] = set()

    def knows(self, kind: type) -> None:
        """Methods of a class of the user's own are called by their names."""
        if kind in self._looked_at:  # most of what a large model holds
            return
        for base in set(kind.__mro__) - self._looked_at:
            self._looked_at.add(base)
            if is_program(file_of(base)):
                self.classes.setdefault(base)

    def holds(self, value: Any) -> None:
        """An attribute of a model: a function, or an object of a class of one's own."""
        if isinstance(value, FunctionType):
            self.enters(value)
        elif not isinstance(value, (nn.Module, Tensor, type)):
            self.knows(type(value))

    def enters(self, called: Any) -> None:
        """A function, method or object that is called."""
        if isinstance(called, type):
            self.knows(called)
            for name in _IMPLIED:
                self.enters(vars(called).get(name) if called in self.classes else None)
            return
        for function in _functions_in(called):
            code = function.__code__
            if code not in self.functions and is_program(code.co_filename):
                self.functions[code] = function
                self.names |= set(names_in(code))

    def all(self) -> list[FunctionType]:
        """Everything that the names lead to."""
        done = -1
        while done != len(self.functions) + len(self.classes):
            done = len(self.functions) + len(self.classes)
            for function in list(self.functions.values()):
                self._follow(function)
            for kind in list(self.classes):
                for name in self.names & vars(kind).keys():
                    self.enters(vars(kind)[name])
        return list(self.functions.values())

    def _follow(self, function: FunctionType) -> None:
        names = set(names_in(function.__code__))
        for name in names & function.__globals__.keys():
            value = function.__globals__[name]
            if isinstance(value, ModuleType):
                for part in names & vars(value).keys() if is_program(file_of(value)) else ():
                    self._meet(vars(value)[part])
            else:
                self._meet(value)
        for cell in function.__closure__ or ():
            try:
                self._meet(cell.cell_contents)
            except ValueError:  # nothing is in it yet
                continue

    def _meet(self, value: Any) -> None:
        wrapped = inspect.getattr_static(value, "__wrapped__", None) is not None
        if wrapped or isinstance(value, (FunctionType, type)):
            self.enters(value)


def _functions_in(called: Any) -> Iterator[FunctionType]:
    """The functions behind a name: of a property, a method, a decorated or a callable object."""
    if isinstance(called, property):
        called = called.fget
    elif isinstance(called, (staticmethod, classmethod)):
        called = called.__func__
    for _ in range(_DEEP):
        if isinstance(called, FunctionType):
            yield called
        bare = getattr(called, "__func__", None) or getattr(called, "func", None)
        inner = getattr(called, "__wrapped__", None) or bare
        if inner is None or inner is called:
            break
        called = inner
    own = next((vars(k)["__call__"] for k in type(called).__mro__ if "__call__" in vars(k)), None)
    if isinstance(own, FunctionType):
        yield own


def names_in(code: CodeType) -> Iterable[str]:
    """The names that code uses, that of functions inside it as well."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_in(constant)


def file_of(thing: Any) -> str:
    """The file of a module or a class; empty where it has none."""
    try:
        return inspect.getfile(thing)
    except (TypeError, OSError):
        return ""
