"""The 16-bit program, followed operation by operation.

`TwinRun` runs a program in one of two ways. Recorded, every operation runs in 16 bits and goes on
a tape. Or *healed*: the first so many operations run in 16 bits and the rest without rounding, so
that what goes wrong in the outputs was born in those first operations. (A tape plays that faster,
unless exact values lead the program elsewhere.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from pytest_fp16.diagnosis.findings import Finding
from pytest_fp16.diagnosis.tape import Entry, Tape
from pytest_fp16.diagnosis.twin import Fate, Twin, constant, exact, low, twins
from pytest_fp16.engine.emulation.emulate import Emulation, widen
from pytest_fp16.engine.emulation.interception import READ_ON_HOST, Interception, place
from pytest_fp16.engine.emulation.nominal import doubled, dtype_of, nominal_dtypes, promoted_low
from pytest_fp16.engine.emulation.operations import (
    LOW,
    Facts,
    flat,
    rebuild,
)
from pytest_fp16.engine.emulation.wide import run_wide
from pytest_fp16.engine.source import Line, user_line

#: Operations that only move values: an error of storage they carry is its consumer's, not theirs.
_MOVES = frozenset(
    """
    _reshape_alias _unsafe_view alias cat clone contiguous expand_copy flip im2col index
    index_select lift lift_fresh lift_fresh_copy narrow_copy permute_copy pixel_shuffle
    pixel_unshuffle repeat repeat_interleave roll rot90 select_backward slice_backward split_copy
    split_with_sizes_copy stack tril triu unbind_copy unfold_copy unsafe_split
    unsafe_split_with_sizes gather take _to_copy
    """.split()
)


@dataclass
class Operation:
    """One operation of the program, in the order they ran.

    Attributes:
        index: its place among all counted operations.
        name: its ATen name.
        module: qualified name of the module that ran it.
        line: the line of the user's code that ran it, where it was looked up.
        finding: what was measured, where it was watched.
    """

    index: int
    name: str
    module: str
    line: Line | None = None
    finding: Finding | None = None

    @property
    def source(self) -> str | None:
        """File and line of the user's code."""
        return str(self.line) if self.line is not None else None


@dataclass
class Program:
    """What a twin run needs to know of the program it runs.

    Attributes:
        emulation: computes a 16-bit operation as the target does; None where it runs natively.
        exact_of: float32 twins of the model's 16-bit parameters and buffers, by id, each with the
            tensor itself.
        where: returns the qualified name of the module that is running.
        adopted: twins of the plain tensors met in one run, by their place.
        writes: it writes to its weights, whose exact twins then are each run's own.
        mixed: autocast casts what the program hands to an operation; where it does not, a cast to
            16 bits is the program's own.
    """

    emulation: Emulation | None
    exact_of: dict[int, tuple[Tensor, Tensor]]
    where: Callable[[], str]
    adopted: dict[Hashable, tuple[Tensor, Twin]] = field(default_factory=dict)
    writes: bool = False
    mixed: bool = True


class TwinRun(Interception):
    """Run one program.

    Args:
        program: the program.
        until: operations of a smaller index run in 16 bits, the others without rounding.
        tape: records the program, which then runs in 16 bits throughout; or None.
        results: of one operation, by its index: what its tensors are instead.
    """

    def __init__(
        self,
        program: Program,
        until: float = math.inf,
        tape: Tape | None = None,
        results: tuple[int, list[Tensor]] | None = None,
    ) -> None:
        super().__init__(program.emulation.target if program.emulation is not None else None)
        self.program = program
        self.until = math.inf if tape is not None else until
        self.tape = tape
        self.results = results
        self.operations: list[Operation] = []
        self.raised: Operation | None = None
        program.adopted.clear()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        if self.tape is not None and exception[0] is None:
            self.tape.close()

    # -- the interception ---------------------------------------------------------------------

    def adopt(self, value: Tensor) -> Twin:
        """A twin of a plain tensor; of a parameter or buffer, with the reference's own."""
        key = place(value)
        made = self.program.adopted.get(key)
        if made is not None:
            return made[1]
        own = self.program.exact_of.get(id(value))
        wide = own[1] if own is not None and own[0] is value else constant(value)
        written = self.program.writes or not isinstance(value, torch.nn.Parameter)
        if written and wide is not value:  # a buffer may be, by any program
            wide = wide.clone()
        twin = Twin(value, wide, Fate(made=False, fixed=True), value.dtype)
        self.program.adopted[key] = (value, twin)
        return twin

    def adopt_stated(self, value: Tensor, wide: Tensor) -> Twin:
        """A twin of a constant, with the numbers that the program was told to make it of."""
        twin = Twin(value, wide, Fate(made=False, fixed=True), value.dtype)
        self.program.adopted[place(value)] = (value, twin)
        return twin

    def view(self, func: OpOverload, known: Facts, args: Any, kwargs: Any) -> Any:
        """A view, made in both worlds."""
        source = args[0]
        entry = self._begin(func, known, args, kwargs, None) if source.fate.made else None
        try:
            lows = flat(made := func(*low(args), **{k: low(v) for k, v in kwargs.items()}))
        except RuntimeError:  # a view of numbers as complex ones, which are not there in bfloat16
            stopped = Operation(len(self.operations), known.name, self.program.where())
            self.operations.append(stopped)
            if stopped.index < self.until:
                self.raised, stopped.line = stopped, user_line()
                raise
            lows = flat(made := func(*exact(args), **{k: exact(v) for k, v in kwargs.items()}))
        exacts = lows
        if source.exact is not source.low:
            exacts = flat(func(*exact(args), **{k: exact(v) for k, v in kwargs.items()}))
        views = []
        for near, far in zip(lows, exacts, strict=True):
            dtype = source.dtype if near.dtype == source.low.dtype else near.dtype
            views.append(Twin(near, far, source.fate, dtype))
        return self._end(entry, rebuild(made, iter(views)))

    def reshape(self, func: OpOverload, args: Any, kwargs: Any) -> Any:
        """Both worlds change shape, and so does their wrapper."""
        twin = args[0]
        self._begin(func, None, args, kwargs, None)
        near, far = twin.low.view_as(twin.low), twin.exact.view_as(twin.exact)
        func(near, *args[1:], **kwargs)
        func(far, *args[1:], **kwargs)
        twin.low, twin.exact = near, far
        with torch._C._DisableTorchDispatch():
            func(*args, **kwargs)
        return twin

    def operate(self, func: OpOverload, known: Facts, args: Any, kwargs: Any) -> Any:
        """Any other operation, in 16 bits or without rounding."""
        if _moves(known, args, kwargs, self.program.mixed):
            return self._moved(func, args, kwargs)
        index = len(self.operations)
        operation = Operation(index, self.named(known), self.program.where())
        self.operations.append(operation)
        if index >= self.until:
            far = run_wide(func, exact(args), {k: exact(v) for k, v in kwargs.items()})
            return self._wrap(func, known, args, kwargs, None, far)
        entry = self._begin(func, known, args, kwargs, index)
        if self.tape is not None:
            operation.line = user_line()
            self.tape.remember(_written(known, args, kwargs))
        lows = self._low(func, operation, args, kwargs)
        if self.results is not None and index == self.results[0]:
            lows = _instead(lows, self.results[1])
        return self._end(entry, self._wrap(func, known, args, kwargs, lows, None))

    def _begin(
        self, func: OpOverload, known: Facts | None, args: Any, kwargs: Any, index: int | None
    ) -> Entry | None:
        return None if self.tape is None else self.tape.begin(func, known, args, kwargs, index)

    def _end(self, entry: Entry | None, results: Any) -> Any:
        return results if entry is None or self.tape is None else self.tape.end(entry, results)

    def _moved(self, func: OpOverload, args: Any, kwargs: Any) -> Any:
        """Move values that no operation has made yet: low and exact stay what they are.

        Which of them an input asks for makes no inputs of them.
        """
        lows = func(*low(args), **{k: low(v) for k, v in kwargs.items()})
        far = func(*exact(args), **{k: exact(v) for k, v in kwargs.items()})
        given = twins(args, kwargs)
        values = [t for t in given if t.low.is_floating_point()] or given
        fixed = all(t.fate.fixed for t in values)
        pairs = zip(flat(lows), flat(far), strict=True)
        return rebuild(lows, (Twin(n, f, Fate(False, fixed), n.dtype) for n, f in pairs))

    def _low(self, func: OpOverload, operation: Operation, args: Any, kwargs: Any) -> Any:
        near = low(args), {k: low(v) for k, v in kwargs.items()}
        try:
            if self.program.emulation is None:
                return func(*near[0], **near[1])
            return self.program.emulation.run(func, (), tuple(near[0]), near[1])
        except Exception:
            self.raised = operation
            operation.line = user_line()
            raise

    # -- results ------------------------------------------------------------------------------

    def _wrap(
        self, func: OpOverload, known: Facts, args: Any, kwargs: Any, lows: Any, exacts: Any
    ) -> Any:
        """Results as twins; the world that is missing is the other one, widened."""
        nominal = nominal_dtypes(func, args, kwargs) if lows is None else None
        fallback = promoted_low(args, kwargs) or kwargs.get("dtype") if lows is None else None
        fixed = all(t.fate.fixed for t in twins(args, kwargs))
        owners = _written(known, args, kwargs)
        for owner in owners:
            owner.fate.made = True
            owner.fate.fixed &= fixed
            if lows is not None and owner.exact is not owner.low:
                owner.exact.copy_(owner.low)
        given = lows if lows is not None else exacts
        results = []
        for i, item in enumerate(flat(given)):
            own = next((o for o in owners if item is o.low or item is o.exact), None)
            plain = not isinstance(item, Tensor) or (known.name, i) in READ_ON_HOST
            if own is not None or plain:
                results.append(item if own is None else own)
                continue
            item = doubled(item, i, nominal)
            dtype = item.dtype if lows is not None else dtype_of(item, i, nominal, fallback)
            far = item if self.tape is not None else widen(item)
            results.append(Twin(item, far, Fate(True, fixed), dtype))
        return rebuild(given, iter(results))


def _instead(made: Any, results: list[Tensor]) -> Any:
    """What an operation gave, with other values in its tensors."""
    given = iter(results)
    parts = (next(given).to(m.dtype) if isinstance(m, Tensor) else m for m in flat(made))
    return rebuild(made, parts)


def _moves(known: Facts, args: Any, kwargs: Any, mixed: bool) -> bool:
    if known.name not in _MOVES or known.mutated or known.mutated_names:
        return False
    involved = twins(args, kwargs)
    if known.name == "_to_copy":
        wanted = kwargs.get("dtype")
        if not involved[0].is_floating_point() or (wanted and not wanted.is_floating_point):
            return False
        narrows = wanted in LOW and involved[0].dtype not in LOW
        if narrows and not mixed and involved[0].numel() > 1:
            return False  # (an epsilon is told of where it is used)
    return not any(t.fate.made for t in involved)


def _written(known: Facts, args: Any, kwargs: Any) -> list[Twin]:
    if not known.mutated and not known.mutated_names:
        return []
    places = [args[i] for i in known.mutated if i < len(args)]
    places += [kwargs[name] for name in known.mutated_names if name in kwargs]
    return twins(places, {})
