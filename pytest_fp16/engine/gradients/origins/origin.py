"""Where in a training step the first value that is not finite comes from."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from pytest_fp16.engine.emulation.operations import facts, flat, tensors
from pytest_fp16.engine.emulation.wording import mechanism_of, told
from pytest_fp16.engine.gradients.origins.forward_lines import (
    ForwardLines,
    backward_pass,
    goes_backwards,
)
from pytest_fp16.engine.gradients.origins.found import Found, traced
from pytest_fp16.engine.gradients.origins.lost_values import (
    DIVIDES,
    copies,
    divisor,
    finite,
    has_nan,
    in_float64,
    losing_part,
    mask_constant,
    mechanism_of_loss,
    results_of,
    stored,
    zero_where,
)
from pytest_fp16.engine.gradients.origins.unread import Unread
from pytest_fp16.engine.gradients.origins.zeros import Zeros
from pytest_fp16.engine.models import Location
from pytest_fp16.engine.uncompiled import FollowingMode
from pytest_fp16.report.model import Mechanism

_FILLS = frozenset(
    "full full_like new_full fill masked_fill scalar_tensor where "
    "empty empty_like new_empty".split()
)
#: The phase between backward pass and optimizer, and the operation as its user knows it.
CLIPPING = "clip_grad_norm_"


class OriginWatch(FollowingMode):
    """Remembers the first operation that makes NaN or infinity of finite arguments.

    Entered inside an emulation it sees the results as the 16-bit program has them. A module's
    backward pass is told from hooks on the gradients of its outputs.

    Attributes:
        phase: ``"<loss>"`` (forward and backward), ``"clip_grad_norm_"`` or ``"<optimizer>"``.
        found: the operation, or None; one whose result nothing reads gives way to a later one, till
            something does, in the same forward pass.
        beyond: the first that leaves the range before the optimizer, or None.
        born: the first that made NaN of an infinity that no operation made, or None.
        emptied: the first that divided by such an infinity, or None.
        raised_in: the innermost module whose forward pass an error is leaving, or None.
        raised_by: the operation that raised it, the last one; empty where none did.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = "<loss>"
        self.location = Location(model)
        self._backward_of: dict[int, str] = {}
        self._last = "<loss>"
        self.found: Found | None = None
        self.beyond: Found | None = None
        self._unread: Unread | None = None
        self._gave_way: list[tuple[Found, Unread]] = []
        self.born: Found | None = None
        self.emptied: Found | None = None
        self._lines = ForwardLines()
        self._zeros = Zeros(lambda: (self.place, self._lines.here()[0]))
        self.raised_in: str | None = None
        self.raised_by = ""
        self._depth = 0
        self._followed: dict[int, Any] = {}
        self._entered_any = False
        self._handled = sys.exc_info()[1]
        for name, module in model.named_modules():
            # A scripted module's own method refuses; the hook is called all the same.
            nn.Module.register_forward_hook(module, self._follow(name))
            nn.Module.register_forward_hook(module, self._left(name), always_call=True)

    def begin(self) -> None:
        """A step begins: nothing of the one before it says where its operations are."""
        self.phase = self._last = "<loss>"
        self._depth = 0
        self._backward_of.clear()
        self._lines.clear()
        self._zeros.clear()
        self._gave_way.clear()
        self._entered_any = False

    def watch(self, trainee: Any) -> None:
        """Tell the steps of a trainee's optimizer, and the clipping before them, from the rest.

        And know what of its buffers its cast has made zero.
        """
        trainee.optimizer.register_step_pre_hook(lambda *_: self._stepping(1))
        trainee.optimizer.register_step_post_hook(lambda *_: self._stepping(-1))
        trainee.clipping = lambda: self._in_phase(CLIPPING)
        buffers = dict(trainee.model.named_buffers())
        for name, held in trainee.emptied.items():
            self._zeros.know(name, buffers[name], held)

    def _stepping(self, more: int) -> None:
        """A step begins or ends: a class's own, within its heir's, fires the same hooks."""
        self._depth += more
        # Where a module steps by hand, the next loss follows within the same step.
        self._in_phase("<optimizer>" if self._depth > 0 else "<loss>")

    def _in_phase(self, phase: str) -> None:
        self.phase = phase

    def _follow(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            for item in flat(output) if isinstance(output, (list, tuple)) else [output]:
                if isinstance(item, Tensor) and item.requires_grad and not self._known(item):
                    self._followed[id(item)] = weakref.ref(item)
                    item.register_hook(lambda grad: self._entered(name))

        return hook

    def _known(self, item: Tensor) -> bool:
        """Whether a module inside this one returned the same tensor: it is the innermost."""
        held = self._followed.get(id(item))
        return held is not None and held() is item

    def _left(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            # torch calls these hooks while it handles the error; the caller may be handling one.
            failing = sys.exc_info()[1] is not self._handled
            if not failing or self.raised_in is None:
                self.raised_in = name if failing else None

        return hook

    def _entered(self, name: str) -> None:
        self._last = self._backward_of[backward_pass()] = name

    @property
    def place(self) -> str:
        """The module that is running, forwards or backwards."""
        if self.phase != "<loss>":
            return "<optimizer>"
        if self.location.stack:
            return self.location()
        known = self._lines.place
        if known is not None:
            return known
        # A loss may have a backward pass of its own (a gradient penalty): each pass begins in it.
        return self._backward_of.get(backward_pass(), "<loss>")

    @property
    def cause(self) -> Found | None:
        """The operation that is to blame, if one was seen."""
        return self.found or self.born

    @property
    def swallowed(self) -> Found | None:
        """What left the range, was read, and may have become finite again."""
        unread = self._unread is not None and not self._unread.read
        return self.emptied if self.found is None or unread else self.found

    def behind(self, error: Exception) -> Found | None:
        """What made the values that a program's or a kernel's own check stumbled over, if any."""
        return self.found if mechanism_of(told(error)) == "precision-loss" else None

    @property
    def failed_in(self) -> str:
        """Where a step that raised an error was: a module, the loss, or the optimizer."""
        if self.raised_in is not None and self.phase == "<loss>":
            return self.raised_in
        return "<optimizer>" if self.phase != "<loss>" else self._last

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self._entered_any |= bool(self.location.stack)
        if not goes_backwards():
            self._last = "<loss>"
        elif (ran_by := self._lines.place) is not None:
            self._last = ran_by
        watching = self.found is None or (self._unread is not None and not self._unread.read)
        held, named = args, kwargs
        if watching:
            self._lines.note(self.place)
            held, named = copies(args, kwargs)
        self.raised_by = facts(func).name
        out = func(*args, **kwargs)
        self.raised_by = ""
        if watching and self._unread is not None:
            self._unread.note(func, args, kwargs, out)
            watching = not self._unread.read
        if self._gave_way:
            watching &= not self._read_after_all(func, args, kwargs, out)
        if watching:
            self._look(func, args, held, named, results_of(func, args, out))
            if self.phase == "<loss>":
                self._zeros.note(func, held, named, args, out)
        return out

    def _read_after_all(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> bool:
        """Whether a value that gave way to a later one is read now: it was the first."""
        if goes_backwards() or self.phase != "<loss>":
            self._gave_way.clear()
            return False
        for i, (found, unread) in enumerate(self._gave_way):
            unread.note(func, args, kwargs, out)
            if unread.read:
                self.found, self._unread = found, unread
                del self._gave_way[i:]
                return True
        return False

    def _look(
        self,
        func: Any,
        given: tuple[Any, ...],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        results: list[Any],
    ) -> None:
        name = facts(func).name.removeprefix("_foreach_")  # over many tensors, it is the same one
        if self.emptied is None and name == "div" and len(args) > 1 and not finite(args[1]):
            self.emptied = self._found(name, "overflow", math.inf)  # x / inf, and no x is left
        if name in _FILLS or all(finite(t) for t in results):
            return
        floating = [t for t in tensors(args, kwargs) if t.is_floating_point()]
        if not all(finite(t) for t in floating):
            if self.born is None and has_nan(results) and not has_nan(floating):
                self.born = self._found(name, "mask-inf", math.inf)
            return
        lost = [stored(t) for t in results if not finite(t)]
        part = losing_part(func, args, kwargs)
        found = self._named(name, *((func, args, kwargs, results) if part is None else part), given)
        if self.found is not None and self._unread is not None:
            self._gave_way.append((self.found, self._unread))
        self.found = found if part is None else found._replace(part=part.name(name))
        self._unread = Unread(lost) if found.mechanism == "overflow" else None
        if found.mechanism == "overflow" and self.phase == "<loss>":
            self.beyond = self.beyond or found

    def _named(
        self,
        whole: str,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        results: list[Any],
        given: tuple[Any, ...],
    ) -> Found:
        """What an operation has lost, or one within it, as float64 says."""
        name = facts(func).name.removeprefix("_foreach_")
        floating = [stored(t) for t in tensors(args, kwargs) if t.is_floating_point()]
        lost = [stored(t) for t in results if not finite(t)]
        constant = mask_constant(name, args, lost)
        if constant is not None:
            return self._found(whole, "mask-inf", constant)
        divisors = [divisor(name, t) for t in floating] if name in DIVIDES else []
        zero = any(zero_where(t, d) for t in lost for d in divisors)
        largest = max((float(t.abs().max()) for t in floating if t.numel()), default=0.0)
        exact = in_float64(func, args, kwargs, results)
        reached = max((float(t.abs().max()) for t in exact or []), default=math.nan)
        found = self._found(whole, mechanism_of_loss(name, lost, exact, zero), largest, reached)
        why = self._zeros.divided(name, given, args, lost) if zero and name == whole else None
        return found if why is None else traced(found, why)

    def _found(
        self, name: str, mechanism: Mechanism, largest: float, reached: float = math.nan
    ) -> Found:
        if self.phase == CLIPPING:
            return Found("<optimizer>", CLIPPING, mechanism, largest, reached)
        source, behind = self._lines.here()
        of_batch = name == "_to_copy" and source is None and not self._entered_any
        return Found(self.place, name, mechanism, largest, reached, source, of_batch, behind)
