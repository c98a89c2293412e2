"""Values of one operation that are not finite: what exact arithmetic makes of its arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pytest_fp16.engine.emulation.composed import composition
from pytest_fp16.engine.emulation.operations import each, facts, flat, tensors
from pytest_fp16.engine.gradients.origins.forward_lines import goes_backwards
from pytest_fp16.report.model import Mechanism

#: Infinite where their argument, or one more or less than it, is zero.
DIVIDES = frozenset(
    "div reciprocal rsqrt log log2 log10 pow addcdiv sqrt log1p logit atanh erfinv".split()
)
#: Those of one more or less.
NEAR_ONE = frozenset("log1p logit atanh erfinv".split())
#: Infinite in float64, too, of arguments that are merely large.
_GROWING = frozenset("exp exp2 expm1 cosh sinh pow".split())


def mechanism_of_loss(
    name: str, lost: list[Tensor], exact: list[Tensor] | None, zero: bool
) -> Mechanism:
    """Why values were lost, from what exact arithmetic makes of the same arguments.

    Args:
        name: of the operation.
        lost: its results that are not finite.
        exact: float64's values where they are not; None where it cannot be run so.
        zero: whether the operation divides (or takes a logarithm), and an argument is zero.
    """
    if zero:
        return "eps-underflow"
    if exact is None:
        return "cancellation" if any(bool(t.isnan().any()) for t in lost) else "overflow"
    if any(bool(t.isnan().any()) for t in exact):
        return "cancellation"
    if any(bool(t.isinf().any()) for t in exact):
        return "overflow" if name in _GROWING else "eps-underflow"
    pairs = zip(exact, lost, strict=True)
    beyond = any(bool((e.abs() > torch.finfo(t.dtype).max).any()) for e, t in pairs)
    # A result that would fit: a constant inside the kernel has rounded to zero.
    return "overflow" if beyond else "eps-underflow"


class Called(NamedTuple):
    """An operation, what it was given, and what it returned."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[Any]

    def name(self, whole: str) -> str:
        """Its name as part of another operation; empty where it is the same one."""
        name = facts(self.func).name
        return "" if name == whole else name


def losing_part(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Called | None:
    """Of an operation that is composed of others: the first to lose a value of finite arguments.

    Runs it once more, in the format that is emulated.
    """
    composed = composition(func, args, None)
    if composed is None:
        return None
    seen: list[Called] = []

    def step(part: Any, *given: Any, **named: Any) -> Any:
        out = part(*given, **named)
        results = flat(out)
        if not seen and not all(map(finite, results)) and all(map(finite, tensors(given, named))):
            seen.append(Called(part, given, named, results))
        return out

    composed(step, *args, **kwargs)
    return seen[0] if seen else None


def divisor(name: str, argument: Tensor) -> Tensor:
    """What must not be zero of an argument of `DIVIDES`: ``log1p`` is of one more than it."""
    if name not in NEAR_ONE or not argument.is_floating_point():
        return argument
    if name == "log1p":
        return 1 + argument
    return argument * (1 - argument) if name == "logit" else 1 - argument.abs()


def is_mask(values: Tensor) -> bool:
    """Whether these are zeros and ones only, or zeros and minus ones, as of a mask less one."""
    zero = values == 0
    return any(bool((zero | (values == one)).all()) for one in (1, -1))


def mask_constant(name: str, args: tuple[Any, ...], lost: list[Tensor]) -> float | None:
    """The number, infinite in the format, to which an operation scales a mask.

    None on the way backwards, where a slope of one is no mask.
    """
    if goes_backwards():
        return None
    scalars = [a for a in args if isinstance(a, (int, float))]
    beyond = [s for s in scalars if any(abs(s) > torch.finfo(t.dtype).max for t in lost)]
    if name != "mul" or not beyond:
        return None
    masks = [stored(t) for t in tensors(args, {})]
    return beyond[0] if all(m.numel() > 1 and is_mask(m) for m in masks) else None


def zero_where(lost: Tensor, argument: Tensor) -> bool:
    """Whether an argument is zero where a result is not finite."""
    try:
        zero = (argument == 0).expand(lost.shape)
    except RuntimeError:  # of another shape
        return False
    return bool((zero & ~torch.isfinite(lost)).any())


def stored(tensor: Tensor) -> Tensor:
    """A tensor with the numbers of another, whatever its layout: a sparse one has few kernels."""
    return tensor._values() if tensor.layout is torch.sparse_coo else tensor


def results_of(func: Any, args: Sequence[Any], out: Any) -> list[Any]:
    """What an operation returned; what it wrote where it returns nothing (a fused optimizer)."""
    return flat(out) if out is not None else flat([args[i] for i in facts(func).mutated])


def in_float64(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], results: list[Any]
) -> list[Tensor] | None:
    """What float64 gives where the results were not finite; None where it has no such kernel."""
    wide = tuple(map(_double, args))
    try:
        out = func(*wide, **{k: _double(v) for k, v in kwargs.items()})
    except Exception:
        return None
    exact = results_of(func, wide, out)
    lost = [(e, t) for e, t in zip(exact, results, strict=False) if not finite(t)]
    if any(not isinstance(e, Tensor) for e, _ in lost):
        return None
    pairs = [(stored(e), stored(t)) for e, t in lost]
    if any(e.shape != t.shape for e, t in pairs):
        return None
    return [e[~torch.isfinite(t)].double() for e, t in pairs]


def _double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        return [_double(item) for item in value]
    if isinstance(value, torch.dtype) and value.is_floating_point:
        return torch.float64
    return value


def copies(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """The arguments as they were before the operation, small tensors copied."""

    def copied(tensor: Tensor) -> Tensor:
        return tensor.detach().clone() if tensor.numel() <= 2**20 else tensor

    return tuple(each(a, copied) for a in args), {k: each(v, copied) for k, v in kwargs.items()}


def has_nan(values: list[Any]) -> bool:
    """Whether a tensor among them holds NaN."""
    floating = [t for t in values if isinstance(t, Tensor) and t.is_floating_point()]
    return any(bool(stored(t).isnan().any()) for t in floating)


def finite(value: Any) -> bool:
    """Whether a tensor holds finite numbers alone; anything else does."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return True
    return bool(torch.isfinite(stored(value)).all())
