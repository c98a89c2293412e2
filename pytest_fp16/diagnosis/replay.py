"""A recorded program, played again without rounding.

Asked where a failure was born, a diagnosis wants to know what the outputs would be were rounding
to stop at some operation. The values up to there are known; only what follows is computed again,
in float32 and without the model's own Python, which costs less than a plain pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from pytest_fp16.diagnosis.findings import Finding, Pair, examined
from pytest_fp16.diagnosis.tape import Entry, Ref, Tape, part
from pytest_fp16.engine.emulation.emulate import widen
from pytest_fp16.engine.emulation.operations import Facts, each, flat
from pytest_fp16.engine.emulation.wide import run_wide


class Diverged(Exception):  # noqa: N818
    """Exact values would have led the program elsewhere than it went."""


def healed(tape: Tape, until: int) -> Tensor:
    """The main output when operations from that index on are not rounded.

    Raises:
        Diverged: exact values would have led the program elsewhere.
        Exception: an operation does not take exact values.
    """
    assert tape.output is not None, "unreachable: the program has ended"
    end = len(tape.entries)
    start = tape.starts[until] if until < len(tape.starts) else end
    replay = Replay(tape, start)
    for position in range(start, end):
        replay.play(position)
        replay.forget(position)
    return replay.value(tape.output)


def repaired(tape: Tape, indices: Collection[int]) -> Tensor:
    """The main output when operations after the first of those are not rounded, and all are exact.

    What else the program had by then, the operands of the first one included, stays as it was.

    Raises:
        Diverged: exact values would have led the program elsewhere.
        Exception: an operation does not take exact values.
    """
    assert tape.output is not None, "unreachable: the program has ended"
    exact = exact_results(tape, indices)
    start = tape.starts[min(indices)]
    replay = Replay(tape, start + 1)
    for position in range(start, len(tape.entries)):
        index = tape.entries[position].index
        if index is not None and index in exact:
            replay.put(position, exact[index])
        else:
            replay.play(position)
        replay.forget(position)
    return replay.value(tape.output)


def exact_results(tape: Tape, indices: Collection[int]) -> dict[int, list[Tensor]]:
    """What operations give in the exact program, which goes where this one went.

    Raises:
        Diverged: one is written into memory, whose views that were taken before would not know.
    """
    found: dict[int, list[Tensor]] = {}
    exact = Replay(tape, 0, lenient=True)
    for position in range(tape.starts[max(indices)] + 1):
        entry = tape.entries[position]
        exact.play(position)
        if entry.index is not None and entry.index in indices:
            if entry.known is not None and (entry.known.mutated or entry.known.mutated_names):
                raise Diverged
            values = (exact.value(r) for r in entry.results if isinstance(r, Ref))
            found[entry.index] = [value.clone() for value in values]
        exact.forget(position)
    return found


def watched(tape: Tape, watch: Callable[[int], bool]) -> dict[int, Finding]:
    """Measure chosen operations against the exact program, which goes where this one went."""
    wanted = [i for i in range(len(tape.starts)) if watch(i)]
    found: dict[int, Finding] = {}
    replay = Replay(tape, 0, lenient=True)
    last = tape.starts[wanted[-1]] if wanted else -1
    for position in range(last + 1):
        index = tape.entries[position].index
        if index is not None and watch(index):
            found[index] = replay.examine(position)
        else:
            replay.play(position)
        replay.forget(position)
    return found


class Replay:
    """The program from one position of its recording on, in float32.

    Args:
        tape: the recording.
        start: what operations before it made is taken as the 16-bit program had it.
        lenient: where exact values lead elsewhere, go where the 16-bit program went.
    """

    def __init__(self, tape: Tape, start: int, lenient: bool = False) -> None:
        self.tape = tape
        self.start = start
        self.lenient = lenient
        self.values: dict[int, Tensor] = {}
        self.memory: dict[int, Tensor] = {}

    def value(self, ref: Ref) -> Tensor:
        """The exact value of a twin."""
        known = self.values.get(id(ref.twin))
        if known is None:
            known = self.values[id(ref.twin)] = self._from_recording(ref)
        return known

    def _from_recording(self, ref: Ref) -> Tensor:
        image = self.tape.image(ref.place, self.start)
        if image is None:
            return widen(ref.low) if ref.made else ref.exact
        # It is written to later: views of it must share the memory that is.
        like = ref.low if image.made else ref.exact
        place = ref.place
        if place not in self.memory:
            self.memory[place] = widen(image.low if image.made else image.exact).clone()
        return part(self.memory[place], like)

    def play(self, position: int) -> None:
        """Run one entry."""
        entry = self.tape.entries[position]
        if entry.func is None:
            self._read(entry.args[0])
        elif entry.index is None:
            self._reshape(entry)
        else:
            self._operate(position)

    def put(self, position: int, values: list[Tensor]) -> None:
        """Take these for what an entry gave."""
        results = (r for r in self.tape.entries[position].results if isinstance(r, Ref))
        for result, value in zip(results, values, strict=True):
            if self.tape.image(result.place, position + 1) is None:
                self.values[id(result.twin)] = value
            else:  # what is written to later is a memory of this replay's own
                self.value(result).copy_(value)

    def forget(self, position: int) -> None:
        """Let go of what no entry after this one takes, so that its memory is used again."""
        for twin in self.tape.spent[position]:
            self.values.pop(twin, None)

    def _read(self, ref: Ref) -> None:
        same = torch.equal(self.value(ref).to(ref.low.dtype), ref.low)
        if not same and not self.lenient:
            raise Diverged

    def _reshape(self, entry: Entry) -> None:
        """A view, or a change of shape in place, of what this replay has made."""
        source = entry.args[0]
        if id(source.twin) not in self.values:
            return  # its views are taken from the recording when they are asked for
        args, kwargs = self._arguments(entry)
        if entry.known is None:
            args = (args[0].view_as(args[0]), *args[1:])
            entry.func(*args, **kwargs)  # type: ignore[misc]
            self.values[id(source.twin)] = args[0]
            return
        self._keep(entry, entry.func(*args, **kwargs))  # type: ignore[misc]

    def _operate(self, position: int) -> None:
        entry = self.tape.entries[position]
        assert entry.func is not None, "unreachable: play() has looked"
        assert entry.known is not None, "unreachable: play() has looked"
        if entry.random:
            self._keep(entry, self._recorded(position))
            return
        args, kwargs = self._arguments(entry)
        for i in entry.known.statistics:
            if isinstance(args[i], Tensor):
                args = (*args[:i], args[i].clone(), *args[i + 1 :])
        try:
            out = run_wide(entry.func, args, kwargs)
        except Exception:
            if not self.lenient:
                raise
            out = self._recorded(position)
        self._keep(entry, out, made=True)

    def _recorded(self, position: int) -> list[Any]:
        """What the 16-bit program had when an operation had run; memory that it wrote holds it."""
        entry = self.tape.entries[position]
        assert entry.known is not None, "unreachable: it has an index"
        places = (entry.args[i] for i in entry.known.mutated if i < len(entry.args))
        written = {id(ref.twin) for ref in flat(list(places)) if isinstance(ref, Ref)}
        made: list[Any] = []
        for result in entry.results:
            if not isinstance(result, Ref):
                made.append(result)
                continue
            low = widen(self.tape.low_at(result, position + 1))
            memory = self.value(result) if id(result.twin) in written else low
            same = memory is not low and memory.shape == low.shape
            made.append(memory.copy_(low) if same else low.clone())
        return made

    def _arguments(self, entry: Entry) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args = tuple(each(a, self.value, Ref) for a in entry.args)
        return args, {k: each(v, self.value, Ref) for k, v in entry.kwargs.items()}

    def _keep(self, entry: Entry, out: Any, made: bool = False) -> None:
        """Remember what an entry gave; `made` says that it is no view of what was there."""
        made = made and entry.known is not None and not entry.known.mutated
        items = [out] if isinstance(out, Tensor) else flat(out)
        for i, result in enumerate(entry.results):
            item = items[i] if i < len(items) else None
            if not isinstance(result, Ref):
                if not self.lenient and not _same(item, result):
                    raise Diverged
                continue
            if not isinstance(item, Tensor) or item.shape != result.low.shape:
                if not self.lenient:
                    raise Diverged
                item = result.low.clone()
            item = widen(item)
            self.values[id(result.twin)] = _laid_out(item, result.low) if made else item

    def examine(self, position: int) -> Finding:
        """Run one entry and measure it."""
        entry = self.tape.entries[position]
        assert entry.func is not None, "unreachable: it has an index"
        assert entry.known is not None, "unreachable: it has an index"

        def before(ref: Ref) -> Pair:
            return self._pair(ref, position)

        args = tuple(each(a, before, Ref) for a in entry.args)
        kwargs = {k: each(v, before, Ref) for k, v in entry.kwargs.items()}
        local = _local(entry.func, entry.known, args, kwargs)
        self.play(position)
        after = position + 1
        results = [self._pair(r, after) if isinstance(r, Ref) else r for r in entry.results]
        return examined(entry.func, entry.known.name, args, kwargs, results, local)

    def _pair(self, ref: Ref, position: int) -> Pair:
        exact = self.value(ref)
        if self.tape.image(ref.place, position) is not None:  # it is written to later
            exact = exact.clone()
        low = self.tape.low_at(ref, position)
        return Pair(low, exact, ref.twin.dtype, ref.fixed, ref.made)


def _laid_out(value: Tensor, like: Tensor) -> Tensor:
    """A value in memory as the 16-bit kernel left it: the program went on to take views of that.

    Fused attention leaves heads and positions the other way round than its float32 stand-in.
    """
    if value.layout is not torch.strided or like.layout is not torch.strided:
        return value
    if value.stride() == like.stride() or 0 in like.stride():
        return value
    return torch.empty_strided(
        like.shape, like.stride(), dtype=value.dtype, device=value.device
    ).copy_(value)


def _same(item: Any, recorded: Any) -> bool:
    if isinstance(recorded, Tensor):
        return isinstance(item, Tensor) and torch.equal(item, recorded)
    return bool(item == recorded or (item != item and recorded != recorded))


def _local(func: OpOverload, known: Facts, args: Any, kwargs: Any) -> Any:
    """The operation in float32 on the 16-bit program's own operands: what it should have given."""
    if known.random or known.mutated_names:
        return None

    def low(value: Any) -> Any:
        return widen(each(value, lambda pair: pair.low, Pair))

    wide = [each(low(a), Tensor.clone, Tensor) for a in args]
    try:
        return run_wide(func, wide, {k: low(v) for k, v in kwargs.items()})
    except Exception:
        return None
