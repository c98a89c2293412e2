"""Tables that a model keeps of an earlier run of the user's: made once, as they are first needed.

A rotary embedding's cosines, a bias of distances, a grid: ``self.table = None`` at first, and made
where it is missing, or too short. A model that has run in float32 before the check would bring them
along (no cast reaches a plain attribute, and that of a buffer rounds once), where a process that
runs in 16 bits alone makes its own. So candidates begin without them. Whether they are such tables
is tried on the reference: without them it gives the same outputs, and has them again. What was made
with the model (constants) is not made again, and stays.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from pytest_fp16.engine.containers import all_tensors

_TORCHS_OWN = frozenset(vars(nn.Module()))
_GONE = object()
#: Beginnings that are tried of each table, and tables of a module: a pass of a few inputs each.
_TRIED = 6
#: Names of modules, by their class and the attributes that hold floating tensors of their own.
Held = dict[tuple[type, tuple[str, ...]], list[str]]


@dataclass(frozen=True)
class Table:
    """Attributes of modules that are made again, and what stands in their place before.

    Attributes:
        modules: by name, all of one class.
        names: the attributes that hold it.
        before: by attribute, what it begins with; `_GONE` where it is not there. Others tell how
            long it is, or that it is there.
    """

    modules: tuple[str, ...]
    names: tuple[str, ...]
    before: dict[str, Any]

    @property
    def said(self) -> str:
        """A warning of it."""
        module = f"{self.modules[0]}." if self.modules[0] else ""
        more = f" (and {len(self.modules) - 1} more)" if len(self.modules) > 1 else ""
        return (
            f"{module}{self.names[0]}{more} keeps what an earlier run has made in float32: each "
            "precision here makes its own, as a process that runs in it alone"
        )

    def forget(self, model: nn.Module) -> None:
        """Let a model of our own begin without; changed in place."""
        for module in map(model.get_submodule, self.modules):
            for name, value in self.before.items():
                place = module._buffers if name in module._buffers else vars(module)
                if value is _GONE:
                    del place[name]
                else:
                    place[name] = copy.copy(value)


class _Kept:
    """What a module holds beside its weights, as it is now."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._attributes, self._buffers = dict(vars(module)), dict(module._buffers)
        self._passing = set(module._non_persistent_buffers_set)

    @property
    def values(self) -> dict[str, Any]:
        """By name, its own attributes and the buffers that it does not store."""
        own = {n: v for n, v in self._attributes.items() if n not in _TORCHS_OWN}
        return own | {n: v for n, v in self._buffers.items() if n in self._passing}

    def restore(self) -> None:
        """Give them back to it."""
        module = self._module
        vars(module).clear()
        vars(module).update(self._attributes)
        module._buffers.clear()
        module._buffers.update(self._buffers)
        module._non_persistent_buffers_set.clear()
        module._non_persistent_buffers_set.update(self._passing)


def held_by(model: nn.Module) -> Held:
    """What a model holds beside its weights, and does not store with them: floating tensors."""
    own = {id(p) for p in model.parameters()}
    for module in model.modules():
        passing = module._non_persistent_buffers_set
        own |= {id(buffer) for name, buffer in module._buffers.items() if name not in passing}
    found: Held = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # which has none
            continue
        values = _Kept(module).values
        if held := tuple(n for n, value in values.items() if _is_table(value, own)):
            found.setdefault((type(module), held), []).append(name)
    return found


def _is_table(value: Any, own: set[int]) -> bool:
    if not isinstance(value, (Tensor, tuple, list, dict)):
        return False
    tensors = list(all_tensors(value))
    return any(t.is_floating_point() for t in tensors) and not any(
        t.requires_grad or id(t) in own for t in tensors
    )


def kept_tables(model: nn.Module, held: Held, run: Callable[[], Tensor]) -> list[Table]:
    """Find such tables of a reference, once it has run; it is left as it was.

    Args:
        model: the reference.
        held: what it held before.
        run: runs it on some inputs it has had, always alike.
    """
    if not held:
        return []
    concerned = [name for modules in held.values() for name in modules]
    before = {name: _Kept(model.get_submodule(name)).values for name in concerned}
    wanted = run()
    found = []
    for (_, names), modules in held.items():
        now = {m: _Kept(model.get_submodule(m)).values for m in modules}
        # What is written in every pass is no table, and another's for each anyway.
        left = [n for n in names if all(now[m].get(n) is before[m][n] for m in modules)]
        found += _made_again(model, tuple(modules), left, run, wanted)
    return found


def _made_again(
    model: nn.Module,
    modules: tuple[str, ...],
    names: Sequence[str],
    run: Callable[[], Tensor],
    wanted: Tensor,
) -> list[Table]:
    """Those of some attributes that are tables: all of them, or one after the other.

    A program that asks for one table makes those beside it with it.
    """
    had = [_Kept(model.get_submodule(name)) for name in modules]
    found, anew = list[Table](), set[str]()

    def try_without(tried: Sequence[str]) -> bool:
        for before in islice(_beginnings(had[0].values, tried), _TRIED):
            table = Table(modules, tuple(tried), before)
            try:
                table.forget(model)
                made = torch.equal(run(), wanted)
                now = [_Kept(model.get_submodule(name)).values for name in modules]
                if made and all(_back(a.values, b, before) for a, b in zip(had, now, strict=True)):
                    found.append(table)
                    anew.update(n for n in names if now[0][n] is not had[0].values[n])
                    return True
            except Exception:  # it has what cannot be made again, or not so
                continue
            finally:
                for kept in had:
                    kept.restore()
        return False

    if names and not try_without(names):
        for name in names[:_TRIED] if len(names) > 1 else ():
            if name not in anew:
                try_without([name])
    return found


def _beginnings(values: dict[str, Any], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What may have been there at first, the likeliest before the others."""
    yield dict.fromkeys(names, _GONE)
    none = {n: _emptied(values[n]) for n in names}
    yield none
    yield none | {n: False for n, v in values.items() if v is True}
    for name, value in values.items():  # how long it is, or what it was made for
        if type(value) is int:
            yield none | {name: 0}
        elif isinstance(value, (torch.dtype, torch.device, tuple)) and name not in names:
            yield none | {name: None}


def _emptied(value: Any) -> Any:
    if not isinstance(value, dict):
        return None
    left = copy.copy(value)
    for key in [key for key, part in value.items() if all_tensors(part)]:
        del left[key]
    return left


def _back(had: dict[str, Any], now: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether a module has everything again that it had, what it began with but for its extent.

    An earlier run may have been of longer inputs.
    """
    if had.keys() != now.keys():
        return False
    for name, value in had.items():
        other = now[name]
        dims, others = ([t.dim() for t in all_tensors(v)] for v in (value, other))
        if name in before and other is not before[name]:
            same = dims == others and type(other) is type(value)
        else:
            same = other is value or (dims == others if dims else value == other)
        if not same:
            return False
    return True
