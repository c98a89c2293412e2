"""Where it was born: the earliest operation whose 16-bit result is enough to do the damage.

Operations before it run in 16 bits without harm; with it, and everything after it exact, the
outputs are as wrong as they are. So it is the origin, neither the first place that shows a NaN
nor what lies downstream, and a mask that becomes −inf without consequence is passed over.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pytest_fp16.diagnosis.autopsy import Operation
from pytest_fp16.diagnosis.damage import ENOUGH, Damage
from pytest_fp16.diagnosis.search import Search
from pytest_fp16.diagnosis.specimen import Specimen
from pytest_fp16.engine.device import is_out_of_memory
from pytest_fp16.engine.source import frames_of, raised_at

#: Part of the squared damage that must be born in the origin's module, or nobody is to blame.
CONCENTRATED = 0.1
#: Error of outputs, as a part of their spread, beyond which hardly anything is left to lose.
RUINED = 0.7


@dataclass(frozen=True)
class Origin:
    """The origin of a failure.

    Attributes:
        operation: the operation, as it ran.
        operations: the whole program, in order.
        damage: what is wrong at the outputs.
        concentrated: whether its module does a good part of the damage, rather than many each a
            little.
        unrounded: whether the 16-bit program does the damage even if nothing is rounded: by what it
            does for its dtype, such as to clamp to its range, or an epsilon of its own.
        lossless: whether no operation at all made NaN or infinity of finite values.
    """

    operation: Operation
    operations: list[Operation]
    damage: Damage
    concentrated: bool
    unrounded: bool = False
    lossless: bool = False


@dataclass(frozen=True)
class Raised:
    """Where the 16-bit program stopped.

    Attributes:
        misled: the operation whose rounding led it there, such as that of an index; None where
            it stops for want of a kernel, whatever the values.
        anyway: whether it stops for exact values of the same dtypes as well.
    """

    module: str
    operation: str
    source: str | None
    error: BaseException
    misled: Operation | None = None
    anyway: bool = False


def find_origin(
    specimen: Specimen,
    shares: Mapping[tuple[str, str], float] | None = None,
    module_alone: bool = False,
) -> Origin | Raised | None:
    """The origin, or None where the failure does not show on these inputs.

    Args:
        specimen: the candidate on a few inputs.
        shares: what theory expects each (module, operation) to contribute to the error; a guess
            that only decides where the search looks first, and the answer where damage is spread
            over many modules and nothing was lost.
        module_alone: any operation of the module will do.

    Raises:
        Exception: there is no memory to record the program on these inputs.
    """
    try:
        failing = specimen.record()
    except Exception as error:
        if is_out_of_memory(error):  # of ours, as the candidate ran on more inputs
            raise
        return _stopped(specimen, error)
    damage = Damage(specimen.task, specimen.wanted, failing)
    if not damage.shown or not specimen.operations:
        return None
    return _born(specimen, damage, shares or {}, module_alone)


def _born(
    specimen: Specimen,
    damage: Damage,
    shares: Mapping[tuple[str, str], float],
    module_alone: bool,
) -> Origin:
    """Cut the recorded program until the operation is known, or nobody is to blame."""
    operations = specimen.operations
    done = _told(specimen, damage)
    lost = specimen.tape.first_lost()
    expected = _expected(operations, shares, specimen.tape.entered())
    search = Search(expected, ENOUGH**2, lost)
    told = lost is None and any(expected) and not module_alone

    def spread() -> bool:
        return told and search.grown < CONCENTRATED and search.harmless > 0

    # What a module does by itself is known once the cuts on both its sides are.
    _narrow(search, done, spread, _borders(operations))
    concentrated = search.grown >= CONCENTRATED
    if not module_alone:  # of a module that does much, the very operation, be it one of a loop
        _narrow(search, done, spread if not concentrated else lambda: False)
    found = operations[search.harmful - 1]
    unrounded = search.harmless == 0 and done(0) >= ENOUGH
    if not unrounded and bool(damage.lost.any()):
        ruin = _ruin(specimen, damage, found.index)
        if ruin is not None:
            damage, found = ruin, _ruining(specimen, ruin, expected[: found.index])
    return Origin(found, operations, damage, concentrated, unrounded, lossless=lost is None)


def _told(specimen: Specimen, damage: Damage) -> Callable[[int], float]:
    """The damage of cuts, each asked for once."""

    @cache
    def done(until: int) -> float:
        try:
            return damage.of(specimen.healed(until))
        except Exception:  # exact values lead elsewhere: nothing can be said of this cut
            return 1.0

    return done


def _ruin(specimen: Specimen, damage: Damage, until: int) -> Damage | None:
    """What had become of the outputs before an operation made NaN of them; None where little.

    An infinite count leaves no variance; an epsilon of zero makes NaN of it, any other no better.
    """
    try:
        ruin = Damage(damage.task, damage.wanted, specimen.healed(until), apart=False)
    except Exception:
        return None
    return ruin if ruin.part >= RUINED else None


def _ruining(specimen: Specimen, ruin: Damage, expected: list[float]) -> Operation:
    """The earliest operation that is enough to ruin them so."""
    search = Search(expected, ENOUGH**2, None)
    _narrow(search, _told(specimen, ruin), lambda: False)
    return specimen.operations[search.harmful - 1]


def _narrow(
    search: Search,
    done: Callable[[int], float],
    enough: Callable[[], bool],
    among: Container[int] | None = None,
) -> None:
    """Ask for the damage of cuts, as long as there are any to choose from."""
    while not enough() and (cut := search.cut(among)) is not None:
        search.learn(cut, done(cut) ** 2)


def _borders(operations: list[Operation]) -> set[int]:
    """Cuts between operations of different modules."""
    return {b.index for a, b in pairwise(operations) if a.module != b.module}


def _expected(
    operations: list[Operation], shares: Mapping[tuple[str, str], float], entered: list[int]
) -> list[float]:
    """What theory expects of each operation; one that runs several times has its part each time.

    Shares are those of rounding. Inputs that are themselves stored in 16 bits bring an error of
    their own, often the largest: the operations that take them are expected to add as much as any.
    """
    places = [(o.module, o.name) for o in operations]
    times = Counter(places)
    expected = [shares.get(place, 0.0) / times[place] for place in places]
    most = max(expected, default=0.0)
    for index in entered:
        expected[index] += most / len(entered)
    return expected


# -- a program that stops ---------------------------------------------------------------------


class _Calls(TorchFunctionMode):
    """Remembers the innermost torch function that was entered and has not returned."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: str | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except Exception:
            if self.inside is None:
                self.inside = getattr(func, "__name__", None)
            raise


def _stopped(specimen: Specimen, error: Exception) -> Raised:
    """Run it again, to see which torch function it stops in."""
    calls = _Calls()
    try:
        with calls:
            specimen.record()
    except Exception as again:
        found = raised(again, specimen, calls.inside)
        misled, anyway = _misleading(specimen, again)
        return replace(found, misled=misled, anyway=anyway)
    return raised(error, specimen)


def entered(specimen: Specimen) -> str | None:
    """The innermost torch function that the program stops in where nothing follows it."""
    calls = _Calls()
    with suppress(Exception), calls:
        specimen.natively()
    return calls.inside


def _misleading(specimen: Specimen, error: Exception) -> tuple[Operation | None, bool]:
    """The earliest operation whose rounding makes the program stop at a later one, as it did.

    And whether there can be none, because exact values stop it as well.
    """
    operations = specimen.operations
    stopped = specimen.last.raised if specimen.last is not None else None
    harmful = stopped.index if stopped is not None else len(operations)
    anyway = _stops(specimen, 0, error)
    if anyway or not _stops(specimen, harmful, error):
        return None, anyway  # its own arguments are no reason
    harmless = 0
    while harmful - harmless > 1:
        cut = (harmless + harmful) // 2
        if _stops(specimen, cut, error):
            harmful = cut
        else:
            harmless = cut
    return operations[harmful - 1], False


def _stops(specimen: Specimen, until: int, error: Exception) -> bool:
    """Whether the program stops in that way when its first `until` operations alone are rounded.

    In another way, such as at a check that the missing kernel would have spared, is no evidence.
    """
    try:
        specimen.run(until)
    except Exception as other:
        return type(other) is type(error)
    return False


_KERNEL = re.compile(r'"(?P<name>\w+?)(_cpu|_cuda|_out|_stub|_impl)*_?" not implemented')


def raised(error: BaseException, specimen: Specimen, function: str | None = None) -> Raised:
    """Module, operation and line of an exception of the 16-bit program."""
    autopsy = specimen.last
    at = autopsy.raised if autopsy is not None else None
    if at is not None:
        return Raised(at.module, at.name, raised_at(error) or at.source, error)
    named = _KERNEL.search(str(error))
    known = named["name"] if named else getattr(error, "operation", None)
    name = function or known or type(error).__name__
    return Raised(
        module_of(error, specimen.candidate.model), name.strip("_"), raised_at(error), error
    )


def module_of(error: BaseException, model: torch.nn.Module) -> str:
    """The innermost module of the model whose forward an exception passed."""
    names: dict[int, str] = {id(module): name for name, module in model.named_modules()}
    for frame, _ in frames_of(error):
        name = names.get(id(frame.f_locals.get("self")))
        if name is not None:
            return name
    return ""
