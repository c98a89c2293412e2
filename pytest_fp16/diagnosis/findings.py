"""What is measured where one operation of an autopsy is watched."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from pytest_fp16.diagnosis.twin import Twin, low, twins
from pytest_fp16.engine.emulate import widen
from pytest_fp16.engine.operations import LOW, flat
from pytest_fp16.theory.rounding import FORMATS, Format, ulp

#: Operations that add, of which an addend can be lost beside another.
ADDITIONS = frozenset("add sub rsub index_add scatter_add addcmul addcdiv lerp".split())
_SCALARS = ("number", "Optional[number]", "float", "Optional[float]")


@dataclass(frozen=True)
class Measure:
    """A tensor of the 16-bit program against its exact twin (or against what it should be).

    Attributes:
        largest: largest finite magnitude of the exact one.
        value, error: root mean squares of the exact one and of the difference, where both are
            finite.
        count: elements; `lost` are NaN or infinite where the exact one is finite, `infinite` of
            them infinite; `zeroed` zero where the exact one is not; `small` below the format's
            normal range.
        small_error: part of the squared error at values below the normal range.
        steps: root mean square of the difference over that of the spacings of the format; of a
            sound rounding it is √(1/12) = 0.29.
        exact_zeros: elements whose exact value is zero.
        ruined: share of elements that are wrong by a quarter of their value or more.
        constant: the one value that all those that became infinite should have, or None.
        binary: the exact one holds zeros and ones only.
        whole: the exact one holds whole numbers only.
        fixed: it does not depend on the model's input; `made`: an operation made it.
    """

    dtype: torch.dtype
    largest: float
    value: float
    error: float
    count: int
    lost: int
    infinite: int
    zeroed: int
    small: int
    small_error: float
    steps: float
    exact_zeros: int
    ruined: float
    constant: float | None
    binary: bool
    whole: bool
    fixed: bool = False
    made: bool = True

    @property
    def relative(self) -> float:
        """Root mean square of the error over that of the values."""
        return self.error / self.value if self.value > 0 else (float("inf") if self.error else 0.0)


@dataclass
class Finding:
    """One watched operation.

    Attributes:
        scalars: its scalar arguments.
        operands: its floating operands against their exact twins, as they entered.
        results: its floating results against the exact program's.
        own: the same results against the operation without rounding on the operands it had.
        addend: for an addition, the median over elements of the smaller addend in units of the
            spacing of the 16-bit numbers at the sum; None where nothing was added.
        decided: share of integer or bool results that differ from the exact program's.
    """

    scalars: list[float] = field(default_factory=list)
    operands: list[Measure] = field(default_factory=list)
    results: list[Measure] = field(default_factory=list)
    own: list[Measure] = field(default_factory=list)
    addend: float | None = None
    addends: tuple[float, float] = (0.0, 0.0)
    decided: float = 0.0


def measured(
    actual: Tensor, wanted: Tensor, dtype: torch.dtype, fixed: bool = False, made: bool = True
) -> Measure:
    """Compare two tensors of one shape; `dtype` is the format of the first."""
    actual, wanted = actual.detach().float(), wanted.detach().float()
    finite = actual.isfinite() & wanted.isfinite()
    lost = wanted.isfinite() & ~actual.isfinite()
    error = torch.where(finite, actual - wanted, 0.0).double()
    values = torch.where(wanted.isfinite(), wanted, 0.0)
    fmt = FORMATS.get(dtype)
    tiny = torch.zeros_like(finite)
    if fmt is not None:
        tiny = (values.abs() < fmt.smallest_normal) & (values != 0)
    square = error.square()
    total = float(square.sum())
    n = max(1, actual.numel())
    away = wanted[lost & actual.isinf()]
    same = away.numel() > 1 and bool((away == away[0]).all())
    return Measure(
        dtype=dtype,
        largest=float(values.abs().max()) if values.numel() else 0.0,
        value=float(values.double().square().mean().sqrt()) if values.numel() else 0.0,
        error=(total / n) ** 0.5,
        count=actual.numel(),
        lost=int(lost.sum()),
        infinite=int((lost & actual.isinf()).sum()),
        zeroed=int(((actual == 0) & (values != 0)).sum()),
        small=int(tiny.sum()),
        small_error=float(square[tiny].sum()) / total if total > 0 else 0.0,
        steps=_steps(error, values, fmt),
        exact_zeros=int((values == 0).sum()),
        ruined=float((error.abs() > 0.25 * values.abs()).double().mean())
        if actual.numel()
        else 0.0,
        constant=float(away[0]) if same else None,
        binary=bool(((values == 0) | (values == 1)).all()),
        whole=bool((values == values.round()).all()),
        fixed=fixed,
        made=made,
    )


def _steps(error: Tensor, values: Tensor, fmt: Format | None) -> float:
    if fmt is None or not values.numel():
        return 0.0
    return float(error.square().mean().sqrt() / ulp(values, fmt).double().square().mean().sqrt())


@dataclass
class Before:
    """What went into an operation, kept because it may overwrite it."""

    finding: Finding
    addends: list[Any]


def operands(func: OpOverload, name: str, args: Any, kwargs: Any) -> Before:
    """Measure what goes into an operation."""
    finding = Finding(scalars=_scalars(func, args, kwargs))
    for twin in twins(args, kwargs):
        if twin.is_floating_point():
            fate = twin.fate
            finding.operands.append(
                measured(twin.low, twin.exact, twin.dtype, fate.fixed, fate.made)
            )
    addends: list[Any] = []
    if name in ADDITIONS:
        places = [a for a in args if isinstance(a, (Twin, int, float))]
        addends = [_kept(places[0]), _kept(places[-1] if name in STEPWISE else places[1])]
        alpha = kwargs.get("alpha", 1)
        if name in ("add", "sub") and isinstance(alpha, (int, float)) and alpha != 1:
            addends[1] = addends[1] * alpha
    return Before(finding, addends)


STEPWISE = frozenset({"index_add", "scatter_add"})


def _kept(value: Any) -> Any:
    return low(value).detach().float().clone() if isinstance(value, Twin) else float(value)


def _scalars(func: OpOverload, args: Any, kwargs: Any) -> list[float]:
    found = []
    for i, argument in enumerate(func._schema.arguments):
        value = args[i] if i < len(args) else kwargs.get(argument.name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        takes = str(argument.type) in _SCALARS or str(argument.type) == "Tensor"
        if number and takes and argument.name != "alpha":
            found.append(float(value))
    return found


def examined(before: Before, name: str, results: Any, local: Any) -> Finding:
    """Measure what came out of an operation."""
    finding = before.finding
    locals_ = flat(local) if local is not None else []
    for i, item in enumerate(flat(results)):
        if not isinstance(item, Twin):
            continue
        if not item.is_floating_point():
            differ = item.low != item.exact
            finding.decided = max(finding.decided, float(differ.float().mean()))
            continue
        finding.results.append(measured(item.low, item.exact, item.dtype))
        alone = locals_[i] if i < len(locals_) else None
        if isinstance(alone, Tensor) and alone.shape == item.low.shape:
            finding.own.append(measured(item.low, alone, item.dtype))
        if i == 0 and before.addends and item.dtype in LOW:
            _measure_addends(finding, before.addends, item, name)
    return finding


def _measure_addends(finding: Finding, addends: list[Any], total: Twin, name: str) -> None:
    values = [torch.as_tensor(a, device=total.low.device) for a in addends]
    if name in STEPWISE:
        sizes = [float(v.abs().amax()) if v.numel() else 0.0 for v in values]
        sizes[0] = float(widen(total.low).abs().amax())
        small, large = torch.tensor([min(sizes)]), torch.tensor([max(sizes)])
    else:
        try:
            first, second = torch.broadcast_tensors(values[0].abs(), values[1].abs())
        except RuntimeError:
            return
        small, large = torch.minimum(first, second), torch.maximum(first, second)
    some = (small > 0) & large.isfinite()
    if not bool(some.any()):
        return
    small, large = small[some], large[some]
    steps = small / ulp(large, FORMATS[total.dtype])
    finding.addend = float(steps.median())
    finding.addends = (float(small.median()), float(large.median()))
