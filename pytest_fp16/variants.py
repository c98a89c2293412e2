"""Subclasses made while a program runs: a module changes its class, and with it its ``forward``.

Unlike a hook or a replaced ``forward``, a class is copied, pickled and compiled with the module.
One made at run time has no name that pickle could find, so it is made again from the class it
stands for.
"""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Callable
from typing import Any

from torch import nn


class Variant:
    """What the class of a changed module inherits from, before its own class."""

    _fp16_prefix: str
    _fp16_base: type[nn.Module]

    def _fp16_run(self, own: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Stands in for the module's own ``forward``, which takes the module first."""
        raise NotImplementedError

    def __reduce_ex__(self, protocol: Any) -> Any:
        made = super().__reduce_ex__(protocol)
        if isinstance(made, tuple) and made[0] is copyreg.__newobj__:  # type: ignore[attr-defined]
            return (_rebuild, (*_origin(type(self)), *made[1][1:]), *made[2:])
        return made


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

    members = {"forward": forward, "_fp16_base": base, "__module__": base.__module__}
    return type(f"{kind._fp16_prefix}{base.__name__}", (kind, base), members)


def _origin(made: type) -> tuple[list[type[Variant]], type]:
    """The kinds of a class made here, the outermost first, and the class it stands for."""
    kinds = []
    while issubclass(made, Variant):
        kinds.append(made.__mro__[1])
        made = made._fp16_base
    return kinds, made


def _rebuild(kinds: list[type[Variant]], base: type[nn.Module], *args: Any) -> Any:
    for kind in reversed(kinds):
        base = variant(kind, base)
    return base.__new__(base, *args)
