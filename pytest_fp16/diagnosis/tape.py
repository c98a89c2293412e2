"""A 16-bit program, recorded operation by operation, and played again without rounding.

Asked where a failure was born, a diagnosis wants to know what the outputs would be were rounding
to stop at some operation. The values up to there are known; only what follows is computed again,
in float32 and without the model's own Python, which costs less than a plain pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from pytest_fp16.diagnosis.findings import Finding, Pair, examined
from pytest_fp16.diagnosis.measure import all_finite
from pytest_fp16.diagnosis.twin import Twin, each
from pytest_fp16.engine.emulate import widen
from pytest_fp16.engine.operations import Facts, flat

#: Operations that put constants in place, such as the infinities of a mask.
_FILLS = frozenset("full full_like fill masked_fill scalar_tensor where empty empty_like".split())

#: Operations whose results are drawn.
_DRAWS = frozenset(
    """
    rand randn rand_like randn_like randint randint_like randperm normal uniform exponential
    bernoulli multinomial native_dropout geometric cauchy log_normal poisson rrelu_with_noise
    """.split()
)


class Diverged(Exception):  # noqa: N818
    """Exact values would have led the program elsewhere than it went."""


@dataclass(frozen=True)
class Ref:
    """A twin as an operation of the program met it.

    Attributes:
        low, exact: its tensors then; shape and strides may change later.
        made, fixed: its fate then.
    """

    twin: Twin
    low: Tensor
    exact: Tensor
    made: bool
    fixed: bool

    @classmethod
    def to(cls, twin: Twin) -> Ref:
        """A twin as it is now."""
        return cls(twin, twin.low, twin.exact, twin.fate.made, twin.fate.fixed)

    @property
    def place(self) -> int:
        """Where its memory is."""
        return self.low.untyped_storage().data_ptr()


@dataclass(frozen=True)
class Image:
    """A piece of memory as it was before an operation wrote to it, whole and flat."""

    position: int
    low: Tensor
    exact: Tensor
    made: bool


@dataclass
class Entry:
    """One operation of the recording, as float32 takes it.

    Attributes:
        func: None where the program reads a value on the host.
        known: None where it changes the shape of its argument.
        args, kwargs: with references in place of tensors, and float32 in place of 16-bit dtypes.
        index: None for views and changes of shape.
        random: its results are drawn, so they are taken as they were.
        results: with references in place of tensors.
    """

    func: OpOverload | None
    known: Facts | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    index: int | None
    random: bool = False
    results: list[Any] = field(default_factory=list)


class Tape:
    """The recording.

    Attributes:
        entries: in the order they ran.
        starts: position of the entry of each counted operation.
        output: the program's main output.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.starts: list[int] = []
        self.images: dict[int, list[Image]] = {}
        self.output: Ref | None = None

    # -- recording ----------------------------------------------------------------------------

    def begin(
        self, func: OpOverload, known: Facts | None, args: Any, kwargs: Any, index: int | None
    ) -> Entry:
        """Note an operation that is about to run."""
        if index is not None:
            self.starts.append(len(self.entries))
        entry = Entry(
            func,
            known,
            tuple(widen(each(a, Ref.to)) for a in args),
            {k: widen(each(v, Ref.to)) for k, v in kwargs.items()},
            index,
            known is not None and known.name in _DRAWS,
        )
        self.entries.append(entry)
        return entry

    def remember(self, written: list[Twin]) -> None:
        """Keep what the operation begun last is going to overwrite."""
        for twin in written:
            ref = Ref.to(twin)
            image = Image(
                len(self.entries) - 1, _memory(ref.low).clone(), _memory(ref.exact).clone(),
                ref.made,
            )  # fmt: skip
            self.images.setdefault(ref.place, []).append(image)

    def end(self, entry: Entry, results: Any) -> Any:
        """Note what an operation gave."""
        entry.results = [Ref.to(r) if isinstance(r, Twin) else r for r in flat(results)]
        for result in entry.results:
            if isinstance(result, Ref):
                result.twin.on_read = self.read
        return results

    def read(self, twin: Twin) -> None:
        """The program reads values on the host, past the dispatcher."""
        self.entries.append(Entry(None, None, (Ref.to(twin),), {}, None))

    def image(self, place: int, position: int) -> Image | None:
        """The first image of some memory from a position on."""
        images = self.images.get(place, ()) if self.images else ()
        return next((i for i in images if i.position >= position), None)

    def low_at(self, ref: Ref, position: int) -> Tensor:
        """Values of the 16-bit program just before a position."""
        image = self.image(ref.place, position)
        return ref.low if image is None else _part(image.low, ref.low)

    def first_lost(self) -> int | None:
        """The first operation that gave NaN or infinity of finite arguments, by its index."""
        for index, position in enumerate(self.starts):
            entry = self.entries[position]
            if entry.known is not None and entry.known.name in _FILLS:
                continue
            if self._finite(entry.results, position + 1):
                continue
            if self._finite([*entry.args, *entry.kwargs.values()], position):
                return index
        return None

    def _finite(self, values: Any, position: int) -> bool:
        refs = [v for v in flat(values) if isinstance(v, Ref) and v.low.is_floating_point()]
        return all(all_finite(self.low_at(ref, position)) for ref in refs)

    # -- playing ------------------------------------------------------------------------------

    def healed(self, until: int) -> Tensor:
        """The main output when operations from that index on are not rounded.

        Raises:
            Diverged: exact values would have led the program elsewhere.
            Exception: an operation does not take exact values.
        """
        assert self.output is not None, "unreachable: the program has ended"
        end = len(self.entries)
        start = self.starts[until] if until < len(self.starts) else end
        replay = Replay(self, start)
        for position in range(start, end):
            replay.play(position)
        return replay.value(self.output)

    def watched(self, watch: Callable[[int], bool]) -> dict[int, Finding]:
        """Measure chosen operations against the exact program, which goes where this one went."""
        wanted = [i for i in range(len(self.starts)) if watch(i)]
        found: dict[int, Finding] = {}
        replay = Replay(self, 0, lenient=True)
        last = self.starts[wanted[-1]] if wanted else -1
        for position in range(last + 1):
            index = self.entries[position].index
            if index is not None and watch(index):
                found[index] = replay.examine(position)
            else:
                replay.play(position)
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
        return _part(self.memory[place], like)

    def play(self, position: int) -> None:
        """Run one entry."""
        entry = self.tape.entries[position]
        if entry.func is None:
            self._read(entry.args[0])
        elif entry.index is None:
            self._reshape(entry)
        else:
            self._operate(entry)

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

    def _operate(self, entry: Entry) -> None:
        assert entry.func is not None, "unreachable: play() has looked"
        assert entry.known is not None, "unreachable: play() has looked"
        if entry.random:
            self._keep(entry, _recorded(entry))
            return
        args, kwargs = self._arguments(entry)
        for i in entry.known.statistics:
            if isinstance(args[i], Tensor):
                args = (*args[:i], args[i].clone(), *args[i + 1 :])
        try:
            out = entry.func(*args, **kwargs)
        except Exception:
            if not self.lenient:
                raise
            out = _recorded(entry)
        self._keep(entry, out)

    def _arguments(self, entry: Entry) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args = tuple(_filled(a, self.value) for a in entry.args)
        return args, {k: _filled(v, self.value) for k, v in entry.kwargs.items()}

    def _keep(self, entry: Entry, out: Any) -> None:
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
            self.values[id(result.twin)] = widen(item)

    def examine(self, position: int) -> Finding:
        """Run one entry and measure it."""
        entry = self.tape.entries[position]
        assert entry.func is not None, "unreachable: it has an index"
        assert entry.known is not None, "unreachable: it has an index"

        def before(ref: Ref) -> Pair:
            return self._pair(ref, position)

        args = tuple(_filled(a, before) for a in entry.args)
        kwargs = {k: _filled(v, before) for k, v in entry.kwargs.items()}
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


def _filled(value: Any, of: Callable[[Ref], Any]) -> Any:
    if isinstance(value, Ref):
        return of(value)
    if isinstance(value, (list, tuple)):
        return [_filled(item, of) for item in value]
    return value


def _recorded(entry: Entry) -> list[Any]:
    return [r.low.clone() if isinstance(r, Ref) else r for r in entry.results]


def _same(item: Any, recorded: Any) -> bool:
    if isinstance(recorded, Tensor):
        return isinstance(item, Tensor) and torch.equal(item, recorded)
    return bool(item == recorded or (item != item and recorded != recorded))


def _memory(tensor: Tensor) -> Tensor:
    """The whole memory a tensor lies in, flat."""
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())


def _part(memory: Tensor, like: Tensor) -> Tensor:
    return memory.as_strided(like.shape, like.stride(), like.storage_offset())


def _local(func: OpOverload, known: Facts, args: Any, kwargs: Any) -> Any:
    """The operation in float32 on the 16-bit program's own operands: what it should have given."""
    if known.random or known.mutated_names:
        return None
    wide = [_copied(widen(_low(a))) for a in args]
    try:
        return func(*wide, **{k: widen(_low(v)) for k, v in kwargs.items()})
    except Exception:
        return None


def _low(value: Any) -> Any:
    if isinstance(value, Pair):
        return value.low
    return [_low(item) for item in value] if isinstance(value, list) else value


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return [_copied(item) for item in value] if isinstance(value, list) else value
