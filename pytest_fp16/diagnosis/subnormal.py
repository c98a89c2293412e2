"""Values below the normal range beside many others whose errors are larger, and do no harm.

A product that is tiny in a few places and divides there is wrong by its own size, while its root
mean square and that of its error are those of the large ones. So the program is asked: it is
played with these values alone not rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_fp16.diagnosis.comparison import Comparison
from pytest_fp16.diagnosis.origin import Origin
from pytest_fp16.diagnosis.replay import Diverged, Replay
from pytest_fp16.diagnosis.tape import Ref, Tape
from pytest_fp16.diagnosis.twin_run import Operation
from pytest_fp16.diagnosis.why import Why, format_of
from pytest_fp16.engine.emulation.emulate import widen
from pytest_fp16.report.model import Culprit
from pytest_fp16.theory.rounding import Format

#: Part of the squared damage born at an operation that is gone without its underflow.
_BY_UNDERFLOW = 0.5


def below_range(comparison: Comparison, origin: Origin, watched: list[Operation]) -> Culprit | None:
    """The culprit where it is the small values alone that do the harm, else None.

    Args:
        comparison, origin: the program, and where the damage was born.
        watched: the program side by side with its exact twin; the origin was measured.
    """
    born = watched[origin.operation.index]
    if born.finding is None or not any(m.small and m.error for m in born.finding.own):
        return None
    fmt, damage = format_of(born.finding), origin.damage
    try:
        before, behind = (damage.of(comparison.healed(born.index + i)) ** 2 for i in (0, 1))
        with comparison.replaying():
            unflushed = _without_underflow(comparison.tape, born.index, fmt).detach().float()
    except Exception:  # it cannot be played so
        return None
    born_here, gone = behind - before, behind - damage.of(unflushed) ** 2
    if born_here <= 0 or gone < _BY_UNDERFLOW * born_here:
        return None
    most = max(born.finding.own, key=lambda m: m.small)
    return Why(
        "underflow",
        born,
        f"{most.small:,} of {most.count:,} values lie below the smallest normal number of "
        f"{fmt.name}, {fmt.smallest_normal:.2g}; with these alone put right, "
        f"{min(1.0, gone / behind):.0%} of the squared error is gone",
    ).culprit()


def _without_underflow(tape: Tape, index: int, fmt: Format) -> Tensor:
    """The main output when an operation keeps what is below the normal range, and all after it is
    not rounded.

    Raises:
        Diverged: that leads the program elsewhere, or the operation writes into memory.
    """
    assert tape.output is not None, "unreachable: the program has ended"
    start = tape.starts[index]
    entry, replay = tape.entries[start], Replay(tape, start)
    if entry.known is None or entry.known.mutated:
        raise Diverged
    for position in range(start, len(tape.entries)):
        replay.play(position)
        if position == start:
            replay.put(start, [_mixed(replay, r, fmt) for r in entry.results if isinstance(r, Ref)])
        replay.forget(position)
    return replay.value(tape.output)


def _mixed(replay: Replay, result: Ref, fmt: Format) -> Tensor:
    """What an operation gave, with the values below the normal range as they should be."""
    value = replay.value(result)
    if value.is_complex() or not value.is_floating_point():
        raise Diverged
    return torch.where(value.abs() < fmt.smallest_normal, value, widen(result.low).to(value.dtype))
