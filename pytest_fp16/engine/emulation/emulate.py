"""A 16-bit run where no 16-bit hardware is at hand: every operation in float32, rounded once.

The program that runs is the real 16-bit program: its tensors are float16 or bfloat16, so code that
branches on a dtype, constants, masks and float32 islands behave as they will on the device. Only
the arithmetic inside each ATen operation is done in float32, and its result rounded once, as CUDA
kernels do, which accumulate in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from pytest_fp16.engine.emulation.accumulators import accumulate
from pytest_fp16.engine.emulation.composed import composition
from pytest_fp16.engine.emulation.draws import keep_within_bounds
from pytest_fp16.engine.emulation.interception import wrapped
from pytest_fp16.engine.emulation.kernels import missing_kernel, require_same_dtype
from pytest_fp16.engine.emulation.nominal import doubled, dtype_of, nominal_dtypes, promoted_low
from pytest_fp16.engine.emulation.operations import (
    ATTENTION,
    WIDE,
    Facts,
    facts,
    flat,
    on_target,
    rebuild,
    tensors,
)
from pytest_fp16.engine.emulation.refusal import (
    UnsupportedOperation,
    require_fit,
    require_own_agreement,
)
from pytest_fp16.engine.emulation.scalars import as_the_kernel_takes, bounds_as_on, narrowed
from pytest_fp16.engine.emulation.target_mode import OnTarget
from pytest_fp16.engine.emulation.wide import attention, run_wide
from pytest_fp16.engine.emulation.wording import is_missing_kernel

#: Whose results are other numbers of the format itself: the one next to one.
_OF_A_GRID = frozenset({"nextafter"})


class Emulation(OnTarget):
    """Run the operations of a 16-bit program in float32, each result rounded once.

    Args:
        target: ``"cuda"`` or ``"cpu"``: the device whose kernels are meant.
        opaque: ``"native"`` runs kernels from outside ATen as they are, in 16 bits; ``"rounded"``
            runs them in float32 and rounds their results (what a sound kernel would give).
        mixed: the program runs under autocast.
    """

    def __init__(self, target: str = "cuda", opaque: str = "native", mixed: bool = False) -> None:
        super().__init__(target)
        self.target = target
        self.opaque = opaque
        self.mixed = mixed

    def run(
        self, func: OpOverload, types: Sequence[type], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """One operation, whatever its arguments are."""
        if wrapped(types):
            return NotImplemented  # its turn: what it computes with comes back here
        if not _touches_low(args, kwargs):
            return func(*args, **kwargs)
        composed = composition(func, args, self.target)
        if composed is not None:
            return composed(self.step, *args, **kwargs)
        known = facts(func)
        if known.view or known.reshapes:
            return func(*args, **kwargs)
        return self.compute(func, known, args, kwargs)

    def compute(
        self, func: OpOverload, known: Facts, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """One operation with 16-bit arguments or results."""
        self.require_kernel(known, args, kwargs)
        known = on_target(known, self.target)
        if known.foreign and not self.mixed:
            require_own_agreement(func, known.name, args, kwargs)
        # Moving values, and accumulating in 16 bits, is what the native kernel does exactly; it
        # also refuses what the device refuses (a constant that does not fit the format).
        on_its_grid = known.exact or known.stepwise or known.name in _OF_A_GRID
        if on_its_grid or (known.opaque and self.opaque == "native"):
            try:
                bound = bounds_as_on(known.name, args, self.target)
                return accumulate(known.name, func, bound, kwargs, self.target)
            except RuntimeError as error:
                if not is_missing_kernel(error):
                    raise
        require_same_dtype(known.name, args, self.target, kwargs)
        if "_scaled_dot_product_" in known.name:
            if args[0].device.type != "cpu":  # the kernel that is meant, there for 16 bits alone
                return func(*args, **kwargs)
            if known.name in ATTENTION:
                return _attention(func, args, kwargs)
        first = narrowed(known, args, self.target)
        if first is not None:
            args = tuple(a.to(first[0]) if i in first[1] else a for i, a in enumerate(args))
        return _widened(func, known, as_the_kernel_takes(known.name, args, self.target), kwargs)

    def require_kernel(self, known: Facts, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Raise UnsupportedOperation where the target is known to have no kernel for it."""
        require_fit(known.name, args, kwargs, self.target)
        if missing_kernel(known.name, args, self.target):
            require_same_dtype(known.name, args, self.target)  # asked before any kernel is
            low = next((t.dtype for t in tensors(args, kwargs) if t.dtype in WIDE), None)
            if low is not None:
                raise UnsupportedOperation(known.name, str(low).removeprefix("torch."), self.target)


def _touches_low(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    if kwargs and kwargs.get("dtype") in WIDE:
        return True
    for value in args:
        if isinstance(value, Tensor):
            if value.dtype in WIDE:
                return True
        elif isinstance(value, (list, tuple)) and any(
            isinstance(item, Tensor) and item.dtype in WIDE for item in value
        ):
            return True
    return any(t.dtype in WIDE for t in tensors((), kwargs)) if kwargs else False


def widen(value: Any) -> Any:
    """16-bit tensors as float32, 16-bit dtypes as torch.float32, lists element by element."""
    if isinstance(value, Tensor):
        return value.to(WIDE[value.dtype]) if value.dtype in WIDE else value
    if isinstance(value, (list, tuple)):
        return [widen(item) for item in value]
    return WIDE.get(value, value) if isinstance(value, torch.dtype) else value


def _widened(func: OpOverload, known: Facts, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    nominal = nominal_dtypes(func, args, kwargs)
    wide_args = tuple(widen(a) for a in args)
    wide_kwargs = {k: widen(v) for k, v in kwargs.items()}
    out = run_wide(func, wide_args, wide_kwargs)
    keep_within_bounds(known.name, out, args, kwargs)
    written = _write_back(known, args, kwargs, wide_args, wide_kwargs)
    items = flat(out)
    fallback = None if nominal else promoted_low(args, kwargs) or kwargs.get("dtype")
    rounded = []
    for i, item in enumerate(items):
        if id(item) in written:
            rounded.append(written[id(item)])
            continue
        if isinstance(item, Tensor):
            item = doubled(item.to(dtype_of(item, i, nominal, fallback)), i, nominal)
        rounded.append(item)
    return rebuild(out, iter(rounded))


def _write_back(
    known: Facts,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    wide_args: Sequence[Any],
    wide_kwargs: dict[str, Any],
) -> dict[int, Tensor]:
    """Copy what an operation wrote into float32 twins back, rounded; map each twin to its owner."""
    if not (known.mutated or known.statistics or known.mutated_names):
        return {}
    written: dict[int, Tensor] = {}
    pairs = [(args[i], wide_args[i]) for i in (*known.mutated, *known.statistics) if i < len(args)]
    pairs += [(kwargs[n], wide_kwargs[n]) for n in known.mutated_names if n in kwargs]
    for owner, twin in pairs:
        many = isinstance(owner, (list, tuple))
        listed = zip(owner, twin, strict=True) if many else [(owner, twin)]
        for tensor, wide in listed:
            if isinstance(tensor, Tensor):
                if wide is not tensor:
                    tensor.copy_(wide)
                written[id(wide)] = tensor
    return written


def _attention(func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    dtype = args[0].dtype
    round_probabilities: Callable[[Tensor], Tensor] = lambda p: p.to(dtype).to(torch.float32)  # noqa: E731
    wide = [widen(a) for a in args], {k: widen(v) for k, v in kwargs.items()}
    out, *rest = attention(func, *wide, round_probabilities)
    return (out.to(dtype), *rest)
