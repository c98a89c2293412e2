"""Whether it matters that a model is in training mode: most modules do the same in either."""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.modules import batchnorm, dropout

#: Methods that set the mode, or copy it, and do not act by it.
_SETTING = ("__init__", "train", "eval")


def acts_in_training(model: nn.Module) -> bool:
    """Whether a part of a model is in training mode and would do something else in eval mode.

    A wrapper made around a model after ``eval()`` is in training mode, and only says so.
    """
    return any(module.training and _acts(module) for module in model.modules())


def _acts(module: nn.Module) -> bool:
    """Whether the mode of this very module, and not of those in it, changes what it does."""
    if isinstance(module, torch.jit.ScriptModule):
        return "training" in str(getattr(module, "code", ""))
    if isinstance(module, dropout._DropoutNd):
        return module.p > 0
    if isinstance(module, batchnorm._NormBase):
        return module.running_mean is not None
    if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
        return module.dropout > 0
    return isinstance(module, nn.RReLU) or _reads_mode(type(module))


def _reads_mode(kind: type[nn.Module]) -> bool:
    """Whether the code of a class, where it is not one of torch's layers, asks for its mode."""
    for base in kind.__mro__:
        if base.__module__.startswith("torch.nn.modules."):
            return False  # its own are known, and so are those of the classes below
        own = vars(base)
        of_torch = base.__module__.split(".")[0] == "torch"  # acts where it runs, if at all
        names = ["forward"] if of_torch else [n for n in own if n not in _SETTING]
        if any("training" in names_read for n in names for names_read in _read(own.get(n))):
            return True
    return False


def _read(function: Any) -> Iterator[tuple[str, ...]]:
    """The names that a method's code reads, those of the functions in it, too."""
    for inner in (getattr(function, "fget", None), getattr(function, "__wrapped__", None)):
        yield from _read(inner) if inner is not None else ()
    if isinstance(function, FunctionType):
        codes: list[CodeType] = [function.__code__]
        while codes:
            code = codes.pop()
            yield code.co_names
            codes += [c for c in code.co_consts if isinstance(c, CodeType)]
