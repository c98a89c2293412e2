"""What a function's code reaches by name: globals, and through modules what it asks of them.

``import helper`` and ``helper.my_loss`` name two things, and only the second can change a training:
of a module of the user's, the attributes that the code names are followed, and no others.
"""

from __future__ import annotations

import dis
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from typing import Any

_LIBRARIES = tuple(
    path
    for path in (sysconfig.get_paths().get(k) for k in ("purelib", "platlib", "stdlib"))
    if path
)

#: What reads a global of a function's, or of a class's body.
_LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")


def is_library(name: str) -> bool:
    """Whether a module of that name is an installed package's or Python's own, not the user's."""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names and top != "__main__":
        return True
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if module is None or top == "__main__":
        return False
    if file is None and getattr(module, "__path__", None):  # a folder without __init__.py
        file = next(iter(module.__path__))
    return file is None or file.startswith(_LIBRARIES) or top in ("pytest_fp16", "torch")


def reached(code: types.CodeType, scope: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(name, value) of each global that code names, and of what it names in the user's modules.

    Args:
        code: of a function; what is defined inside it is not looked at.
        scope: the function's globals.
    """
    # Of `self.started` the attribute is none of the globals, though one may be called so.
    loads = [i.argval for i in dis.get_instructions(code) if i.opname in _LOADS]
    found = {n: scope[n] for n in loads if n in scope and not n.startswith("@")}
    found.update(_imported(code, scope))
    # getattr(helper, "my_loss") names it in a string.
    asked = dict.fromkeys([*code.co_names, *(c for c in code.co_consts if isinstance(c, str))])
    pending, seen = list(found.items()), set[str]()
    while pending:
        name, value = pending.pop(0)
        if not isinstance(value, types.ModuleType) or is_library(value.__name__):
            yield name, value
        elif value.__name__ not in seen:
            seen.add(value.__name__)
            pending += [(f"{value.__name__}.{n}", getattr(value, n)) for n in _held(value, asked)]


def _held(module: types.ModuleType, asked: Mapping[str, None]) -> list[str]:
    return [n for n in asked if n in vars(module) and not n.startswith("__")]


def _imported(code: types.CodeType, scope: Mapping[str, Any]) -> dict[str, Any]:
    """The modules that code imports itself, those that are loaded."""
    package = str(scope.get("__package__") or "")
    found: dict[str, Any] = {}
    for instruction in dis.get_instructions(code):
        if instruction.opname != "IMPORT_NAME":
            continue
        name, inside = str(instruction.argval), package
        names = [name]
        while inside:  # relative to the package, or to one around it
            names.append(f"{inside}.{name}".rstrip("."))
            inside = inside.rpartition(".")[0]
        for full in names:
            top = full.partition(".")[0] if full == name else full
            found.update({n: sys.modules[n] for n in (top, full) if n in sys.modules})
    return found
