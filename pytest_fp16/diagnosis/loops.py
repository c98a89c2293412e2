"""What a loop does again and again, where no single operation of it does the damage.

The origin is then the step at which enough has come together, and most of its error came with its
operands. Each operation of the loop is asked for instead, in all of its steps at once: the program
is played with the rounding of that one alone, or of one stored value that it takes at every step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable

from torch import Tensor

from pytest_fp16.diagnosis.comparison import Comparison
from pytest_fp16.diagnosis.findings import Finding
from pytest_fp16.diagnosis.mechanism import because
from pytest_fp16.diagnosis.origin import Origin
from pytest_fp16.diagnosis.replay import Replay
from pytest_fp16.diagnosis.tape import Ref, Tape
from pytest_fp16.diagnosis.twin_run import Operation
from pytest_fp16.engine.emulation.emulate import widen
from pytest_fp16.engine.emulation.operations import LOW, flat
from pytest_fp16.report.model import Culprit

#: Times that an operation runs at one line to be one of a loop.
_LOOP = 8
#: Part of the squared damage that one of them must do by itself.
_BY_ITSELF = 0.25
#: Operations of a loop, and values that it takes, that are asked for.
_MOST = 16


def inherited(finding: Finding) -> bool:
    """Whether most of the error that an operation leaves came with its operands."""
    own = sum(m.error**2 for m in finding.own)
    return bool(finding.own) and own < 0.25 * sum(m.error**2 for m in finding.results)


def repeated(comparison: Comparison, origin: Origin, operations: list[Operation]) -> Culprit | None:
    """What the loop that the origin is a step of does, or None where it is no such step."""
    born = operations[origin.operation.index]
    if origin.damage.lost.any() or born.finding is None or not inherited(born.finding):
        return None
    tape = comparison.tape
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for o in operations:
        if o.module == born.module:
            groups[o.name, o.source, _shapes(tape, o.index)].append(o.index)
    asked = [found for found in groups.values() if len(found) >= _LOOP][:_MOST]
    if not any(born.index in group for group in asked):
        return None
    with comparison.replaying():
        rounds = [(_done(origin, tape, set(g), None), g) for g in asked]
        stored = [
            (_done(origin, tape, set(), place), index)
            for place, index in _stored(tape, {i for g in asked for i in g})
        ]
    kept, taker = max(stored, default=(0.0, 0))
    most, group, found = _worst(comparison, rounds)
    if max(most, kept) < _BY_ITSELF:
        return None
    if kept > most:
        return _coarse(comparison, taker, len(asked[0]))
    culprit = because(found[group[-1]], found)
    if culprit is None:
        return None
    times = f"; its roundings alone, {len(group)} of them, do {most**0.5:.0%} of the damage"
    return culprit.model_copy(update={"evidence": culprit.evidence + times})


def _worst(
    comparison: Comparison, rounds: list[tuple[float, list[int]]]
) -> tuple[float, list[int], list[Operation]]:
    """The operations that do most by themselves, of those that round in the program as it is.

    What is handed on exactly, such as a state that is reset by a product with zero or one, is not
    rounded there: in float32 it is another number, which 16 bits would not hold.
    """
    for most, group in sorted(rounds, reverse=True):
        if most < _BY_ITSELF:
            break
        few = set(group[-_LOOP:])
        found = comparison.side_by_side(few.__contains__)
        findings = [found[i].finding for i in few]
        if any(m.error > 0 for f in findings if f is not None for m in f.own):
            return most, group, found
    return 0.0, [], []


def _shapes(tape: Tape, index: int) -> Hashable:
    results = tape.entries[tape.starts[index]].results
    return tuple(r.low.shape for r in results if isinstance(r, Ref))


def _done(origin: Origin, tape: Tape, rounded: set[int], place: int | None) -> float:
    """The squared damage by the rounding of those operations, or of what is stored there."""
    return origin.damage.of(_alone(tape, rounded, place)) ** 2


class _Alone(Replay):
    """The program in float32, but for a stored value, which is taken as 16 bits have it."""

    def __init__(self, tape: Tape, place: int | None) -> None:
        super().__init__(tape, 0, lenient=True)
        self.stored = place

    def _from_recording(self, ref: Ref) -> Tensor:
        if not ref.made and ref.place == self.stored:
            stored: Tensor = widen(ref.low)
            return stored
        return super()._from_recording(ref)


def _alone(tape: Tape, rounded: set[int], place: int | None) -> Tensor:
    """The output where nothing else is rounded."""
    assert tape.output is not None, "unreachable: the program has ended"
    replay = _Alone(tape, place)
    for position, entry in enumerate(tape.entries):
        replay.play(position)
        if entry.index in rounded:
            for result in entry.results:
                if isinstance(result, Ref) and result.low.dtype in LOW:
                    value = replay.value(result)
                    value.copy_(value.to(result.low.dtype))
        replay.forget(position)
    output: Tensor = replay.value(tape.output).detach().float()
    return output


def _stored(tape: Tape, loop: set[int]) -> list[tuple[int, int]]:
    """Where values are stored that operations of the loop take, and the first that does."""
    takers: dict[int, list[int]] = defaultdict(list)
    for index in sorted(loop):
        entry = tape.entries[tape.starts[index]]
        for ref in flat([*entry.args, *entry.kwargs.values()]):
            if isinstance(ref, Ref) and ref.fixed and not ref.made and ref.low.dtype in LOW:
                takers[ref.place].append(index)
    found = [(place, its[0]) for place, its in takers.items() if len(its) >= _LOOP]
    return found[:_MOST]


def _coarse(comparison: Comparison, taker: int, times: int) -> Culprit | None:
    """The culprit where a stored value is taken at every step."""
    at = comparison.side_by_side(taker.__eq__)[taker]
    if at.finding is None:
        return None
    kept = [m for m in at.finding.operands if m.fixed and not m.made]
    worst = max(kept, key=lambda m: m.relative, default=None)
    if worst is None:
        return None
    return Culprit(
        module=at.module,
        operation=at.name,
        mechanism="precision-loss",
        evidence=f"{times} times over it takes stored values of {worst.value:.4g} (root mean "
        f"square) that are off by {worst.error:.2g} in 16 bits",
        source=at.source,
        variant="stored digits",
    )
