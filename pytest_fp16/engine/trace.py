"""The 16-bit program in float32 arithmetic: its rounding sites, with values and gradients.

`Trace` intercepts the same operations as `Emulation`, so it sees the same dtypes, but does not
round what depends on the input. Constants of the program are rounded for good (that is the storage
shift b); every other 16-bit result is a rounding site, where it records what an error there would
do to the margins (adjoint), or adds a random error of the right size (noise). What leaves the
range of the format is not small, so it is applied: values that overflow become infinite, and
values about to meet a singular operation (a quotient, a logarithm) are flushed where they
underflow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import enable_reentrant_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_fp16.engine.absorption import absorbed, accumulated, operands_of
from pytest_fp16.engine.attention import fused_attention
from pytest_fp16.engine.decisions import near_decision
from pytest_fp16.engine.emulate import UnsupportedOperation, attention_arguments, widen
from pytest_fp16.engine.operations import (
    ATTENTION,
    DISCRETE,
    LOW,
    Facts,
    differentiable,
    facts,
    flat,
    functional,
    missing_on_cuda,
    nominal_dtypes,
    promoted_low,
    rebuild,
    require_same_dtype,
)
from pytest_fp16.engine.shadow import Cell, Shadow, unwrap
from pytest_fp16.engine.sites import Contributions, Owners, SiteKey, SiteTotals, spacing
from pytest_fp16.engine.trace_arguments import (
    any_row,
    as_native,
    dtype_of,
    flushes,
    largest_magnitude,
    narrows,
    refuse_constants,
    reshaped,
    shadows_in,
    steps,
    written_targets,
)
from pytest_fp16.theory.rounding import FLOAT16, FORMATS, Format, flush_underflow, overflow

_CONSTANT = frozenset(
    "zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full "
    "new_empty new_empty_strided".split()
)
_SINGULAR = frozenset(
    "div reciprocal log log2 log10 log1p rsqrt sqrt pow logit atan2 xlogy".split()
)
#: Results that composite kernels read through a raw pointer: they must be plain tensors.
_READ_ON_HOST = frozenset({("_pack_padded_sequence", 1)})
_KEYS = torch._C.DispatchKey
_BELOW = (
    torch._C.DispatchKeySet(_KEYS.Python)
    | torch._C.DispatchKeySet(_KEYS.PythonTLSSnapshot)
    | torch._C.DispatchKeySet(_KEYS.AutocastCPU)
    | torch._C.DispatchKeySet(_KEYS.AutocastCUDA)
    | torch._C.DispatchKeySet(_KEYS.AutocastMPS)  # type: ignore[attr-defined]
)


class Trace(TorchDispatchMode):
    """Run a 16-bit program on traced inputs.

    Args:
        batch: number of inputs in the chunk.
        device: where they are.
        target: the device whose kernels are meant.
        where: returns the qualified name of the module that is running.
        totals: running totals per site, shared by all chunks.
        constants: float32 twins of the model's own 16-bit parameters and buffers, by id.
        noise: None to record gradients, or a generator of random rounding errors.
        detailed: also count subnormal and zeroed values.
        formats: the program's own format, and others that share its backward pass.

    Attributes:
        signature: its rounding sites in order; programs with the same share a backward pass.
        bent: the range or the grid of the format changed values, and so their gradients.
    """

    def __init__(
        self,
        *,
        batch: int,
        device: torch.device,
        target: str,
        where: Callable[[], str],
        totals: dict[SiteKey, SiteTotals],
        constants: dict[int, tuple[Tensor, Tensor]],
        noise: torch.Generator | None = None,
        adjoint: bool = True,
        detailed: bool = False,
        formats: tuple[Format, ...] = (FLOAT16,),
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.owners = Owners(batch)
        self.contributions = Contributions(self.owners, device, formats)
        self.signature: list[tuple[SiteKey, torch.Size]] = []
        self.target = target
        self.where = where
        self.totals = totals
        self.constants = constants
        self.noise = noise
        self.adjoint = adjoint and noise is None
        self.detailed = detailed
        self.leaves: list[Tensor] = []
        self.overflowed = torch.zeros(batch, dtype=torch.bool, device=device)
        self.undecided = torch.zeros(batch, dtype=torch.bool, device=device)
        self.bent = False
        self.opaque: set[str] = set()
        self.severed: set[str] = set()
        self.dtypes: dict[str, int] = {}
        self.site_values = 0

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
        cells = [s.cell for s in shadows_in(args, kwargs)]
        depends = any(c.depends for c in cells) and known.name not in _CONSTANT
        noisy = any(c.noisy for c in cells) and known.name not in _CONSTANT
        with (
            enable_reentrant_dispatch(),
            torch._C._ExcludeDispatchKeyGuard(_BELOW),
            torch.enable_grad(),
        ):
            if known.view:
                return self._view(func, known, args, kwargs)
            if known.reshapes:
                return reshaped(func, args, kwargs)
            self._refuse(func, known, args, kwargs)
            nominal = nominal_dtypes(func, args, kwargs)
            self._use_decisions(cells)
            out, written = self._compute(func, known, args, kwargs, depends)
            results = self._wrap(func, known, args, kwargs, out, nominal, depends, noisy, written)
            if noisy and known.name in DISCRETE:
                self._watch_decision(known.name, args, kwargs, results)
            return results

    def _adopt(self, value: Any) -> Any:
        """Plain tensors (parameters, buffers) as traced constants, float32 twins made once."""
        if isinstance(value, Tensor) and not isinstance(value, Shadow):
            known = self.constants.get(id(value))
            if known is None or known[0] is not value:
                wide = widen(value.detach())
                if isinstance(value, torch.nn.Parameter):
                    self.constants[id(value)] = (value, wide)
            else:
                wide = known[1]
            return Shadow(wide, value.dtype, Cell(False, False))
        if isinstance(value, (list, tuple)):
            return [self._adopt(item) for item in value]
        return value

    def _view(self, func: OpOverload, known: Facts, args: Any, kwargs: Any) -> Any:
        source = args[0]
        if known.name == "detach":  # rounding errors do not stop where gradients do
            out: Any = source.inner.view_as(source.inner)
        else:
            out = func(*unwrap(args), **{k: unwrap(v) for k, v in kwargs.items()})
        views = []
        for item in flat(out):
            dtype = source.dtype if item.dtype == source.inner.dtype else item.dtype
            source.cell.aliases += 1
            views.append(Shadow(item, dtype, source.cell))
        return rebuild(out, iter(views))

    def _refuse(self, func: OpOverload, known: Facts, args: Any, kwargs: Any) -> None:
        """Raise what the 16-bit program would raise."""
        shadows = list(shadows_in(args, kwargs))
        low = next((s.dtype for s in shadows if s.dtype in LOW), None)
        if low is None:
            return
        require_same_dtype(known.name, args)
        if self.target == "cuda" and missing_on_cuda(known.name, args):
            raise UnsupportedOperation(known.name, str(low).removeprefix("torch."), "cuda")
        if known.exact:
            refuse_constants(func, args, kwargs, FORMATS[low])

    def _compute(
        self, func: OpOverload, known: Facts, args: Any, kwargs: Any, depends: bool
    ) -> tuple[Any, list[tuple[Shadow, Tensor]]]:
        """The operation on float32 values, without autograd's objections to in-place writes."""
        if known.name in ATTENTION and isinstance(args[0], Shadow) and args[0].dtype in LOW:
            return self._attention(args, kwargs), []
        inner_args, inner_kwargs = unwrap(args), {k: widen(unwrap(v)) for k, v in kwargs.items()}
        if known.name == "_to_copy" and kwargs.get("dtype", args[0].dtype) in (*LOW, torch.float32):
            inner_kwargs["dtype"] = torch.float32
            if args[0].inner.dtype == torch.float32:
                return args[0].inner.clone(), []
        if depends and known.name in _SINGULAR:
            inner_args = [self._flushed(a, i) for a, i in zip(args, inner_args, strict=True)]
        written: list[tuple[Shadow, Tensor]] = []
        for i in known.mutated:
            for shadow, put in written_targets(args, inner_args, i):
                # A fresh copy keeps the values that autograd saved; impossible where views look on.
                target = shadow.inner.clone() if shadow.cell.aliases == 1 else shadow.inner
                put(target)
                written.append((shadow, target))
        if known.mutated_names:
            return self._compute_out(func, known, inner_args, inner_kwargs, kwargs)
        for i in known.statistics:
            if isinstance(inner_args[i], Tensor):
                inner_args[i] = inner_args[i].clone()
        if known.opaque and not differentiable(func):
            with torch.no_grad():
                return func(*inner_args, **inner_kwargs), written
        return func(*inner_args, **inner_kwargs), written

    def _compute_out(
        self, func: OpOverload, known: Facts, inner_args: Any, inner_kwargs: Any, kwargs: Any
    ) -> tuple[Any, list[tuple[Shadow, Tensor]]]:
        """An ``out=`` operation, as the one that returns new tensors: autograd knows no other."""
        owners = [kwargs[name] for name in known.mutated_names]
        twin = functional(func)
        if twin is None or not all(isinstance(owner, Shadow) for owner in owners):
            with torch.no_grad():
                out = func(*inner_args, **inner_kwargs)
            return out, [(o, o.inner) for o in owners if isinstance(o, Shadow)]
        rest = {k: v for k, v in inner_kwargs.items() if k not in known.mutated_names}
        items = flat(twin(*inner_args, **rest))
        for i, owner in enumerate(owners):
            if owner.cell.aliases > 1:
                items[i] = owner.inner.copy_(items[i])
        return items[0] if len(items) == 1 else tuple(items), list(zip(owners, items, strict=True))

    def _attention(self, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
        call = attention_arguments(args, kwargs)
        call["mask"] = unwrap(call["mask"])
        fmt = FORMATS[args[0].dtype]
        return fused_attention(
            *unwrap(args[:3]),
            **call,
            round_probabilities=lambda p: self._site(p, fmt, "attention probabilities", 1.0),
        )

    # -- results ------------------------------------------------------------------------------

    def _wrap(
        self,
        func: OpOverload,
        known: Facts,
        args: Any,
        kwargs: Any,
        out: Any,
        nominal: tuple[torch.dtype | None, ...] | None,
        depends: bool,
        noisy: bool,
        written: list[tuple[Shadow, Tensor]],
    ) -> Any:
        owners = {id(target): shadow for shadow, target in written}
        fallback = None if nominal else promoted_low(args, kwargs) or kwargs.get("dtype")
        narrowing = narrows(known, args, kwargs)
        results = []
        for i, item in enumerate(flat(out)):
            if not isinstance(item, Tensor):
                results.append(item)
                continue
            shadow = owners.get(id(item))
            dtype = shadow.dtype if shadow is not None else dtype_of(item, i, nominal, fallback)
            fmt = FORMATS.get(dtype)
            site = (
                fmt is not None and item.dtype == torch.float32 and (not known.exact or narrowing)
            )
            arithmetic = site and not known.exact
            if site and fmt is not None:
                aliased = shadow is not None and shadow.cell.aliases > 1
                if depends and not aliased:
                    item = self._certain_error(item, fmt, func, known, args, kwargs)
                # A constant, and the cast of a value no rounding error has entered, round for good.
                certain = not depends or (known.exact and not noisy)
                rounded = self._rounded(
                    item.clone() if aliased else item, fmt, known, args, certain
                )
                # Views look on: the new values must reach the memory they share.
                item = item.copy_(rounded) if aliased else rounded
            if shadow is None and (known.name, i) in _READ_ON_HOST:
                results.append(item)
                continue
            if shadow is None:
                results.append(
                    Shadow(item, dtype, Cell(depends, depends and (noisy or arithmetic)))
                )
                continue
            if item is not shadow.inner:
                shadow.inner = item
            shadow.cell.depends |= depends
            shadow.cell.noisy |= depends and (noisy or arithmetic)
            results.append(shadow)
        # In-place foreach operations return nothing; their targets still have new values.
        for shadow, target in written:
            if not any(r is shadow for r in results):
                shadow.inner = target
                shadow.cell.depends |= depends
        return rebuild(out, iter(results))

    def _certain_error(
        self, y: Tensor, fmt: Format, func: OpOverload, known: Facts, args: Any, kwargs: Any
    ) -> Tensor:
        """Rounding whose outcome is no matter of chance, applied to the values."""
        if known.stepwise:
            low_args, low_kwargs = as_native(args), {k: as_native(v) for k, v in kwargs.items()}
            moved = accumulated(y, lambda: func(*low_args, **low_kwargs))
            self.bent |= moved is not y
            return moved
        operands = operands_of(known.name, args, fmt.dtype)
        if not operands or not largest_magnitude(y.detach()) < fmt.overflow_threshold:
            return y
        moved = absorbed(y, operands, fmt)
        self.bent |= moved is not y
        return moved

    def _flushed(self, original: Any, inner: Any) -> Any:
        """An argument of a singular operation: what underflows is on the format's grid."""
        if not flushes(original) or inner.numel() == 0:
            return inner
        on_grid = flush_underflow(inner, FORMATS[original.dtype])
        self.bent = self.bent or not torch.equal(on_grid.detach(), inner.detach())
        return on_grid

    def _rounded(self, y: Tensor, fmt: Format, known: Facts, args: Any, certain: bool) -> Tensor:
        if certain:
            return y.to(fmt.dtype).to(torch.float32)
        self.dtypes[fmt.name] = self.dtypes.get(fmt.name, 0) + 1
        if known.opaque:
            self.opaque.add(known.name)
        if (
            self.adjoint
            and not y.requires_grad
            and any(s.inner.requires_grad for s in shadows_in(args, {}) if s.is_floating_point())
        ):
            self.severed.add(known.name)
        return self._site(y, fmt, known.name, steps(known, args, y))

    def _site(self, y: Tensor, fmt: Format, operation: str, steps: float) -> Tensor:
        if y.numel() == 0:
            return y
        key = (self.where(), operation)
        totals = self.totals.get(key)
        if totals is None:
            totals = self.totals[key] = SiteTotals(order=len(self.totals))
        self.site_values += y.numel()
        self.signature.append((key, y.shape))
        values = y.detach()
        largest = largest_magnitude(values)
        finite = largest < fmt.overflow_threshold
        if finite:
            totals.largest = max(totals.largest, largest)
        else:
            beyond = values.abs() >= fmt.overflow_threshold
            self.bent = True
            self.overflowed |= any_row(self.owners, beyond & values.isfinite())
            totals.largest = max(totals.largest, largest_magnitude(values.nan_to_num(0, 0, 0)))
            y = overflow(y, fmt)
        if self.detailed:
            magnitude = values.abs()
            small = (magnitude < fmt.smallest_normal) & (magnitude > 0)
            totals.subnormal += int(small.sum())
            totals.zeroed += int((small & (magnitude <= fmt.smallest_subnormal / 2)).sum())
            totals.values += values.numel()
        if self.noise is not None:
            error = torch.rand(y.shape, generator=self.noise, device=y.device).sub_(0.5)
            return y + error.mul_(spacing(values, fmt, finite)).mul_(steps**0.5)
        if self.adjoint:
            if not y.requires_grad:
                leaf = y.detach().requires_grad_()
                self.leaves.append(leaf)
                y = leaf.clone()
            y.register_hook(self.contributions.hook(y, fmt, key, steps, finite))
        return y

    def _watch_decision(self, name: str, args: Any, kwargs: Any, results: Any) -> None:
        """Note whose value lies so near a decision that rounding could change it.

        Indices and masks carry the doubt until something uses them: the order of a sort changes
        nothing if only its values are read.
        """
        low = [s for s in shadows_in(args, kwargs) if s.dtype in LOW]
        decided = [r for r in flat(results) if isinstance(r, Shadow)]
        if not low or (name == "_to_copy" and decided[0].is_floating_point()):
            return
        near = near_decision(name, unwrap(args), unwrap(kwargs), FORMATS[low[0].dtype])
        if near is None or not bool(near.any()):
            return
        rows = any_row(self.owners, near)
        whole = [r for r in decided if not r.is_floating_point()]
        for result in whole:
            result.cell.doubt = rows
        if not whole and name not in ("max", "min", "median"):
            self.undecided |= rows

    def _use_decisions(self, cells: list[Cell]) -> None:
        for cell in cells:
            if cell.doubt is not None:
                self.undecided |= cell.doubt
