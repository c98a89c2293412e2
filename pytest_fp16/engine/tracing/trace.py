"""The 16-bit program in float32 arithmetic: its rounding sites, with values and gradients.

`Trace` intercepts the same operations as `Emulation`, so it sees the same dtypes, but does not
round what depends on the input. Constants of the program are rounded for good (that is the storage
shift b); every other 16-bit result is a rounding site, where it records what an error there would
do to the margins (adjoint), or adds a random error of the right size (noise). What leaves the
range of the format is not small, so it is applied: values that overflow become infinite, and
values about to meet a singular operation (a quotient, a logarithm) are flushed where they
underflow, and what rounds to one leaves nothing of it where one is taken off.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import enable_reentrant_dispatch

from pytest_fp16.engine.emulation.emulate import widen
from pytest_fp16.engine.emulation.interception import Interception, place
from pytest_fp16.engine.emulation.kernels import missing_kernel, require_same_dtype
from pytest_fp16.engine.emulation.nominal import doubled, dtype_of, nominal_dtypes, promoted_low
from pytest_fp16.engine.emulation.operations import (
    AUTOCAST,
    DISCRETE,
    WIDE,
    Facts,
    as_called,
    flat,
    on_target,
    rebuild,
    seen_as,
)
from pytest_fp16.engine.emulation.refusal import (
    UnsupportedOperation,
    require_fit,
    require_own_agreement,
)
from pytest_fp16.engine.emulation.scalars import as_the_kernel_takes, bounds_as_on
from pytest_fp16.engine.emulation.scans import by_steps
from pytest_fp16.engine.tracing.arguments import (
    as_native,
    grid_of,
    narrows,
    refuse_constants,
    reshaped,
    severs,
    shadows_in,
    stays_plain,
    steps,
)
from pytest_fp16.engine.tracing.compute import Call, Computed, certain_error, compute
from pytest_fp16.engine.tracing.decisions import Errors
from pytest_fp16.engine.tracing.doubts import Doubts
from pytest_fp16.engine.tracing.numbers import on_the_grid, vanished
from pytest_fp16.engine.tracing.recorder import Recorder
from pytest_fp16.engine.tracing.shadow import Cell, Shadow, unwrap
from pytest_fp16.theory.rounding import FORMATS, Format

_CONSTANT = frozenset(
    "zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full "
    "new_empty new_empty_strided".split()
)
_BELOW: Any = (
    AUTOCAST
    | torch._C.DispatchKeySet(torch._C.DispatchKey.Python)
    | torch._C.DispatchKeySet(torch._C.DispatchKey.PythonTLSSnapshot)
)


class Trace(Interception):
    """Run a 16-bit program on traced inputs.

    Args:
        recorder: told of every rounding site.
        target: the device whose kernels are meant.
        constants: float32 twins of the model's own 16-bit parameters and buffers, by id.
        errors: predicted errors of what its decisions compare.
        collect: keep what they compare.

    Attributes:
        doubts: the decisions that rounding could change.
        opaque: kernels from outside ATen that ran.
        severed: operations that no gradient passes.
        dtypes: how many operations gave each 16-bit dtype.
        mixed: the program runs under autocast.
        writes: it writes to its weights.
    """

    def __init__(
        self,
        recorder: Recorder,
        target: str,
        constants: dict[int, tuple[Tensor, Tensor]],
        errors: Errors | None = None,
        collect: bool = False,
    ) -> None:
        super().__init__(target)
        self.doubts = Doubts(recorder, errors or [], collect)
        self.recorder = recorder
        self.target = target
        self.constants = constants
        self.kept: dict[Hashable, tuple[Tensor, Shadow]] = {}
        self.opaque: set[str] = set()
        self.severed: set[str] = set()
        self.dtypes: dict[str, int] = {}
        self.mixed = self.writes = False

    # -- the interception ---------------------------------------------------------------------

    @contextmanager
    def below(self) -> Iterator[None]:
        """Below autocast and this mode, above autograd: float32 values keep their graph."""
        guard = torch._C._ExcludeDispatchKeyGuard(_BELOW)
        with enable_reentrant_dispatch(), guard, torch.enable_grad():
            yield

    def composed(self, func: OpOverload, args: tuple[Any, ...]) -> Callable[..., Any] | None:
        """What an operation consists of, running sums among them."""
        return by_steps(func, args, self.target) or super().composed(func, args)

    def adopt(self, value: Tensor) -> Shadow:
        """Plain tensors as traced constants; once in each run where that may write into them."""
        if isinstance(value, torch.nn.Parameter) and not self.writes:
            known = self.constants.get(id(value))
            if known is None or known[0] is not value:
                known = self.constants[id(value)] = (value, widen(value.detach()))
            return Shadow(known[1], value.dtype, Cell(False, False))
        key = place(value)
        kept = self.kept.get(key)
        if kept is None:
            wide = widen(value.detach())
            wide = wide.clone() if wide.dtype == value.dtype else wide
            kept = self.kept[key] = (value, Shadow(wide, value.dtype, Cell(False, False)))
        return kept[1]

    def view(self, func: OpOverload, known: Facts, args: Any, kwargs: Any) -> Any:
        """A view of the values, of the same memory cell."""
        source = args[0]
        if func is torch.ops.aten.view.dtype:
            return self._bits(func, source, args[1])
        if known.name == "view_as_complex":  # of which there are none in bfloat16
            func(source.native())
        if known.name == "detach":  # rounding errors do not stop where gradients do
            out: Any = source.inner.view_as(source.inner)
        else:
            out = func(*unwrap(args), **{k: unwrap(v) for k, v in kwargs.items()})
        views = []
        for item in flat(out):
            dtype = seen_as(source.dtype, item.dtype)
            source.cell.aliases += 1
            views.append(Shadow(item, dtype, source.cell))
        return rebuild(out, iter(views))

    def _bits(self, func: OpOverload, source: Shadow, dtype: torch.dtype) -> Shadow:
        """Numbers read as another type's: the bits are those of the program's own format.

        No gradient passes. Of 16 bits it is a copy: what is written to it stays there.
        """
        if self.recorder.adjoint and source.inner.requires_grad:
            self.severed.add("view")
        if source.dtype not in WIDE and dtype not in WIDE:
            source.cell.aliases += 1
            return Shadow(func(source.inner, dtype), dtype, source.cell)
        read = widen(func(source.native(), dtype))
        return Shadow(read, dtype, Cell(source.cell.depends, source.cell.noisy))

    def reshape(self, func: OpOverload, args: Any, kwargs: Any) -> Any:
        """The values change shape, and so does their wrapper."""
        return reshaped(func, args, kwargs)

    def operate(self, func: OpOverload, known: Facts, args: Any, kwargs: Any) -> Any:
        """Any other operation: refused as the program refuses it, computed, wrapped."""
        known = on_target(as_called(known, args, kwargs), self.target)
        cells = [s.cell for s in shadows_in(args, kwargs)]
        doubts = [c.doubt for c in cells if c.doubt is not None]
        moves = known.name not in _CONSTANT
        if known.exact:
            args = bounds_as_on(known.name, args, self.target)
            given, (args, kwargs) = args, on_the_grid(func, args, kwargs)
            self.recorder.bent |= vanished(given, args)
        call = Call(
            *(func, known, as_the_kernel_takes(known.name, args, self.target), kwargs),
            depends=moves and any(c.depends for c in cells),
            noisy=moves and any(c.noisy for c in cells),
        )
        self._refuse(call)
        nominal = nominal_dtypes(func, args, kwargs)
        results = self._wrap(call, compute(call, self.recorder), nominal)
        if doubts:
            self.doubts.use(call, doubts, results)
        if call.noisy and known.name in DISCRETE:
            self.doubts.watch(call, results)
        return results

    def _refuse(self, call: Call) -> None:
        """Raise what the 16-bit program would raise."""
        asked = call.kwargs.get("dtype")
        met = (s.dtype for s in shadows_in(call.args, call.kwargs) if s.dtype in WIDE)
        low = next(met, asked if asked in WIDE else None)
        if low is None:
            return
        name = call.known.name
        require_fit(name, call.args, call.kwargs, self.target)
        require_same_dtype(name, call.args, self.target, call.kwargs)
        if call.known.foreign and not self.mixed:
            require_own_agreement(call.func, name, as_native(call.args), as_native(call.kwargs))
        if missing_kernel(name, call.args, self.target):
            raise UnsupportedOperation(name, str(low).removeprefix("torch."), self.target)
        if call.known.exact and low in FORMATS:
            refuse_constants(call.func, call.args, call.kwargs, FORMATS[low])

    # -- results ------------------------------------------------------------------------------

    def _wrap(
        self, call: Call, computed: Computed, nominal: tuple[torch.dtype | None, ...] | None
    ) -> Any:
        """The results as traced tensors, after rounding; targets that were written updated."""
        out, written = computed
        owners = {id(target): shadow for shadow, target in written}
        fallback = None if nominal else promoted_low(call.args, call.kwargs)
        fallback = fallback or call.kwargs.get("dtype")
        results, items, sites = [], flat(out), len(self.recorder.signature)
        # Asked before what is written becomes the start of a gradient.
        severed = self.recorder.adjoint and severs(call.args, items)
        grid = grid_of(call.known, call.args, call.kwargs)
        for i, item in enumerate(items):
            if not isinstance(item, Tensor):
                results.append(item)
                continue
            shadow, item = owners.get(id(item)), doubled(item, i, nominal)
            dtype = shadow.dtype if shadow is not None else dtype_of(item, i, nominal, fallback)
            if call.noisy and dtype.is_floating_point and dtype.itemsize == 1:
                self.severed.add(call.known.name)  # errors vanish there, or become a wide step
            item, noisy = self._rounded(call, item, dtype, shadow)
            if shadow is None and stays_plain(call.known.name, i, item, call.depends):
                results.append(item.to(dtype))
            elif shadow is None:
                results.append(Shadow(item, dtype, Cell(call.depends, noisy, grid)))
            else:
                shadow.write(item, call.depends, noisy)
                results.append(shadow)
        if severed and len(self.recorder.signature) > sites:
            self.severed.add(call.known.name)
        # In-place foreach operations return nothing; their targets still have new values.
        for shadow, target in written:
            if not any(r is shadow for r in results):
                shadow.write(target, call.depends, False)
        return rebuild(out, iter(results))

    def _rounded(
        self, call: Call, y: Tensor, dtype: torch.dtype, shadow: Shadow | None
    ) -> tuple[Tensor, bool]:
        """A result, rounded where the program rounds it, and whether errors have entered it."""
        if dtype == torch.complex32:
            parts, noisy = self._rounded(call, _parts(y), torch.float16, shadow)
            return torch.view_as_complex(parts), noisy
        known, fmt = call.known, FORMATS.get(dtype)
        # A number beyond the range is infinite where no kernel has refused it, as of `full`.
        rounds = not known.exact or not call.depends or narrows(known, call.args, call.kwargs)
        if fmt is None or y.dtype != torch.float32 or not rounds:
            return y, call.depends and call.noisy
        aliased = shadow is not None and shadow.cell.aliases > 1
        fixed = None
        # What accumulates rounds as it goes, be it a count that no input has a part in.
        if (call.depends or known.stepwise) and not aliased:
            moved, fixed = certain_error(call, y, fmt, self.target, self.recorder)
            self.recorder.bent |= moved is not y
            y = moved
        noisy = call.depends and (
            call.noisy or not (known.exact or self.recorder.on_grid(y.detach(), fmt))
        )
        # A constant, and the cast of a value no rounding error has entered, round for good.
        if not call.depends or (known.exact and not call.noisy):
            rounded = y.to(fmt.dtype).to(torch.float32)
        else:
            rounded = self._site(call, y.clone() if aliased else y, fmt, fixed)
        # Views look on: the new values must reach the memory they share.
        y = y.copy_(rounded) if aliased else rounded
        return y, noisy

    def _site(self, call: Call, y: Tensor, fmt: Format, fixed: Tensor | None) -> Tensor:
        self.dtypes[fmt.name] = self.dtypes.get(fmt.name, 0) + 1
        known = call.known
        if known.opaque:
            self.opaque.add(known.name)
        return self.recorder.site(y, fmt, self.named(known), steps(known, call.args, y), fixed)


def _parts(y: Tensor) -> Tensor:
    """Real and imaginary parts of complex numbers, which round each by itself."""
    return torch.view_as_real(y.resolve_conj())
