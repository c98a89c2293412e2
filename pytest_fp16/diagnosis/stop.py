"""Where a 16-bit program raised, and the rounding that led it there."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from pytest_fp16.diagnosis.comparison import Comparison
from pytest_fp16.diagnosis.twin_run import Operation
from pytest_fp16.engine.source import frames_of, raised_at, raised_by_program


@dataclass(frozen=True)
class Raised:
    """Where the 16-bit program stopped.

    Attributes:
        misled: the operation whose rounding led it there, such as that of an index; None where
            it stops for want of a kernel, whatever the values.
        anyway: whether it stops for exact values of the same dtypes as well.
        constant: the largest number that the torch function was given beside its tensors.
    """

    module: str
    operation: str
    source: str | None
    error: BaseException
    misled: Operation | None = None
    anyway: bool = False
    constant: float | None = None


class _Calls(TorchFunctionMode):
    """Remembers the innermost torch function that was entered and has not returned."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: str | None = None
        self.constant: float | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except Exception:
            if self.inside is None:
                self.inside = getattr(func, "__name__", None)
                numbers = [x for x in tree_leaves((args, kwargs)) if type(x) in (int, float)]
                self.constant = max(numbers, key=abs, default=None)
            raise


def stopped(comparison: Comparison, error: Exception) -> Raised:
    """Run it again, to see which torch function it stops in."""
    calls = _Calls()
    try:
        with calls:
            comparison.record()
    except Exception as again:
        found = raised(again, comparison, calls.inside)
        misled, anyway = _misleading(comparison, again)
        return replace(found, misled=misled, anyway=anyway, constant=calls.constant)
    return raised(error, comparison)


def entered(comparison: Comparison) -> str | None:
    """The innermost torch function that the program stops in where nothing follows it."""
    calls = _Calls()
    with suppress(Exception), calls:
        comparison.natively()
    return calls.inside


def _misleading(comparison: Comparison, error: Exception) -> tuple[Operation | None, bool]:
    """The earliest operation whose rounding makes the program stop at a later one, as it did.

    And whether there can be none, because exact values stop it as well.
    """
    operations = comparison.operations
    stopped = comparison.last.raised if comparison.last is not None else None
    harmful = stopped.index if stopped is not None else len(operations)
    anyway = _stops(comparison, 0, error)
    if anyway or not _stops(comparison, harmful, error):
        return None, anyway  # its own arguments are no reason
    harmless = 0
    while harmful - harmless > 1:
        cut = (harmless + harmful) // 2
        if _stops(comparison, cut, error):
            harmful = cut
        else:
            harmless = cut
    return operations[harmful - 1], False


def _stops(comparison: Comparison, until: int, error: Exception) -> bool:
    """Whether the program stops in that way when its first `until` operations alone are rounded.

    In another way, such as at a check that the missing kernel would have spared, is no evidence.
    """
    try:
        comparison.run(until)
    except Exception as other:
        return type(other) is type(error)
    return False


_KERNEL = re.compile(r'"(?P<name>\w+?)(_cpu|_cuda|_out|_stub|_impl)*_?" not implemented')


def raised(error: BaseException, comparison: Comparison, function: str | None = None) -> Raised:
    """Module, operation and line of an exception of the 16-bit program."""
    twin_run = comparison.last
    at = twin_run.raised if twin_run is not None else None
    if at is not None:
        return Raised(at.module, at.name, raised_at(error) or at.source, error)
    named = _KERNEL.search(str(error))
    known = named["name"] if named else getattr(error, "operation", None)
    name = function or known or type(error).__name__
    return Raised(
        module_of(error, comparison.candidate.model), name.strip("_"), raised_at(error), error
    )


def module_of(error: BaseException, model: torch.nn.Module) -> str:
    """The innermost module of the model whose forward an exception passed."""
    names: dict[int, str] = {id(module): name for name, module in model.named_modules()}
    for frame, _ in frames_of(error):
        name = names.get(id(frame.f_locals.get("self")))
        if name is not None:
            return name
    return ""


def given_dtypes(error: BaseException) -> dict[str, list[str]]:
    """What the function of the program's own that raised was given: floating arguments by dtype.

    And what a module holds itself whose method it is.

    Empty where no statement of the program's raised it, or its function takes no such tensors.
    """
    if not raised_by_program(error):
        return {}
    frame, _ = frames_of(error)[0]
    code = frame.f_code
    named = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    found: dict[str, list[str]] = {}
    for name in named:
        value = frame.f_locals.get(name)
        given = {name: value}
        if isinstance(value, nn.Module):
            given = {f"{name}.{n}": p for n, p in value.named_parameters(recurse=False)}
        for whole, tensor in given.items():
            if isinstance(tensor, Tensor) and tensor.dtype.is_floating_point:
                found.setdefault(str(tensor.dtype).removeprefix("torch."), []).append(whole)
    return found
