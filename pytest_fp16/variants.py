"""Subclasses made while a program runs: a module changes its class, and with it its ``forward``.

Unlike a hook or a replaced ``forward``, a class is copied, pickled and compiled with the module.
One made at run time has no name that pickle could find, so it is made again from the class it
stands for.
"""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch import nn


class Variant:
    """What the class of a changed module inherits from, behind its own class.

    Before it, Python would find the layout of their objects another where ``nn.Module`` is not the
    first base of the module's own class, and would not let it change its class.
    """

    _fp16_prefix: str
    _fp16_base: type[nn.Module]
    _fp16_kind: type[Variant]
    #: Runs the other public methods of a module's class as well; None leaves them as they are.
    _fp16_method: Callable[[Any, Callable[..., Any], tuple[Any, ...], Any], Any] | None = None

    def _fp16_run(self, own: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Stands in for the module's own ``forward``, which takes the module first."""
        raise NotImplementedError

    def _fp16_apply(self, own: Callable[..., Any], fn: Any, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the module's own ``_apply``, through which all casts and moves go."""
        return own(self, fn, *args, **kwargs)


_MADE: dict[tuple[type[Variant], type[nn.Module]], type[nn.Module]] = {}


def variant(kind: type[Variant], base: type[nn.Module]) -> type[nn.Module]:
    """The subclass of `base` that runs as `kind` says; one and the same for every module of it."""
    if (kind, base) not in _MADE:
        _MADE[kind, base] = _make(kind, base)
    return _MADE[kind, base]


def _make(kind: type[Variant], base: type[nn.Module]) -> type[nn.Module]:
    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return kind._fp16_run(self, base.forward, args, kwargs)

    def apply(self: Any, fn: Any, *args: Any, **kwargs: Any) -> Any:
        return kind._fp16_apply(self, base._apply, fn, *args, **kwargs)

    def reduce(self: Any, protocol: Any) -> Any:
        made = base.__reduce_ex__(self, protocol)
        if isinstance(made, tuple) and made[0] is copyreg.__newobj__:  # type: ignore[attr-defined]
            return (_rebuild, (*_origin(type(self)), *made[1][1:]), *made[2:])
        return made

    members = {"forward": forward, "_apply": apply, "__reduce_ex__": reduce}
    if kind._fp16_method is not None:
        members |= {n: _entered(kind._fp16_method, own) for n, own in _methods(base).items()}
    facts = {"_fp16_base": base, "_fp16_kind": kind, "__module__": base.__module__}
    return type(f"{kind._fp16_prefix}{base.__name__}", (base, kind), members | facts)


def _entered(run: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(own)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return run(self, own, args, kwargs)

    return method


def _methods(base: type[nn.Module]) -> dict[str, Callable[..., Any]]:
    """The public methods of a module's class, but for ``forward`` and those of every module."""
    known = set(dir(nn.Module))
    found: dict[str, Callable[..., Any]] = {}
    for kind in base.__mro__:
        for name, value in vars(kind).items():
            if isinstance(value, FunctionType) and not name.startswith("_") and name not in known:
                found[name] = value
            known.add(name)  # what a class hides of another is not looked for there
    return found


def _origin(made: type) -> tuple[list[type[Variant]], type]:
    """The kinds of a class made here, the outermost first, and the class it stands for."""
    kinds = []
    while issubclass(made, Variant):
        kinds.append(made._fp16_kind)
        made = made._fp16_base
    return kinds, made


def _rebuild(kinds: list[type[Variant]], base: type[nn.Module], *args: Any) -> Any:
    for kind in reversed(kinds):
        base = variant(kind, base)
    return base.__new__(base, *args)
