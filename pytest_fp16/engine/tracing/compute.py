"""One operation of a traced program on float32 values, with gradients wherever they exist."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from pytest_fp16.engine.emulation.accumulators import accumulate
from pytest_fp16.engine.emulation.draws import keep_within_bounds
from pytest_fp16.engine.emulation.emulate import widen
from pytest_fp16.engine.emulation.operations import (
    ATTENTION,
    LOW,
    ON_THE_WAY,
    Facts,
    differentiable,
    flat,
    functional,
)
from pytest_fp16.engine.emulation.recurrent import within_a_layer
from pytest_fp16.engine.emulation.wide import attention, run_wide
from pytest_fp16.engine.tracing.absorption import (
    accumulated,
    certain_errors,
    operands_of,
)
from pytest_fp16.engine.tracing.arguments import as_native, flushes, written_targets
from pytest_fp16.engine.tracing.exactness import exact_results
from pytest_fp16.engine.tracing.recorder import Recorder
from pytest_fp16.engine.tracing.shadow import Shadow, unwrap
from pytest_fp16.theory.rounding import FORMATS, Format, flush_to_one, flush_underflow, ulp

_SINGULAR = frozenset(
    "div reciprocal log log2 log10 log1p rsqrt sqrt pow logit atan2 xlogy".split()
)

#: Those that are singular at one, or minus one, where a bounded value ends.
_SINGULAR_AT_ONE = frozenset("log1p logit atanh erfinv acos asin acosh".split())

#: Those that leave nothing of it where one is taken off: a logarithm or a quotient follows.
_FROM_ONE = frozenset("sub rsub add".split())

#: What an operation gave, and the traced tensors it wrote with their new values.
Computed = tuple[Any, list[tuple[Shadow, Tensor]]]


@dataclass(frozen=True)
class Call:
    """One operation of the program.

    Attributes:
        func, known: the operation and the facts about it.
        args, kwargs: its arguments, tensors as `Shadow`.
        depends: its result depends on the model's input.
        noisy: rounding errors of the arithmetic have entered its arguments.
    """

    func: OpOverload
    known: Facts
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    depends: bool
    noisy: bool


def compute(call: Call, recorder: Recorder) -> Computed:
    """The operation on float32 values, without autograd's objections to in-place writes."""
    func, known, args, kwargs = call.func, call.known, call.args, call.kwargs
    if known.name in ATTENTION and isinstance(args[0], Shadow) and args[0].dtype in LOW:
        return _attention(call, recorder), []
    if known.name == "_to_copy" and kwargs.get("dtype", args[0].dtype) in (*LOW, torch.float32):
        kwargs = {**kwargs, "dtype": torch.float32}
        if args[0].inner.dtype == torch.float32:
            return args[0].inner.clone(), []
    inner_args, inner_kwargs = unwrap(args), {k: widen(unwrap(v)) for k, v in kwargs.items()}
    for names, flush in ((_SINGULAR, flush_underflow), (_SINGULAR_AT_ONE, flush_to_one)):
        if call.depends and known.name in names:
            pairs = zip(args, inner_args, strict=True)
            inner_args = [_flushed(a, i, recorder, flush) for a, i in pairs]
    if call.depends and known.name in _FROM_ONE:
        end = _one_taken_off(known.name, inner_args, kwargs)
        if end is not None:
            first = _flushed(args[0], inner_args[0], recorder, partial(_flush_at, end=end))
            inner_args = [first, *inner_args[1:]]
    written: list[tuple[Shadow, Tensor]] = []
    for i in known.mutated:
        for shadow, put in written_targets(args, inner_args, i):
            # A fresh copy keeps the values that autograd saved; impossible where views look on.
            target = shadow.inner.clone() if shadow.cell.aliases == 1 else shadow.inner
            put(target)
            written.append((shadow, target))
    if known.mutated_names:
        return _compute_out(call, inner_args, inner_kwargs)
    for i in known.statistics:
        if isinstance(inner_args[i], Tensor):
            inner_args[i] = inner_args[i].clone()
    if known.opaque and not differentiable(func):
        with torch.no_grad():
            return func(*inner_args, **inner_kwargs), written
    out = run_wide(func, inner_args, inner_kwargs)
    keep_within_bounds(known.name, out, args, kwargs)
    return out, written


def _compute_out(call: Call, inner_args: Any, inner_kwargs: Any) -> Computed:
    """An ``out=`` operation, as the one that returns new tensors: autograd knows no other."""
    names = call.known.mutated_names
    owners = [call.kwargs[name] for name in names]
    twin = functional(call.func)
    if twin is None or not all(isinstance(owner, Shadow) for owner in owners):
        with torch.no_grad():
            out = call.func(*inner_args, **inner_kwargs)
        return out, [(o, o.inner) for o in owners if isinstance(o, Shadow)]
    rest = {k: v for k, v in inner_kwargs.items() if k not in names}
    items = flat(twin(*inner_args, **rest))
    for i, owner in enumerate(owners):
        if owner.cell.aliases > 1:
            items[i] = owner.inner.copy_(items[i])
    return items[0] if len(items) == 1 else tuple(items), list(zip(owners, items, strict=True))


def _attention(call: Call, recorder: Recorder) -> Any:
    fmt = FORMATS[call.args[0].dtype]
    return attention(
        call.func,
        unwrap(call.args),
        unwrap(call.kwargs),
        lambda p: recorder.site(p, fmt, "attention probabilities"),
    )


def _one_taken_off(name: str, args: list[Any], kwargs: dict[str, Any]) -> float | None:
    """The one, or minus one, that is taken off a tensor whose values end there; None for none."""
    number = args[1] if len(args) == 2 and not kwargs else None
    if not isinstance(number, (int, float)) or abs(number) != 1 or args[0].numel() == 0:
        return None
    end = float(-number if name == "add" else number)
    return end if float((args[0].detach() * end).amax()) <= 1 else None


def _flush_at(x: Tensor, fmt: Format, end: float) -> Tensor:
    return torch.where(x.detach() * end > 0, flush_to_one(x, fmt), x)


def _flushed(
    original: Any, inner: Any, recorder: Recorder, flush: Callable[[Tensor, Format], Tensor]
) -> Any:
    """An argument of a singular operation: near where it is singular, on the format's grid."""
    dtype = flushes(original)
    if dtype is None or inner.numel() == 0:
        return inner
    on_grid = flush(inner, FORMATS[dtype])
    recorder.bent = recorder.bent or not torch.equal(on_grid.detach(), inner.detach())
    return on_grid


def certain_error(
    call: Call, y: Tensor, fmt: Format, target: str, recorder: Recorder
) -> tuple[Tensor, Tensor | None]:
    """Rounding of a result whose outcome is no matter of chance, applied; what that settles.

    Args:
        call: the operation.
        y: its float32 result, before any rounding.
        fmt: the format it is rounded to.
        target: whose accumulators are meant.
        recorder: who asks, and for which formats.

    Returns:
        As of `certain_errors`.
    """
    known = call.known
    if not known.stepwise:
        operands = operands_of(known.name, call.args, fmt.dtype)
        certain = not call.noisy
        steps = certain or (recorder.repeats(known.name) and not within_a_layer())
        settles = certain or recorder.noise is not None
        entered = None if settles else partial(_entered, call, y)
        moved, fixed = certain_errors(y, operands, fmt, known.exact, steps, settles, entered)
        if recorder.asks and not known.exact:
            formats = (fmt, *(recorder.formats if recorder.adjoint else ()))
            exact = exact_results(known.name, call.args, call.kwargs, y, formats)
            fixed = fixed if exact is None else exact if fixed is None else fixed.maximum(exact)
        return moved, fixed
    args, kwargs = as_native(call.args), {k: as_native(v) for k, v in call.kwargs.items()}

    def run() -> Any:
        out = accumulate(known.name, call.func, args, kwargs, target)
        if known.name not in ON_THE_WAY:
            return out
        # The kernel's own error: that of its operands has been predicted where they were rounded.
        return y.detach() + (
            out.float() - run_wide(call.func, widen(args), {k: widen(v) for k, v in kwargs.items()})
        )

    return accumulated(y, run), None


def _entered(call: Call, y: Tensor) -> Tensor | None:
    """How far one rounding of each argument moves the results: the least error that is in them.

    None where that cannot be said: the operation has written its arguments already.
    """
    if call.known.mutated or call.known.mutated_names:
        return None
    with torch.no_grad():
        args, kwargs = (
            _rounded_once(call.args),
            {k: _rounded_once(v) for k, v in call.kwargs.items()},
        )
        there = flat(run_wide(call.func, args, kwargs))
        return next((t.sub_(y.detach()).abs_() for t in there if t.shape == y.shape), None)


def _rounded_once(value: Any) -> Any:
    """The float32 values of traced tensors, those of 16 bits off by the size of a rounding error.

    To either side in turn, so that a sum does not take them all for one.
    """
    if isinstance(value, Shadow) and value.dtype in LOW:
        inner = value.inner.detach()
        sides = torch.ones(inner.numel(), device=inner.device)
        sides[::2] = -1
        return inner + ulp(inner, FORMATS[value.dtype]) * sides.view(inner.shape) / 12**0.5
    if isinstance(value, (list, tuple)):
        return [_rounded_once(item) for item in value]
    return widen(unwrap(value))
