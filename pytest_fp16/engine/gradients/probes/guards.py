"""Small constants that guard a division, a logarithm or a root, and are zero in the format.

``x / (x.std() + 1e-8)`` is 0/0 in float16 once the spread is zero; until then nothing is amiss. So
what the constant is added to is followed along the 32-bit training.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pytest_fp16.engine.emulation.operations import facts, flat
from pytest_fp16.engine.models import Location
from pytest_fp16.engine.source import user_source
from pytest_fp16.engine.training.modes import to_train
from pytest_fp16.engine.training.trainee import Trainee
from pytest_fp16.engine.uncompiled import FollowingMode
from pytest_fp16.theory.rounding import Format

#: By operation, the argument that must not be zero.
_DIVIDES = {"div": 1, "reciprocal": 0, "rsqrt": 0, "log": 0, "log2": 0, "log10": 0, "sqrt": 0}
_CARRIES = frozenset("sqrt expand clone _to_copy".split())
#: bfloat16 goes down to 9e-41.
_ANYTHING_WRITTEN = 1e-20
_ADDS, _CLAMPS = frozenset({"add"}), frozenset({"clamp", "clamp_min"})


@dataclass
class Guard:
    """A constant that is zero in the format, where something is divided by it and a term.

    Attributes:
        module: where, ``"<loss>"`` outside of the model.
        line: of the user's code.
        constant: its value.
        operation: what divides by it, or takes a logarithm or root; None where nothing does.
        terms: per step of the training, the smallest value it was added to.
    """

    module: str
    line: str | None
    constant: float
    operation: str | None = None
    terms: list[float] = field(default_factory=list)

    @property
    def least(self) -> float:
        """The smallest term so far; NaN where none was seen."""
        return min((t for t in self.terms if not math.isnan(t)), default=math.nan)


class Guards(FollowingMode):
    """Finds guards that are lost in a 16-bit program, or follows their terms in the 32-bit one.

    Args:
        model: whose modules say where an operation is.
        dtype: the format.
        known: the guards to follow; None to find them, in tensors of the format.
    """

    def __init__(
        self, model: nn.Module, dtype: torch.dtype, known: dict[Any, Guard] | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.location, self.dtype, self.following = Location(model), dtype, known is not None
        self.found: dict[Any, Guard] = known or {}
        self.smallest: dict[Any, float] = {}
        self._carriers: dict[int, tuple[Any, Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        known = facts(func)
        constant = _constant(known.name, args, kwargs or {})
        key = None
        if constant is not None and self._lost(constant, args[0]):
            key = self._met(known.name, constant, args[0])
        out = func(*args, **(kwargs or {}))
        if key is None:
            key = self._divided(known.name, args, known.view or known.name in _CARRIES)
        if key is not None:
            for item in flat(out):
                if isinstance(item, Tensor):
                    self._carriers[id(item)] = weakref.ref(item), key
        return out

    def _lost(self, constant: float, term: Any) -> bool:
        if not isinstance(term, Tensor) or not term.is_floating_point() or not term.numel():
            return False
        wanted = torch.float32 if self.following else self.dtype
        return term.dtype == wanted and not float(torch.tensor(constant).to(self.dtype))

    def _met(self, name: str, constant: float, term: Tensor) -> Any:
        line = user_source()
        module = self.location() if self.location.stack else "<loss>"
        key = module, line, name, constant
        if not self.following:
            self.found.setdefault(key, Guard(module, line, constant))
        elif key not in self.found:
            return None
        size = term.detach().clamp(min=0) if name in _CLAMPS else term.detach().abs()
        self.smallest[key] = min(self.smallest.get(key, math.inf), float(size.min()))
        return key

    def _divided(self, name: str, args: tuple[Any, ...], carries: bool) -> Any:
        """The guard an operation hands on; one that divides by it is noted."""
        position = _DIVIDES.get(name, 0)
        if len(args) <= position or not (carries or name in _DIVIDES):
            return None
        held = self._carriers.get(id(args[position]))
        if held is None or held[0]() is not args[position]:
            return None
        if name in _DIVIDES and self.found[held[1]].operation in (None, "sqrt"):
            self.found[held[1]].operation = name
        return held[1] if carries else None

    def step(self) -> None:
        """A step of the training is over."""
        for key, guard in self.found.items():
            guard.terms.append(self.smallest.get(key, math.nan))
        self.smallest.clear()
        self._carriers.clear()

    @property
    def emptied(self) -> bool:
        """Whether a guard of the last step was added to what is zero in the format."""
        last = [g.terms[-1] for g in self.found.values() if g.terms and not math.isnan(g.terms[-1])]
        return any(not float(torch.tensor(term).to(self.dtype)) for term in last)


def _constant(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
    """The positive number that an operation adds, or does not go below."""
    value = None
    if name in _ADDS and len(args) > 1 and kwargs.get("alpha", 1) == 1:
        value = args[1]
    elif name in _CLAMPS:
        value = args[1] if len(args) > 1 else kwargs.get("min")
    return value if isinstance(value, float) and value > 0 else None


def lost_guards(trainee: Trainee, batch: Any, form: Format) -> dict[Any, Guard]:
    """The guards of a 16-bit training's loss and model that are lost, where something needs them.

    Args:
        trainee: a fresh one, which is not used for anything else.
        batch: any.
        form: the format; where it holds whatever people write, there are none.
    """
    if form.smallest_subnormal < _ANYTHING_WRITTEN:
        return {}
    to_train(trainee.model)
    with trainee.place.arithmetic(trainee.precision), Guards(trainee.model, form.dtype) as guards:
        try:
            trainee.loss(trainee.placed(batch))
        except torch.OutOfMemoryError:
            raise
        except Exception:
            return {}  # a training that counts its own steps may end here
    return {key: guard for key, guard in guards.found.items() if guard.operation is not None}
