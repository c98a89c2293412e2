"""The 16-bit program and its exact twin, side by side, operation by operation.

`Autopsy` runs a program in one of two ways. Side by side, every tensor carries the 16-bit value
and a float32 twin that no rounding has touched, and what happens in chosen operations is measured.
Or *healed*: the first so many operations run in 16 bits and the rest without rounding, so that
what goes wrong in the outputs was born in those first operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_fp16.diagnosis.findings import Finding, examined, operands
from pytest_fp16.diagnosis.source import user_line
from pytest_fp16.diagnosis.twin import Fate, Twin, exact, low, twins
from pytest_fp16.engine.emulate import Emulation, widen
from pytest_fp16.engine.operations import (
    LOW,
    Facts,
    facts,
    flat,
    nominal_at,
    nominal_dtypes,
    promoted_low,
    rebuild,
)

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
#: Results that composite kernels read through a raw pointer: they must be plain tensors.
_READ_ON_HOST = frozenset({("_pack_padded_sequence", 1)})
_KEYS: Any = torch._C.DispatchKey
_AUTOCAST = (
    torch._C.DispatchKeySet(_KEYS.AutocastCPU)
    | torch._C.DispatchKeySet(_KEYS.AutocastCUDA)
    | torch._C.DispatchKeySet(_KEYS.AutocastMPS)
)


@dataclass
class Operation:
    """One operation of the program, in the order they ran.

    Attributes:
        index: its place among all counted operations.
        name: its ATen name.
        module: qualified name of the module that ran it.
        source: file and line of the user's code, where it was looked up.
        finding: what was measured, where it was watched.
    """

    index: int
    name: str
    module: str
    source: str | None = None
    finding: Finding | None = None


@dataclass
class Program:
    """What an autopsy needs to know of the program it runs.

    Attributes:
        emulation: computes a 16-bit operation as the target does; None where it runs natively.
        exact_of: float32 twins of the model's 16-bit parameters and buffers, by id, each with the
            tensor itself.
        where: returns the qualified name of the module that is running.
        adopted: twins of the plain tensors met in one run, by id.
    """

    emulation: Emulation | None
    exact_of: dict[int, tuple[Tensor, Tensor]]
    where: Callable[[], str]
    adopted: dict[int, tuple[Tensor, Twin]] = field(default_factory=dict)


class Autopsy(TorchDispatchMode):
    """Run one program.

    Args:
        program: the program.
        until: operations of a smaller index run in 16 bits, the others without rounding.
        beside: both worlds throughout, whatever `until` says.
        watch: whether an operation of that index is to be measured (side by side only).
    """

    def __init__(
        self,
        program: Program,
        until: float = math.inf,
        beside: bool = False,
        watch: Callable[[int], bool] = lambda index: False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.program = program
        self.until = until
        self.beside = beside
        self.watch = watch
        self.operations: list[Operation] = []
        self.raised: Operation | None = None
        program.adopted.clear()

    # -- the interception ---------------------------------------------------------------------

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        known = facts(func)
        args = tuple(self._adopt(a) for a in args)
        kwargs = {k: self._adopt(v) for k, v in (kwargs or {}).items()}
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            if known.view:
                return self._view(func, args, kwargs)
            if known.reshapes:
                return _reshaped(func, args, kwargs)
            if _moves(known, args, kwargs):
                return self._moved(func, args, kwargs)
            return self._operate(func, known, args, kwargs)

    def _adopt(self, value: Any) -> Any:
        """Plain tensors (parameters, buffers, fresh constants) as twins."""
        if isinstance(value, Tensor) and not isinstance(value, Twin):
            made = self.program.adopted.get(id(value))
            if made is not None and made[0] is value:
                return made[1]
            own = self.program.exact_of.get(id(value))
            wide = own[1] if own is not None and own[0] is value else _constant(value)
            if self.beside and wide is value:
                wide = value.clone()
            twin = Twin(value, wide, Fate(made=False, fixed=True), value.dtype)
            self.program.adopted[id(value)] = (value, twin)
            return twin
        if isinstance(value, (list, tuple)):
            return [self._adopt(item) for item in value]
        return value

    def _view(self, func: OpOverload, args: Any, kwargs: Any) -> Any:
        source = args[0]
        lows = flat(made := func(*low(args), **{k: low(v) for k, v in kwargs.items()}))
        exacts = flat(func(*exact(args), **{k: exact(v) for k, v in kwargs.items()}))
        views = []
        for near, far in zip(lows, exacts, strict=True):
            dtype = source.dtype if near.dtype == source.low.dtype else near.dtype
            views.append(Twin(near, far, source.fate, dtype))
        return rebuild(made, iter(views))

    def _moved(self, func: OpOverload, args: Any, kwargs: Any) -> Any:
        """Move values that no operation has made yet: low and exact stay what they are."""
        lows = func(*low(args), **{k: low(v) for k, v in kwargs.items()})
        far = func(*exact(args), **{k: exact(v) for k, v in kwargs.items()})
        fixed = all(t.fate.fixed for t in twins(args, kwargs))
        pairs = zip(flat(lows), flat(far), strict=True)
        return rebuild(lows, (Twin(n, f, Fate(False, fixed), n.dtype) for n, f in pairs))

    def _operate(self, func: OpOverload, known: Facts, args: Any, kwargs: Any) -> Any:
        index = len(self.operations)
        operation = Operation(index, known.name, self.program.where())
        self.operations.append(operation)
        if not self.beside:
            if index < self.until:
                lows = self._low(func, operation, args, kwargs)
                return self._wrap(func, known, args, kwargs, lows, None)
            return self._wrap(func, known, args, kwargs, None, _exactly(func, args, kwargs))
        before, local = None, None
        if self.watch(index):
            operation.source = user_line()
            before = operands(func, known.name, args, kwargs)
            local = _local(func, known, args, kwargs)
        lows = self._low(func, operation, args, kwargs)
        try:
            far = None if known.random else _exactly(func, args, kwargs)
        except Exception:  # shapes or indices that follow the 16-bit values: go on from those
            far = None
        results = self._wrap(func, known, args, kwargs, lows, far)
        if before is not None:
            operation.finding = examined(before, known.name, results, local)
        return results

    def _low(self, func: OpOverload, operation: Operation, args: Any, kwargs: Any) -> Any:
        near = low(args), {k: low(v) for k, v in kwargs.items()}
        try:
            if self.program.emulation is None:
                return func(*near[0], **near[1])
            return self.program.emulation.__torch_dispatch__(func, (), tuple(near[0]), near[1])
        except Exception:
            self.raised = operation
            operation.source = user_line()
            raise

    # -- results ------------------------------------------------------------------------------

    def _wrap(
        self, func: OpOverload, known: Facts, args: Any, kwargs: Any, lows: Any, exacts: Any
    ) -> Any:
        """Results as twins; where one world is missing it is the other, widened."""
        beside = lows is not None and exacts is not None
        near = flat(lows) if lows is not None else flat(exacts)
        far = flat(exacts) if exacts is not None else [None] * len(near)
        nominal = nominal_dtypes(func, args, kwargs) if lows is None else None
        fallback = promoted_low(args, kwargs) or kwargs.get("dtype") if lows is None else None
        owners = _written(known, args, kwargs)
        for owner in owners:
            owner.fate.made = True
            owner.fate.fixed &= all(t.fate.fixed for t in twins(args, kwargs))
            if not beside and lows is not None and owner.exact is not owner.low:
                owner.exact.copy_(owner.low)
        fixed = all(t.fate.fixed for t in twins(args, kwargs))
        results = []
        for i, item in enumerate(near):
            own = next((o for o in owners if item is o.low or item is o.exact), None)
            plain = not isinstance(item, Tensor) or (known.name, i) in _READ_ON_HOST
            if own is not None or plain:
                results.append(item if own is None else own)
                continue
            dtype = item.dtype if lows is not None else _dtype_of(item, i, nominal, fallback)
            twin = far[i]
            if not isinstance(twin, Tensor) or twin.shape != item.shape:
                twin = widen(item) if not self.beside or item.dtype in LOW else item.clone()
            results.append(Twin(item, twin, Fate(True, fixed), dtype))
        return rebuild(lows if lows is not None else exacts, iter(results))


def _exactly(func: OpOverload, args: Any, kwargs: Any) -> Any:
    """The operation on the exact twins."""
    return func(*exact(args), **{k: exact(v) for k, v in kwargs.items()})


def _local(func: OpOverload, known: Facts, args: Any, kwargs: Any) -> Any:
    """The operation in float32 on the 16-bit program's own operands: what it should have given."""
    if known.random or known.mutated_names:
        return None
    wide = [_copied(widen(a)) for a in low(args)]
    try:
        return func(*wide, **{k: widen(low(v)) for k, v in kwargs.items()})
    except Exception:
        return None


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _constant(value: Tensor) -> Tensor:
    """The exact twin of a constant made outside of any operation.

    A constant too large for the format has become infinite before it can be seen; the largest
    number stands for it.
    """
    wide: Tensor = widen(value)
    if value.dtype in LOW and bool(wide.isinf().any()):
        wide = torch.nan_to_num(wide, nan=math.nan)
    return wide


def _moves(known: Facts, args: Any, kwargs: Any) -> bool:
    if known.name not in _MOVES or known.mutated or known.mutated_names:
        return False
    involved = twins(args, kwargs)
    if known.name == "_to_copy":
        wanted = kwargs.get("dtype")
        if not involved[0].is_floating_point() or (wanted and not wanted.is_floating_point):
            return False
    return not any(t.fate.made for t in involved)


def _written(known: Facts, args: Any, kwargs: Any) -> list[Twin]:
    places = [args[i] for i in known.mutated if i < len(args)]
    places += [kwargs[name] for name in known.mutated_names if name in kwargs]
    return twins(places, {})


def _dtype_of(item: Tensor, i: int, nominal: Any, fallback: Any) -> torch.dtype:
    if not item.is_floating_point():
        return item.dtype
    dtype = nominal_at(nominal, i) if nominal else fallback
    return dtype if dtype in LOW and item.dtype == torch.float32 else item.dtype


def _reshaped(func: OpOverload, args: Any, kwargs: Any) -> Any:
    """An operation such as transpose_: both worlds change shape, and so does their wrapper."""
    twin = args[0]
    near, far = twin.low.view_as(twin.low), twin.exact.view_as(twin.exact)
    func(near, *args[1:], **kwargs)
    func(far, *args[1:], **kwargs)
    twin.low, twin.exact = near, far
    with torch._C._DisableTorchDispatch():
        func(*args, **kwargs)
    return twin
