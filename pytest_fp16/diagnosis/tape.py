"""A 16-bit program, recorded operation by operation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakMethod

import torch
from torch import Tensor
from torch._ops import OpOverload

from pytest_fp16.diagnosis.measure import all_finite
from pytest_fp16.diagnosis.twin import Twin
from pytest_fp16.engine.emulation.operations import LOW, WIDE, Facts, flat

#: Operations that put constants in place, such as the infinities of a mask.
_FILLS = frozenset("full full_like fill masked_fill scalar_tensor where empty empty_like".split())


@dataclass(slots=True)
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
        # Weakly, as a cycle through a tensor's attributes may never be collected.
        self._reader = WeakMethod(self.read)
        self._written: dict[int, Ref] = {}
        self._spent: list[list[int]] | None = None

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
            tuple(_noted(a) for a in args),
            {k: _noted(v) for k, v in kwargs.items()},
            index,
            known is not None and known.random,
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
            self._written[ref.place] = ref

    def close(self) -> None:
        """Keep what the program has put into memory of the model's, which is restored now."""
        for place, images in self.images.items():
            if not images[0].made:
                ref = self._written[place]
                low, exact = _memory(ref.low).clone(), _memory(ref.exact).clone()
                images.append(Image(len(self.entries), low, exact, True))

    def end(self, entry: Entry, results: Any) -> Any:
        """Note what an operation gave."""
        entry.results = [Ref.to(r) if isinstance(r, Twin) else r for r in flat(results)]
        for result in entry.results:
            if isinstance(result, Ref):
                result.twin.on_read = self._reader
        return results

    def read(self, twin: Twin) -> None:
        """The program reads values on the host, past the dispatcher."""
        self.entries.append(Entry(None, None, (Ref.to(twin),), {}, None))

    @property
    def spent(self) -> list[list[int]]:
        """For each entry of a program that has ended: ids of the twins that no later one takes."""
        if self._spent is None:
            last: dict[int, int] = {}
            for position, entry in enumerate(self.entries):
                taken = [*entry.args, *entry.kwargs.values(), *entry.results]
                last.update((id(r.twin), position) for r in flat(taken) if isinstance(r, Ref))
            if self.output is not None:
                last.pop(id(self.output.twin), None)
            self._spent = [[] for _ in self.entries]
            for twin, position in last.items():
                self._spent[position].append(twin)
        return self._spent

    def image(self, place: int, position: int) -> Image | None:
        """The first image of some memory from a position on."""
        images = self.images.get(place, ()) if self.images else ()
        return next((i for i in images if i.position >= position), None)

    def low_at(self, ref: Ref, position: int) -> Tensor:
        """Values of the 16-bit program just before a position."""
        image = self.image(ref.place, position)
        return ref.low if image is None else part(image.low, ref.low)

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

    def entered(self) -> list[int]:
        """The operations that take inputs stored in 16 bits, by their indices."""
        found = []
        for index, position in enumerate(self.starts):
            refs = (v for v in flat(list(self.entries[position].args)) if isinstance(v, Ref))
            if any(not (r.made or r.fixed) and r.low.dtype in LOW for r in refs):
                found.append(index)
        return found

    def _finite(self, values: Any, position: int) -> bool:
        refs = [v for v in flat(values) if isinstance(v, Ref) and v.low.is_floating_point()]
        return all(all_finite(self.low_at(ref, position)) for ref in refs)


def _noted(value: Any) -> Any:
    """An argument as an entry has it."""
    if isinstance(value, Twin):
        return Ref.to(value)
    if isinstance(value, (list, tuple)):
        return [_noted(item) for item in value]
    return WIDE.get(value, value) if isinstance(value, torch.dtype) else value


def _memory(tensor: Tensor) -> Tensor:
    """The whole memory a tensor lies in, flat."""
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())


def part(memory: Tensor, like: Tensor) -> Tensor:
    """The part of some flat memory that `like` has of its own."""
    return memory.as_strided(like.shape, like.stride(), like.storage_offset())
