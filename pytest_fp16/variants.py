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
    """What the class of a changed module inherits from, behind its own class.

    Before it, Python would find the layout of their objects another where ``nn.Module`` is not the
    first base of the module's own class, and would not let it change its class.
    """

    _fp16_prefix: str
    _fp16_base: type[nn.Module]
    _fp16_kind: type[Variant]

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
    facts = {"_fp16_base": base, "_fp16_kind": kind, "__module__": base.__module__}
    return type(f"{kind._fp16_prefix}{base.__name__}", (base, kind), members | facts)


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
