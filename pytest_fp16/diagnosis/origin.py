"""Where it was born: the earliest operation whose 16-bit result is enough to do the damage.

Operations before it run in 16 bits without harm; with it, and everything after it exact, the
outputs are as wrong as they are. So it is the origin, neither the first place that shows a NaN
nor what lies downstream, and a mask that becomes −inf without consequence is passed over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from pytest_fp16.diagnosis.comparison import Comparison
from pytest_fp16.diagnosis.damage import ENOUGH, Damage
from pytest_fp16.diagnosis.search import Search
from pytest_fp16.diagnosis.stop import Raised, stopped
from pytest_fp16.diagnosis.twin_run import Operation
from pytest_fp16.engine.device import is_out_of_memory
from pytest_fp16.theory.rounding import FORMATS

#: Part of the squared damage that must be born in the origin's module, or nobody is to blame.
CONCENTRATED = 0.1
#: Part of the decisions lost to equal numbers that 16 bits may lose before these become equal.
SOUND = 0.1
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
        lost: the first operation that made NaN or infinity of finite values, by its index; None
            where none did.
    """

    operation: Operation
    operations: list[Operation]
    damage: Damage
    concentrated: bool
    unrounded: bool = False
    lost: int | None = None


def find_origin(
    comparison: Comparison,
    shares: Mapping[tuple[str, str], float] | None = None,
    module_alone: bool = False,
) -> Origin | Raised | None:
    """The origin, or None where the failure does not show on these inputs.

    Args:
        comparison: the candidate on a few inputs.
        shares: what theory expects each (module, operation) to contribute to the error; a guess
            that only decides where the search looks first, and the answer where damage is spread
            over many modules and nothing was lost.
        module_alone: any operation of the module will do.

    Raises:
        Exception: there is no memory to record the program on these inputs.
    """
    try:
        failing = comparison.record()
    except Exception as error:
        if is_out_of_memory(error):  # of ours, as the candidate ran on more inputs
            raise
        return stopped(comparison, error)
    fmt = FORMATS[comparison.candidate.precision.dtype]
    damage = Damage(comparison.task, comparison.wanted, failing, fmt=fmt)
    if not damage.shown or not comparison.operations:
        return None
    if damage.merged is not None:
        found = _born(comparison, damage, shares or {}, module_alone)
        if damage.of(comparison.healed(found.operation.index)) <= SOUND:
            return found
        # Errors before it lose them too: a close decision, as there are some.
        damage = Damage(comparison.task, comparison.wanted, failing)
    return _born(comparison, damage, shares or {}, module_alone)


def _born(
    comparison: Comparison,
    damage: Damage,
    shares: Mapping[tuple[str, str], float],
    module_alone: bool,
) -> Origin:
    """Cut the recorded program until the operation is known, or nobody is to blame."""
    operations = comparison.operations
    done = _told(comparison, damage)
    lost = comparison.tape.first_lost()
    expected = _expected(operations, shares, comparison.tape.entered())
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
        ruin = _ruin(comparison, damage, found.index)
        if ruin is not None:
            damage, found = ruin, _ruining(comparison, ruin, expected[: found.index])
    return Origin(found, operations, damage, concentrated, unrounded, lost)


def _told(comparison: Comparison, damage: Damage) -> Callable[[int], float]:
    """The damage of cuts, each asked for once."""

    @cache
    def done(until: int) -> float:
        try:
            return damage.of(comparison.healed(until))
        except Exception:  # exact values lead elsewhere: nothing can be said of this cut
            return 1.0

    return done


def _ruin(comparison: Comparison, damage: Damage, until: int) -> Damage | None:
    """What had become of the outputs before an operation made NaN of them; None where little.

    An infinite count leaves no variance; an epsilon of zero makes NaN of it, any other no better.
    Outputs that are so with nothing rounded were ruined by a dtype, not by an operation.
    """
    try:
        ruin = Damage(damage.task, damage.wanted, comparison.healed(until), apart=False)
        ruined = ruin.part >= RUINED and ruin.of(comparison.healed(0)) < ENOUGH
    except Exception:
        return None
    return ruin if ruined else None


def _ruining(comparison: Comparison, ruin: Damage, expected: list[float]) -> Operation:
    """The earliest operation that is enough to ruin them so."""
    search = Search(expected, ENOUGH**2, None)
    _narrow(search, _told(comparison, ruin), lambda: False)
    return comparison.operations[search.harmful - 1]


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

    Shares are those of rounding. Inputs stored in 16 bits bring an error of their own, often the
    largest: the operations that take them are expected to add as much as any.
    """
    places = [(o.module, o.name) for o in operations]
    times = Counter(places)
    expected = [shares.get(place, 0.0) / times[place] for place in places]
    most = max(expected, default=0.0)
    for index in entered:
        expected[index] += most / len(entered)
    return expected
