"""What is measured where one operation of a 16-bit program is watched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from pytest_fp16.diagnosis.measure import Measure
from pytest_fp16.engine.emulation.emulate import widen
from pytest_fp16.engine.emulation.operations import LOW, flat
from pytest_fp16.engine.emulation.scalars import is_number
from pytest_fp16.engine.tracing.recorder import largest_magnitude
from pytest_fp16.theory.rounding import FORMATS, ulp

#: Operations that add, of which an addend can be lost beside another.
ADDITIONS = frozenset("add sub rsub index_add scatter_add addcmul addcdiv lerp".split())
#: Those that add many terms into one sum, one after another.
STEPWISE = frozenset({"index_add", "scatter_add"})
#: Running sums, which give every sum on the way.
RUNNING = frozenset({"cumsum"})
#: What those add to their first operand that make their addend of others.
_COMPOSED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "addcmul": lambda _, a, b: a * b,
    "addcdiv": lambda _, a, b: a / b,
    "lerp": lambda start, end, weight: weight * (end - start),
}
_SCALARS = ("number", "Optional[number]", "float", "Optional[float]")


@dataclass(frozen=True)
class Pair:
    """A tensor of the 16-bit program and its exact twin, at one moment.

    Attributes:
        dtype: as the program sees it.
        fixed, made: see `Fate`.
    """

    low: Tensor
    exact: Tensor
    dtype: torch.dtype
    fixed: bool = False
    made: bool = True

    def measure(self) -> Measure:
        """The one against the other."""
        return Measure(self.low, self.exact, self.dtype, self.fixed, self.made)


@dataclass
class Finding:
    """One watched operation.

    Attributes:
        scalars: its scalar arguments.
        operands: its floating operands against their exact twins, as they entered.
        results: its floating results against the exact program's.
        own: the same results against the operation without rounding on the operands it had.
        addition: for an addition, its two addends and the sum; None where nothing was added.
        decided: share of integer or bool results that differ from the exact program's.
        asked: the format the program was asked to run in, which is not every operation's own.
    """

    scalars: list[float] = field(default_factory=list)
    operands: list[Measure] = field(default_factory=list)
    results: list[Measure] = field(default_factory=list)
    own: list[Measure] = field(default_factory=list)
    addition: Addition | None = None
    decided: float = 0.0
    asked: torch.dtype = torch.float16

    @cached_property
    def addends(self) -> tuple[float, float, float] | None:
        """The smaller addend in spacings of the 16-bit numbers at the sum, the smaller, the larger.

        The first is the median over the elements; the sizes are those where the format's steps do
        most of what is lost. None where nothing was added.
        """
        return self.addition.sizes() if self.addition is not None else None


@dataclass(frozen=True)
class Addition:
    """Two addends in float32 and their 16-bit sum; `terms` says that the second are many terms."""

    first: Tensor
    second: Tensor
    total: Pair
    terms: bool

    def sizes(self) -> tuple[float, float, float] | None:
        """See `Finding.addends`."""
        small, large = self._in_one_sum() if self.terms else self._side_by_side()
        some = (small > 0) & large.isfinite()
        if not bool(some.any()):
            return None
        small, large = small[some], large[some]
        spacing = ulp(large, FORMATS[self.total.dtype])
        steps = small / spacing
        lost = steps <= steps.median()
        order = spacing[lost].sort().values
        upto = order.double().square().cumsum(0)
        typical = order[int(torch.searchsorted(upto, upto[-1] / 2))]
        told = lost & (spacing == typical)
        return float(steps.median()), float(small[told].median()), float(large[told].median())

    def _in_one_sum(self) -> tuple[Tensor, Tensor]:
        sizes = [largest_magnitude(widen(self.total.low)), largest_magnitude(self.second)]
        return torch.tensor([min(sizes)]), torch.tensor([max(sizes)])

    def _side_by_side(self) -> tuple[Tensor, Tensor]:
        one, other = torch.broadcast_tensors(self.first.abs(), self.second.abs())
        return torch.minimum(one, other), torch.maximum(one, other)


def examined(
    func: OpOverload, name: str, args: Any, kwargs: Any, results: list[Any], local: Any
) -> Finding:
    """Measure one operation.

    Args:
        func, name: the operation.
        args, kwargs: its arguments as they entered, tensors as pairs.
        results: what it gave, tensors as pairs.
        local: the same operation in float32 on the 16-bit program's own operands, or None.
    """
    args, kwargs = _by_parts(list(args)), {k: _by_parts(v) for k, v in kwargs.items()}
    results, local = _by_parts(results), _by_parts(local)
    finding = Finding(scalars=_scalars(func, args, kwargs))
    for pair in flat([*args, *kwargs.values()]):
        if isinstance(pair, Pair) and pair.low.is_floating_point():
            finding.operands.append(pair.measure())
    alones = flat(local) if local is not None else []
    for i, pair in enumerate(results):
        if not isinstance(pair, Pair):
            continue
        if not pair.low.is_floating_point():
            if pair.low.shape == pair.exact.shape:
                differ = (pair.low != pair.exact).float()
                finding.decided = max(finding.decided, float(differ.mean()))
            continue
        finding.results.append(pair.measure())
        alone = alones[i] if i < len(alones) else None
        if isinstance(alone, Tensor) and alone.shape == pair.low.shape:
            finding.own.append(Measure(pair.low, alone, pair.dtype))
        if i == 0 and name in (*ADDITIONS, *RUNNING) and pair.dtype in LOW:
            finding.addition = _addition(name, args, kwargs, pair)
    return finding


def _by_parts(value: Any) -> Any:
    """Complex numbers as pairs of real ones, which round each by itself."""
    if isinstance(value, (list, tuple)):
        return [_by_parts(item) for item in value]
    if isinstance(value, Tensor):
        return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
    if not isinstance(value, Pair) or not value.low.is_complex():
        return value
    dtype = torch.float16 if value.dtype == torch.complex32 else torch.float32
    return replace(value, low=_by_parts(value.low), exact=_by_parts(value.exact), dtype=dtype)


def _scalars(func: OpOverload, args: Any, kwargs: Any) -> list[float]:
    found = []
    for i, argument in enumerate(func._schema.arguments):
        value = args[i] if i < len(args) else kwargs.get(argument.name)
        takes = str(argument.type) in _SCALARS or str(argument.type) == "Tensor"
        if is_number(value) and takes and argument.name != "alpha":
            found.append(float(value))
    return found


def _addition(name: str, args: Any, kwargs: Any, total: Pair) -> Addition:
    if name in RUNNING:  # each term beside the sum it is added to
        return Addition(widen(total.low).float(), widen(args[0].low).float(), total, False)
    device = total.low.device
    first, *others = (
        widen(a.low).float() if isinstance(a, Pair) else torch.tensor(float(a), device=device)
        for a in args
        if isinstance(a, (Pair, int, float))
    )
    if name in _COMPOSED and len(others) == 2:
        second = _COMPOSED[name](first, *others) * kwargs.get("value", 1)
        return Addition(first, second, total, False)
    second = others[-1] if name in STEPWISE else others[0]
    alpha = kwargs.get("alpha", 1)
    if name in ("add", "sub") and isinstance(alpha, (int, float)) and alpha != 1:
        second = second * alpha
    return Addition(first, second, total, name in STEPWISE)
