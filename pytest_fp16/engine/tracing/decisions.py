"""Decisions inside a model: comparisons, selections and integer parts that rounding could change.

They have no useful gradient, so an input whose values come near one loses its certificate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.tracing.sites import SiteKey
from pytest_fp16.theory.rounding import Format, ulp

#: A comparison may fall either way where its operands are closer than this many times their
#: predicted error: 4σ of the difference of two.
DECISION_SIGMAS = 6.0
#: The same in ulps, where no error was predicted.
DECISION_ULPS = 16.0
#: The values on either side of a kink differ by at most so many times the distance to it.
STEEPEST = 4.0

#: Module and operation of each decision, in the order of the program, and its operands.
Operands = list[tuple[SiteKey, Tensor]]
#: The same with the root mean square of the operands' error.
Errors = list[tuple[SiteKey, float]]


@dataclass(frozen=True)
class Doubt:
    """A decision that rounding could change.

    Attributes:
        rows: the inputs for which it could, bool [B].
        gap: of a comparison, how far its operands are apart where it could fall the other way,
            infinite elsewhere; else None. A sign is a comparison with zero.
        apart: how far apart the two numbers are between which it chooses: a sign's are −1 and 1.
    """

    rows: Tensor
    gap: Tensor | None = None
    apart: float = 1.0


_COMPARISONS = frozenset({"gt", "lt", "ge", "le", "eq", "ne"})
#: Comparisons with zero whose result is a number.
SIGNS = frozenset({"sign", "sgn"})
#: Functions with a jump or two.
_JUMPS = SIGNS | {"heaviside", "signbit", "copysign", "hardshrink", "threshold"}
#: Staircases and saws of one step, and of steps as wide as their divisor.
_STEPS = frozenset({"floor", "ceil", "trunc", "round", "_to_copy", "frac"})
_QUOTIENTS = frozenset({"floor_divide", "div", "fmod", "remainder"})
#: Those that have no step at zero.
_TOWARDS_ZERO = frozenset({"trunc", "_to_copy", "frac", "fmod"})
_SEARCHES = frozenset(
    {"argmax", "argmin", "max", "min", "topk", "sort", "argsort", "kthvalue", "median", "mode"}
)


def near_decision(
    name: str,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    fmt: Format,
    error: float | None = None,
) -> Tensor | None:
    """Where rounding could change the outcome of a discrete operation.

    Args:
        name: the operation.
        args: its positional arguments, tensors in float32.
        kwargs: its keyword arguments.
        fmt: the format of the 16-bit program.
        error: the predicted error of its operands (root mean square), or None.

    Returns:
        Bool, of the shape of the operands, or with the dimension that was searched last and
        reduced; None where there is nothing to decide.
    """
    x, rest = compared(name, args), args[1:]
    if name in _COMPARISONS and rest and rest[0] is x:
        return None  # with itself, which is how ``isfinite`` asks for NaN
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.numel() == 0:
        return None
    x = x.detach()

    def near(x: Tensor, other: Tensor) -> Tensor:
        other = other.detach().to(x.dtype)
        if error is not None:  # of none, nothing falls the other way: masks, counts
            return (x - other).abs() < DECISION_SIGMAS * error
        scale = torch.maximum(x.abs(), other.abs())
        gap = (x - other).abs()  # of an infinity: nothing is near it
        return gap.isfinite() & (gap <= DECISION_ULPS * ulp(scale.float(), fmt))

    if name in _COMPARISONS:
        return near(x, torch.as_tensor(rest[0] if rest else kwargs["other"], device=x.device))
    if name == "equal":
        return near(x, rest[0]) if x.shape == rest[0].shape else None
    if name == "allclose":
        return near((x - rest[0]).abs(), _tolerance(rest[0], *rest[1:3], **kwargs))
    if name in _JUMPS:
        return _near_jump(name, x, args, near)
    if name in ("bucketize", "searchsorted"):
        return _near_boundary(name, x, rest[0], near)
    if name in _STEPS or name in _QUOTIENTS:
        return _near_step(name, x, rest, kwargs, near)
    return _near_rank(name, x, rest, kwargs, near) if name in _SEARCHES else None


def compared(name: str, args: Sequence[Any]) -> Any:
    """What a decision asks for: the first argument, and of ``copysign`` what gives the sign."""
    return args[1] if name == "copysign" else args[0]


def falls(name: str, kwargs: dict[str, Any], result: Any) -> bool:
    """Whether an operation that may be a decision is one: a division that rounds, a cast that does.

    Args:
        name: the operation.
        kwargs: its keyword arguments.
        result: the first of its results, or None.
    """
    if name == "div":
        return kwargs.get("rounding_mode") is not None
    return name != "_to_copy" or not result.is_floating_point()


def gap(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor | None:
    """How far the operands of a comparison are apart, element by element; None of anything else."""
    if name in SIGNS or name == "signbit":
        return args[0].detach().abs()  # type: ignore[no-any-return]
    if name not in _COMPARISONS:
        return None
    x, other = args[0].detach(), args[1] if len(args) > 1 else kwargs["other"]
    distance: Tensor = (x - torch.as_tensor(other, device=x.device).detach().to(x.dtype)).abs()
    return distance


def _tolerance(other: Tensor, rtol: float = 1e-5, atol: float = 1e-8, **_: object) -> Tensor:
    """How far a value may be from another to be called close, as ``torch.allclose`` has it."""
    return other.abs().mul(rtol).add(atol)


_Near = Callable[[Tensor, Tensor], Tensor]


def _near_jump(name: str, x: Tensor, args: Sequence[Any], near: _Near) -> Tensor | None:
    """Values near a jump, at zero but for two functions that are told where."""
    if name == "hardshrink":
        return near(x.abs(), torch.as_tensor(args[1] if len(args) > 1 else 0.5))
    if name == "threshold":
        return near(x, torch.as_tensor(args[1])) if args[1] != args[2] else None
    found = near(x, torch.zeros_like(x))
    if name == "copysign":  # given back to its own size, a sign is no jump
        found = found & (2 * args[0].detach().abs() > STEEPEST * x.abs())
    return found


def _near_step(
    name: str, x: Tensor, rest: Sequence[Any], kwargs: dict[str, Any], near: _Near
) -> Tensor:
    """Values near the edge of a step: those of rounding lie half-way between them."""
    if name == "_to_copy" and kwargs.get("dtype") is torch.bool:
        return near(x, torch.zeros_like(x))
    width = rest[0] if name in _QUOTIENTS else 10.0 ** -kwargs.get("decimals", 0)
    half = 0.5 if name == "round" else 0.0
    edge: Tensor = ((x / width - half).round() + half) * width
    level = name in _TOWARDS_ZERO or kwargs.get("rounding_mode") == "trunc"
    return near(x, edge) & (edge != 0) if level else near(x, edge)


def _near_boundary(name: str, x: Tensor, other: Any, near: _Near) -> Tensor | None:
    values, boundaries = (x, other) if name == "bucketize" else (other, x)
    if not isinstance(values, Tensor) or not isinstance(boundaries, Tensor):
        return None
    if boundaries.dim() > 1 or not values.is_floating_point():
        return None
    return near(values.unsqueeze(-1), boundaries).any(-1)


def _near_rank(
    name: str, x: Tensor, rest: Sequence[Any], kwargs: dict[str, Any], near: _Near
) -> Tensor | None:
    """Neighbours in the order so close that they could change places, and with them the choice."""
    dim = _searched_dim(name, rest, kwargs)
    ordered = (x.flatten() if dim is None or x.dim() == 0 else x.movedim(dim, -1)).sort(-1).values
    n = ordered.shape[-1]
    smallest = name in ("argmin", "min") or (name == "topk" and not _largest(rest, kwargs))
    k = int(rest[0] if rest else kwargs["k"]) if name == "topk" else 1
    if name in ("argmax", "max", "argmin", "min", "topk"):
        at = k - 1 if smallest else n - k - 1
        first, last = at, at + 1
    else:
        first, last = 0, n - 1
    if first < 0 or last > n - 1:
        return None
    return near(ordered[..., first:last], ordered[..., first + 1 : last + 1])


def _searched_dim(name: str, rest: Sequence[Any], kwargs: dict[str, Any]) -> int | None:
    if "dim" in kwargs:
        dim: int | None = kwargs["dim"]
        return dim
    position = 1 if name in ("topk", "kthvalue") else 0
    if len(rest) > position and isinstance(rest[position], int):
        return int(rest[position])
    return None if name in ("argmax", "argmin", "max", "min", "median") else -1


def _largest(rest: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    return bool(rest[2]) if len(rest) > 2 else bool(kwargs.get("largest", True))


def predicted_error(errors: Errors, index: int, key: SiteKey) -> float | None:
    """That of decision `index`, None where nothing is known of it."""
    if index < len(errors) and errors[index][0] == key:
        return errors[index][1]
    return None
