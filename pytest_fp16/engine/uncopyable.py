"""What ``copy.deepcopy`` refuses in a model: shared by its copies where that is no part of it.

A lock, a file or a pool of threads holds no weights: copies may well use the same one.
"""

from __future__ import annotations

import copy
import sys
from collections import ChainMap, deque
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from pytest_fp16.engine.rebinding import parts_of

_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_PARTS = ("_parameters", "_buffers", "_modules")
#: How many objects deep a tensor is looked for in something that is to be shared.
_DEEP = 4


class Uncopyable:
    """The attributes of a model that cannot be copied.

    Args:
        model: which ``deepcopy`` has refused.
        memo: of what it need not copy.

    Attributes:
        shared: by id, what refuses and holds no tensors: a memo for another try.
        names: the other attributes that refuse, each with what it said.
    """

    def __init__(self, model: nn.Module, memo: dict[int, Any]) -> None:
        self.shared: dict[int, Any] = {}
        self.names: dict[str, Exception] = {}
        own = (*model.modules(), *model.parameters(), *model.buffers())
        self._known = {id(part): part for part in own} | memo
        self._met: dict[int, Any] = {}
        for prefix, module in model.named_modules():
            for name, value in vars(module).items():
                if name not in _PARTS:
                    self._look(f"{prefix}.{name}".lstrip("."), value)
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if (error := self._refused(tensor, {})) is not None:
                self.names[name] = error

    def _look(self, name: str, value: Any) -> None:
        """Find in a value what cannot be copied, down to its parts."""
        error = self._refused(value, self._known)
        if error is None or id(value) in self._met:
            return
        self._met[id(value)] = value
        before = len(self.shared) + len(self.names)
        for part, inner in _named_parts(name, value):
            self._look(part, inner)
        if len(self.shared) + len(self.names) > before:
            return
        if _knows_tensors(value):
            self.names[name] = error
        else:
            self.shared[id(value)] = value

    def _refused(self, value: Any, known: dict[int, Any]) -> Exception | None:
        try:
            copy.deepcopy(value, ChainMap({}, known))  # type: ignore[arg-type]
        except Exception as error:
            return error
        return None


def _named_parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The parts of a container or of an object of the program's, not of Python's own."""
    if isinstance(value, dict):
        yield from ((f"{name}[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, _CONTAINERS):
        yield from ((f"{name}[{i}]", part) for i, part in enumerate(value))
    elif type(value).__module__.partition(".")[0] not in sys.stdlib_module_names:
        space = getattr(value, "__dict__", {})
        yield from ((f"{name}.{key}", part) for key, part in space.items())


def _knows_tensors(value: Any) -> bool:
    """Whether there is a tensor, or a module, in it."""
    seen: dict[int, Any] = {}
    left = [(value, _DEEP)]
    while left:
        one, depth = left.pop()
        if isinstance(one, (Tensor, nn.Module)):
            return True
        if id(one) not in seen:
            seen[id(one)] = one
            left += parts_of(one, depth)
    return False
