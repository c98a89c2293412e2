"""Why a divisor is zero: a guard that is lost, a difference of equal numbers, or an underflow.

``x / (x.std() + 1e-8)`` lacks its guard in float16, ``1 / (1 - a)`` has none and meets an ``a``
that has rounded to one, and a product of tiny numbers is below the format, as is a tiny number of a
table in a buffer. So where a value first becomes zero is remembered, and handed on with it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pytest_fp16.engine.emulation.operations import LOW, facts, tensors
from pytest_fp16.engine.gradients.finding import leaf_of, module_of
from pytest_fp16.engine.gradients.origins.lost_values import (
    NEAR_ONE,
    divisor,
    in_float64,
    stored,
    zero_where,
)
from pytest_fp16.report.model import Mechanism

_DIFFERENCES = frozenset("add sub rsub".split())
_CLAMPS = frozenset("clamp clamp_min".split())
#: What makes a zero of numbers that are none: too small for the format.
_SHRINKS = frozenset(
    "mul exp exp2 pow square _softmax sigmoid div mm bmm mean prod _to_copy".split()
)
#: What a zero is still zero after.
_CARRIES = frozenset(
    "sqrt expand clone _unsafe_view _to_copy mul mm bmm sum mean abs neg index gather amax square "
    "pow stack cat where div sin tan tanh asin atan sinh erf expm1 log1p".split()
)
#: What also keeps a bound below one as far from zero as it is.
_KEEPS = frozenset("neg clone expand _unsafe_view _to_copy".split())


class Zeroed(NamedTuple):
    """How a tensor came by its zeros.

    Attributes:
        mechanism: why.
        module, operation, source: where a value that is too small became zero; empty for others,
            which are told where they are divided by.
    """

    mechanism: Mechanism
    module: str = ""
    operation: str = ""
    source: str | None = None
    stored: float | None = None
    constant: float | None = None


class Zeros:
    """Remembers of tensors that hold zeros how they came by them."""

    def __init__(self, here: Callable[[], tuple[str, str | None]]) -> None:
        """Start with none.

        Args:
            here: says which module runs now, and which line of the user's.
        """
        self._causes: dict[int, tuple[Any, Zeroed]] = {}
        self._here = here
        self._buffers: dict[int, tuple[Any, Zeroed]] = {}

    def know(self, name: str, buffer: Tensor, held: float) -> None:
        """Remember, for good, that a cast has made zeros of what a buffer held."""
        cause = Zeroed("underflow", module_of(name), leaf_of(name), stored=held)
        self._buffers[id(buffer)] = weakref.ref(buffer), cause

    def clear(self) -> None:
        """Forget them: a step is over."""
        self._causes.clear()

    def cause(self, tensor: Tensor) -> Zeroed | None:
        """Why a tensor has zeros; None where nothing is known of it."""
        held = self._causes.get(id(tensor)) or self._buffers.get(id(tensor))
        return held[1] if held is not None and held[0]() is tensor else None

    def divided(
        self, name: str, given: tuple[Any, ...], args: tuple[Any, ...], lost: list[Tensor]
    ) -> Zeroed | None:
        """Why a divisor is zero where results are lost; None where nothing is known of it.

        Args:
            name: of the operation.
            given: the arguments themselves.
            args: as they were before the operation.
            lost: its results.
        """
        pairs = [*zip(tensors(given, {}), tensors(args, {}), strict=True)]
        for own, before in reversed(pairs):  # the divisor comes last
            zero = divisor(name, stored(before))
            if any(zero_where(t, zero) for t in lost) and self.cause(own) is not None:
                return self.cause(own)
        # What is no bound below one, as a clamp's would be, has itself rounded to one.
        rounded = not any(zero_where(t, stored(one)) for t in lost for one in tensors(args, {}))
        return Zeroed("cancellation") if name in NEAR_ONE and rounded else None

    def note(self, func: Any, args: tuple[Any, ...], kwargs: Any, given: Any, out: Any) -> None:
        """An operation has run.

        Args:
            func: the operation.
            args, kwargs: as they were before it.
            given: the arguments themselves, by which they are known.
            out: its result.
        """
        if not isinstance(out, Tensor) or out.dtype not in (*LOW, torch.float32):
            return
        if out.layout is not torch.strided:
            return
        known = facts(func)
        carried = known.view or known.name in _CARRIES or known.name in _DIFFERENCES | _CLAMPS
        causes = [self.cause(t) for t in tensors(given, {})] if carried else []
        handed = next((c for c in causes if c is not None), None)
        if _lost_below_one(known.name, args, kwargs, out.dtype):
            self._causes[id(out)] = weakref.ref(out), Zeroed("eps-underflow")
            return
        if handed is not None and known.name in _KEEPS:
            self._causes[id(out)] = weakref.ref(out), handed
            return
        if not out.numel() or not bool((out == 0).any()):
            return
        made = self._made(func, args, kwargs, out)
        guard = next((c for c in causes if c is not None and c.mechanism == "eps-underflow"), None)
        if made == "eps-underflow":
            guard = guard or Zeroed(made, constant=_guard_in(args, kwargs))
        if guard is None and handed is not None and handed.stored and known.name == "add":
            guard = handed._replace(mechanism="eps-underflow")  # a guard that is held in a buffer
        cause = guard or handed
        if cause is None and made is not None:
            shrinks = made == "underflow"
            cause = Zeroed(made, *self._by(known.name)) if shrinks else Zeroed(made)
        if cause is not None:
            self._causes[id(out)] = weakref.ref(out), cause

    def _by(self, operation: str) -> tuple[str, str, str | None]:
        module, source = self._here()
        return module, operation, source

    def _made(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> Mechanism | None:
        """Why an operation has made zeros itself, if it has."""
        name = facts(func).name
        if name in _CLAMPS or name == "add":
            constant = args[1] if len(args) > 1 else kwargs.get("min")
            if isinstance(constant, float) and constant > 0:
                return None if float(torch.tensor(constant).to(out.dtype)) else "eps-underflow"
        zero = out == 0
        if name == "mul" and _too_small(args, out.dtype):
            # A guard for some alone: ``d + (d == 0) * 1e-16``.
            return "eps-underflow" if bool((zero & _nonzero(args[0], out)).any()) else None
        if name in _DIFFERENCES and len(args) > 1:
            met = zero & _nonzero(args[0], out) & _nonzero(args[1], out)
            return "cancellation" if bool(met.any()) else None
        if name in _SHRINKS and out.dtype in LOW:
            lost = torch.where(zero, torch.nan, out)  # what is not finite is asked of float64
            exact = in_float64(func, args, kwargs, [lost])
            if exact and bool((exact[0] != 0).any()):
                return "underflow"
        return None


def _lost_below_one(name: str, args: Any, kwargs: Any, dtype: torch.dtype) -> bool:
    """Whether something is held below one, by a bound that is one in the format."""
    if name == "clamp":
        bound = args[2] if len(args) > 2 else kwargs.get("max")
    else:
        bound = args[1] if name == "clamp_max" and len(args) > 1 else None
    return isinstance(bound, float) and bound < 1 <= float(torch.tensor(bound).to(dtype))


def _guard_in(args: tuple[Any, ...], kwargs: Any) -> float | None:
    """The number of a program's own among the arguments of an operation."""
    return next((a for a in (*args, *kwargs.values()) if isinstance(a, float)), None)


def _too_small(args: tuple[Any, ...], dtype: torch.dtype) -> bool:
    """Whether one factor is a number that the format does not have."""
    number = next((a for a in args if isinstance(a, float)), 0.0)
    return number > 0 and not float(torch.tensor(number).to(dtype))


def _nonzero(value: Any, out: Tensor) -> Tensor:
    held = value if isinstance(value, Tensor) else torch.tensor(float(value), device=out.device)
    return (held != 0).expand(out.shape)
