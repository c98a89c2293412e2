"""What a trace needs to know of one operation's arguments and results; no state of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from pytest_fp16.engine.emulation.interception import READ_ON_HOST
from pytest_fp16.engine.emulation.operations import (
    LOW,
    ON_THE_WAY,
    WIDE,
    Facts,
    facts,
    tensors,
)
from pytest_fp16.engine.emulation.scalars import is_number
from pytest_fp16.engine.tracing.shadow import Shadow
from pytest_fp16.theory.rounding import Format


def reshaped(func: OpOverload, args: Any, kwargs: Any) -> Any:
    """An operation such as transpose_: the values' shape changes, and that of their wrapper."""
    shadow = args[0]
    name = func._schema.name.partition("::")[2].removesuffix("_")
    view = getattr(torch.ops.aten, name, None)
    if view is not None and all(facts(getattr(view, o)).view for o in view.overloads()):
        inner = view(shadow.inner, *args[1:], **kwargs)  # what autograd saved stays as it was
    else:
        inner = shadow.inner.view_as(shadow.inner)
        func(inner, *args[1:], **kwargs)
    shadow.inner = inner
    with torch._C._DisableTorchDispatch():
        func(*args, **kwargs)
    return shadow


def as_native(value: Any) -> Any:
    """Traced tensors as the plain 16-bit tensors of the program."""
    if isinstance(value, Shadow):
        return value.native()
    if isinstance(value, (list, tuple)):
        return [as_native(item) for item in value]
    if isinstance(value, dict):
        return {key: as_native(item) for key, item in value.items()}
    return value


def shadows_in(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Shadow]:
    """Every traced tensor among the arguments of an operation."""
    return [t for t in tensors(args, kwargs) if isinstance(t, Shadow)]


def severs(args: Any, results: list[Any]) -> bool:
    """Whether a gradient arrives, and no result passes it on."""
    given = any(isinstance(t, Tensor) and t.requires_grad for t in results)
    arrives = (s.inner.requires_grad for s in shadows_in(args, {}) if s.is_floating_point())
    return not given and any(arrives)


def written_targets(
    args: Any, inner_args: Any, i: int
) -> list[tuple[Shadow, Callable[[Tensor], None]]]:
    """The tensors an operation writes at position `i`, each with a way to hand it another."""
    if i >= len(args):
        return []
    if isinstance(args[i], Shadow):
        return [(args[i], lambda t: inner_args.__setitem__(i, t))]
    if isinstance(args[i], (list, tuple)):
        return [
            (shadow, lambda t, j=j: inner_args[i].__setitem__(j, t))  # type: ignore[misc]
            for j, shadow in enumerate(args[i])
            if isinstance(shadow, Shadow)
        ]
    return []


def stays_plain(name: str, i: int, result: Tensor, depends: bool) -> bool:
    """Whether a result reaches the program as it is: composite kernels look into it.

    They read some integers on the host, and ask a matrix whether it is sparse; a sparse one that
    depends on the model's input is traced all the same.
    """
    return (name, i) in READ_ON_HOST or (result.layout is not torch.strided and not depends)


def narrows(known: Facts, args: Any, kwargs: Any) -> bool:
    """Whether an operation that only moves values moves them into a narrower dtype."""
    if known.name == "_to_copy":
        return kwargs.get("dtype") in WIDE and args[0].dtype not in (kwargs["dtype"],)
    if known.name == "copy":
        return bool(
            args[0].dtype in WIDE and isinstance(args[1], Shadow) and args[1].dtype != args[0].dtype
        )
    return False


def steps(known: Facts, args: Any, y: Tensor) -> float:
    """Roundings per value: an accumulator in 16 bits rounds at every addition."""
    if not known.stepwise or known.name in ON_THE_WAY:
        return 1.0
    sources = shadows_in(args[1:], {}) or shadows_in(args, {})  # those of a product come first
    source = max((s.numel() for s in sources), default=y.numel())
    return max(1.0, source / y.numel())


def grid_of(known: Facts, args: Any, kwargs: Any) -> torch.dtype | None:
    """The 16-bit dtype that holds a float32 result still: what was cast up, and only moved since.

    A number among the arguments (the floor of a clamp) need not be one that it holds.
    """
    if not known.exact or any(isinstance(v, float) for v in (*args, *kwargs.values())):
        return None
    given = [s for s in shadows_in(args, kwargs) if s.is_floating_point()]
    grids = {s.dtype if s.dtype in LOW else s.cell.grid for s in given}
    return grids.pop() if len(grids) == 1 else None


def flushes(original: Any) -> torch.dtype | None:
    """The 16-bit dtype in whose steps a singular operation meets this argument, if in any.

    Whole numbers, such as the place of the largest of 16-bit ones, stay what they are.
    """
    if not isinstance(original, Shadow) or not original.cell.depends:
        return None
    if not original.is_floating_point():
        return None
    return original.dtype if original.dtype in LOW else original.cell.grid


def refuse_constants(func: OpOverload, args: Any, kwargs: Any, fmt: Format) -> None:
    """Let the native kernel refuse a scalar that the format cannot hold, on two elements.

    A CPU fills one element alone without a look at the scalar.
    """
    scalars = filter(is_number, (*args, *kwargs.values()))
    if not any(fmt.largest < abs(v) < float("inf") for v in scalars):
        return

    def one(value: Any) -> Any:
        if isinstance(value, Shadow):
            shape = [*[1] * (value.dim() - 1), 2] if value.dim() else []
            return torch.zeros(shape, dtype=value.dtype)
        return value

    try:
        func(*(one(a) for a in args), **{k: one(v) for k, v in kwargs.items()})
    except RuntimeError as error:
        if "cannot be converted" in str(error):
            raise
    except Exception:
        return
