"""Names of modules, with or without what wrappers that compile or spread a model add to them."""

from __future__ import annotations

from difflib import get_close_matches

from torch import nn

from pytest_fp16.engine.copies import own_module
from pytest_fp16.errors import ModelError


def module_named(model: nn.Module, name: str) -> nn.Module:
    """A module in the one that wrappers hold, by its name there, in the whole, or without wrappers.

    Raises:
        ModelError: there is none of that name.
    """
    own = own_module(model)
    known: dict[str, nn.Module] = dict(own.named_modules(remove_duplicate=False))
    whole = dict(model.named_modules(remove_duplicate=False))
    for names in (known, _unwrapped(known), whole):
        if name in names:
            found = names[name]
            return found if found in known.values() else own
    last = str(name).rpartition(".")[2]
    ends = [known_name for known_name in known if known_name.rpartition(".")[2] == last]
    near = list(dict.fromkeys([*get_close_matches(str(name), known, n=3), *ends[:3]]))
    hint = f"; did you mean {' or '.join(map(repr, near[:3]))}?" if near else ""
    raise ModelError(
        f"{type(own).__name__} has no module {name!r}{hint or '; see model.named_modules()'}"
    )


def _unwrapped(known: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The modules by names that leave out what a compiled, or parallel, part adds to them."""
    found: dict[str, nn.Module] = {}
    short = {"": ""}
    for name, module in known.items():  # a part comes after what it is part of
        parent, _, last = name.rpartition(".")
        if name and own_module(known[parent]) is known[parent]:
            short[name] = f"{short[parent]}.{last}".lstrip(".")
        elif name:
            short[name] = short[parent]
        found.setdefault(short[name], module)
    return found
