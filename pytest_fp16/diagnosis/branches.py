"""Where a program does something else for a dtype: an epsilon of its own, another constant.

Without any rounding the 16-bit program is then not the float32 program. Both are recorded; the
one is played without rounding and held against the other, and what it makes otherwise is put
right as it goes, so that each place where they part is found, and not what lies downstream of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_fp16.diagnosis.comparison import Comparison
from pytest_fp16.diagnosis.damage import ENOUGH, Damage
from pytest_fp16.diagnosis.remedy import Remedy
from pytest_fp16.diagnosis.replay import Replay
from pytest_fp16.diagnosis.tape import Entry, Ref
from pytest_fp16.diagnosis.twin_run import Operation
from pytest_fp16.engine.emulation.emulate import widen
from pytest_fp16.engine.emulation.operations import LOW, flat
from pytest_fp16.engine.emulation.scalars import is_number
from pytest_fp16.report.model import Culprit

#: Root mean square difference, relative, that no float32 arithmetic explains; of constants, too.
_APART = 1e-3
#: Operations that only one of the two programs may have, as casts, in a row.
_AHEAD = 12
_CASTS = frozenset("_to_copy clone alias detach lift_fresh copy".split())


def branched(low: Comparison, rerun: Callable[[Remedy], Comparison]) -> Culprit | None:
    """The operation by which the 16-bit program parts from the float32 program.

    None where they do not part, or one of them cannot be played in this way.

    Args:
        low: the candidate, recorded.
        rerun: puts the same inputs under examination in another precision.
    """
    try:
        return _branched(low, rerun(Remedy("32-true")))
    except Exception:
        return None


def _branched(low: Comparison, wide: Comparison) -> Culprit | None:
    if low.recorded is None:
        return None
    damage = Damage(low.task, low.wanted, low.healed(0))
    if not damage.shown:
        return None
    wide.record()
    with low.replaying():
        followed = _Followed(low, wide)
        if damage.of(followed.play()) >= ENOUGH:
            return None  # they part in other ways than can be followed
        points = list(followed.parted)
        if damage.of(followed.play(set(points))) < ENOUGH:
            return None  # it is not where they part that does the harm
        first, last = 0, len(points)  # what is left of the damage when those before are put right
        while last - first > 1:
            middle = (first + last) // 2
            kept = set(points[middle:])
            if damage.of(followed.play(kept)) >= ENOUGH:
                first = middle
            else:
                last = middle
    if not points:
        return None
    parted = followed.parted[points[first]]
    at = low.operations[points[first]]
    other = parted.constants is not None
    mine, theirs = parted.constants or parted.sizes
    what = "its constant is" if other else "without any rounding it gives values of"
    measure, of = ("", "") if other else (" (root mean square)", "of ")
    return Culprit(
        module=at.module,
        operation=at.name,
        mechanism="precision-loss",
        evidence=f"{what} {mine:.3g}{measure} in the program that "
        f"{low.candidate.precision.dtype_name} runs, and {of}{theirs:.3g} in that of float32",
        source=at.source,
        variant="another constant" if other else "another program",
    )


@dataclass(frozen=True)
class _Parted:
    """Where the two programs part: root mean squares of both, and the constants that differ.

    Attributes:
        sizes: of what either gives.
        constants: None where they are the same, or the operation is in one of the programs only.
    """

    sizes: tuple[float, float]
    constants: tuple[float, float] | None


class _Followed:
    """The 16-bit program without rounding, beside the float32 program.

    Attributes:
        parted: by the index of each operation where they part, how they do.
    """

    def __init__(self, low: Comparison, wide: Comparison) -> None:
        self.low = low
        self.parted: dict[int, _Parted] = {}
        tape = wide.tape
        self.there = [
            (o, _first(tape.entries[p]), p + 1)
            for o, p in zip(wide.operations, tape.starts, strict=True)
            if o.name not in _CASTS
        ]
        self.wide = tape

    def play(self, left: set[int] | None = None) -> Tensor:
        """The output where the operations that part are put right, but for those `left`.

        With `left` given, no others are looked for.
        """
        tape, replay, at = self.low.tape, Replay(self.low.tape, 0, lenient=True), 0
        alone: int | None = None  # an operation that the float32 program does not have
        for position, entry in enumerate(tape.entries):
            replay.play(position)
            if entry.index is not None:
                operation = self.low.operations[entry.index]
                found = self._partner(operation, _first(entry), at)
                if found is None:
                    alone = entry.index if operation.name not in _CASTS and alone is None else alone
                else:
                    at = found + 1
                    self._put_right(replay, entry, found, alone, left)
                    alone = None
            replay.forget(position)
        assert tape.output is not None, "unreachable: the program has ended"
        return replay.value(tape.output).detach().float()

    def _partner(self, operation: Operation, result: Ref | None, at: int) -> int | None:
        """The place of the same operation in the float32 program, from `at` on."""
        if result is None or operation.name in _CASTS:
            return None
        for i in range(at, min(at + _AHEAD, len(self.there))):
            other, theirs, _ = self.there[i]
            same = theirs is not None and theirs.low.shape == result.low.shape
            if same and other.name == operation.name:
                return i
        return None

    def _put_right(
        self, replay: Replay, entry: Entry, there: int, alone: int | None, left: set[int] | None
    ) -> None:
        result, (_, theirs, position) = _first(entry), self.there[there]
        assert result is not None, "unreachable: it has a partner"
        assert theirs is not None, "unreachable: it is a partner"
        assert entry.index is not None, "unreachable: casts have no partners"
        if not result.low.is_floating_point():
            return
        index = entry.index if alone is None else alone
        wanted = widen(self.wide.low_at(theirs, position))
        mine = replay.value(result)
        if theirs.low.dtype in LOW:
            mine.copy_(wanted)  # float32 rounds it, too: as its program asks
            return
        if left is None:
            if not _apart(mine, wanted):
                return
            given = self.wide.entries[position - 1]
            constants = _constants(entry, given) if alone is None else None
            self.parted[index] = _Parted((_size(mine), _size(wanted)), constants)
        elif index in left or index not in self.parted:
            return
        mine.copy_(wanted)


def _constants(mine: Entry, theirs: Entry) -> tuple[float, float] | None:
    """The first number that the same operation is given in the one program, and in the other."""
    pairs = zip(_numbers(mine), _numbers(theirs), strict=False)
    differ = (pair for pair in pairs if abs(pair[0] - pair[1]) > _APART * max(map(abs, pair)))
    return next(differ, None)


def _numbers(entry: Entry) -> list[float]:
    """The numbers that an operation is given, as such or in constant tensors of one."""
    found = []
    for value in flat([*entry.args, *entry.kwargs.values()]):
        if is_number(value):
            found.append(float(value))
        elif isinstance(value, Ref) and value.fixed and not value.made and not value.low.dim():
            found.append(float(value.exact))
    return found


def _first(entry: Entry) -> Ref | None:
    return next((r for r in entry.results if isinstance(r, Ref)), None)


def _apart(mine: Tensor, theirs: Tensor) -> bool:
    if not torch.equal(mine.isfinite(), theirs.isfinite()):
        return True
    away = (mine - theirs).nan_to_num(0.0, 0.0, 0.0)
    return _size(away) > _APART * _size(theirs)


def _size(values: Tensor) -> float:
    return float(values.nan_to_num(0.0, 0.0, 0.0).double().square().mean().sqrt())
