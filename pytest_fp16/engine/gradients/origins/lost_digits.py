"""The operation that loses the digits of a loss: a difference of nearly equal numbers.

The batch noise says that a gradient is bent, and at which weights; not why. So the loss of one
batch is computed in both precisions, and the first result that is far off, of arguments that are
not, is what bends it. Where there is none, it may be a sum in which a small number is lost beside a
large one: what is learned may be the small one (a shift beside the place of a pixel).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pytest_fp16.engine.emulation.operations import Facts, facts, tensors
from pytest_fp16.engine.gradients.finding import Finding
from pytest_fp16.engine.gradients.origins.forward_lines import goes_backwards
from pytest_fp16.engine.gradients.origins.own_checks import observed
from pytest_fp16.engine.models import Location
from pytest_fp16.engine.source import user_line, user_source
from pytest_fp16.engine.training.trainee import Trainee
from pytest_fp16.engine.uncompiled import FollowingMode
from pytest_fp16.engine.untouched import memory
from pytest_fp16.report.model import Mechanism

#: A result is lost where a quarter of its size is error, as a gradient is ...
LOST = 0.25
#: ... and it is this operation that lost it where the errors of its arguments are a tenth of that.
GROWS = 10
#: Operations whose result may be off by far more than their arguments: differences, functions that
#: are steep where their argument is large, and quotients where a few divisors are nearly zero.
_DIFFERENCES = frozenset("add sub rsub".split())
_STEEP = frozenset("sin cos tan exp div reciprocal".split())
#: Of these a large argument is lost where it is made: its last digits are all that they look at.
_PERIODIC = frozenset("sin cos tan".split())
#: What makes numbers large.
_GROWING = frozenset("mul add bmm mm addmm baddbmm cumsum".split())
#: A period or two: smaller arguments have digits enough.
_LARGE = 10.0
#: Of each tensor so many values are kept at most, evenly spread: a large model has many.
_KEPT = 2**12
#: Numbers whose memory is held at most, lest it is used anew: beyond, makers are not known.
_ROOM = 2**26


#: Module, operation, the user's line.
Place = tuple[str, str, str | None]


@dataclass(frozen=True)
class LostDigits:
    """A result that is far off in 16 bits, of arguments that are not.

    Attributes:
        module, operation, line: where.
        size, of: root mean squares of what float32 gives, and of the largest argument.
        error: of the result, for its size.
        beside: whether size and error are those of a small number that is added to a large one.
        vanished: the share of its values that are zero and should not be.
        late: whether its arguments are the 32-bit ones, rounded: there it is too late for a cure.
        then: the function that is far off, of what this operation has rounded; empty where it is
            this operation's own result.
    """

    module: str
    operation: str
    line: str | None
    size: float
    of: float
    error: float
    late: bool = False
    vanished: float = 0.0
    beside: bool = False
    then: str = ""

    @property
    def mechanism(self) -> Mechanism:
        """Why digits are lost there."""
        if self.beside:
            return "absorption"
        return "cancellation" if self.operation in _DIFFERENCES else "precision-loss"

    def said(self) -> str:
        """What happened, in words and numbers."""
        late = ", as they had been rounded to 16 bits before it" if self.late else ""
        if self.beside:
            return (
                f"values of {self.size:.2g} are added to values of {self.of:.2g} (root mean "
                f"squares), and {self.error:.0%} of their size is error{late}"
            )
        if self.operation in _DIFFERENCES:
            return (
                f"a difference of {self.size:.2g} is left of values of {self.of:.2g} (root mean "
                f"squares), and {self.error:.0%} of its size is error{late}"
            )
        if self.then:
            made = f"it rounds numbers of {self.of:.2g} (root mean square), of which {self.then} is"
            return f"{made} off by {self.error:.0%}"
        of = f"of arguments of {self.of:.2g} (root mean square)"
        return f"{of} it is off by {self.error:.0%}{late}"

    def finding(self, reason: str, more: str) -> Finding:
        """The same as a rule says it."""
        where = f"{self.operation} in {self.module or 'the model'}"
        return Finding(
            f"{reason} ({where}: {self.said()})",
            *(self.module, self.operation, self.mechanism, f"{self.said()}; {more}", self.line),
        )


@dataclass(frozen=True)
class _Made:
    place: Place
    shape: torch.Size
    dtype: torch.dtype
    result: Tensor
    given: list[Tensor]
    maker: Place | None = None


class Digits(FollowingMode):
    """Keeps the results, and the arguments, of operations that may lose digits.

    Args:
        model: whose modules say where an operation is.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.location = Location(model)
        self.made: list[_Made] = []
        self._makers: dict[int, Place] = {}
        self._held: list[Tensor] = []
        self._room = _ROOM

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        known, given = facts(func), list(tensors(args, kwargs or {}))
        name = known.name
        watched = name in _DIFFERENCES or name in _STEEP
        # Torch's own slopes add up what may nearly cancel; a slope by hand is the program's.
        watched = watched and not (goes_backwards() and user_line() is None)
        watched = watched and not any(t.is_complex() or t.is_sparse for t in given)
        makers = [self._makers.get(memory(t)) for t in given]
        kept = [_kept(t) for t in given] if watched else []
        out = func(*args, **(kwargs or {}))
        if not isinstance(out, Tensor) or not out.is_floating_point():
            return out
        if not goes_backwards():
            self._note_maker(known, out, makers)
        if watched:
            maker = next(iter(makers), None) if name in _PERIODIC else None
            made = _Made(self._place(name), out.shape, out.dtype, _kept(out), kept, maker)
            self.made.append(made)
        return out

    def _place(self, name: str) -> Place:
        module = self.location() if self.location.stack else "<loss>"
        return module, name, user_source()

    def _note_maker(self, known: Facts, out: Tensor, makers: list[Place | None]) -> None:
        """Who made what a periodic function may take: numbers of many periods, since moved."""
        maker = next(filter(None, makers), None) if known.exact else None
        if known.name in _GROWING and out.numel() and float(out.detach().abs().max()) >= _LARGE:
            maker = self._place(known.name)
        self._room -= out.numel() if maker is not None else 0
        if maker is not None and self._room >= 0:
            self._makers[memory(out)] = maker
            self._held.append(out.detach())


def _kept(tensor: Tensor) -> Tensor:
    values = tensor.detach().flatten()
    return values[:: values.numel() // _KEPT + 1].to(torch.float32, copy=True)


def lost_digits(reference: Trainee, candidate: Trainee, batch: Any) -> LostDigits | None:
    """The first operation on the way to the loss of a batch that loses its digits in 16 bits.

    Or on the way back, in a slope that is written by hand. None where there is none, or where the
    16-bit program goes another way.

    Args:
        reference: the 32-bit training, as far as it has come.
        candidate: takes its weights.
    """
    candidate.follow(reference)
    exact, low = (Digits(trainee.model) for trainee in (reference, candidate))
    observed(reference, batch, exact, backwards=True)
    observed(candidate, batch, low, backwards=True)
    if [_form(m) for m in exact.made] != [_form(m) for m in low.made]:
        return None
    both = list(zip(exact.made, low.made, strict=True))
    found = (rule(one, two) for rule in (_looked_at, _absorbed) for one, two in both)
    return next((lost for lost in found if lost is not None), None)


def _form(made: _Made) -> tuple[str, torch.Size, list[int]]:
    return made.place[1], made.shape, [len(t) for t in made.given]


def _looked_at(exact: _Made, low: _Made) -> LostDigits | None:
    error = _error(exact.result, low.result)
    grown = [_error(a, b) for a, b in zip(exact.given, low.given, strict=True)]
    if not LOST < error < float("inf") or any(not GROWS * g < error for g in grown):
        return None
    of = max((_size(t) for t in exact.given), default=0.0)
    pairs = zip(exact.given, low.given, strict=True)
    late = any(grown) and all(_rounded(a, b, low.dtype) for a, b in pairs)
    gone = float(((low.result == 0) & (exact.result != 0)).float().mean())
    size = _size(exact.result)
    lost = LostDigits(*exact.place, size=size, of=of, error=error, late=late, vanished=gone)
    if low.maker is None or late:
        return lost
    module, operation, line = low.maker
    then = exact.place[1]
    return replace(lost, module=module, operation=operation, line=line, then=then)


def _absorbed(exact: _Made, low: _Made) -> LostDigits | None:
    """A sum whose error is much of its smaller term, of terms that are hardly off themselves."""
    if exact.place[1] not in _DIFFERENCES or len(exact.given) != 2:
        return None
    small, large = sorted(map(_size, exact.given))
    error = _error(exact.result, low.result) * _size(exact.result)
    late = False
    for a, b in zip(exact.given, low.given, strict=True):
        off = _error(a, b) * _size(a)
        if not GROWS * off < error:
            if not _rounded(a, b, low.dtype):
                return None
            late = True
    if not LOST * small < error < float("inf") or not small:
        return None
    return LostDigits(*exact.place, small, large, error / small, late, beside=True)


def _rounded(exact: Tensor, low: Tensor, dtype: torch.dtype) -> bool:
    """Whether values are the 32-bit ones, and no more than rounded."""
    return torch.equal(exact.to(dtype).float(), low)


def _size(tensor: Tensor) -> float:
    return float(tensor.square().mean().sqrt()) if tensor.numel() else 0.0


def _error(exact: Tensor, low: Tensor) -> float:
    """How far off a tensor is, for its size; nothing where it has none."""
    size = _size(exact)
    return _size(low - exact) / size if size else 0.0
