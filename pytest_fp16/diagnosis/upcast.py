"""Lines of a model's code in float32, as if its author had written ``.float()`` there.

Functions called on such a line take their 16-bit arguments in float32, outside of autocast, and
where they are told to make 16-bit numbers they make float32 ones. Their results stay float32 and
make what follows float32 too, as torch's promotion has it, up to the first function that refuses to
mix them with 16-bit tensors (a layer with 16-bit weights): there they are cast back. It is a cure's
trial, not a way to run a model: every call is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pytest_fp16.diagnosis.applied import CASTS, WIDENING, Applied, as_called
from pytest_fp16.diagnosis.fitted import Fitted
from pytest_fp16.diagnosis.narrowed import Narrowed, writes
from pytest_fp16.diagnosis.remedy import Meeting
from pytest_fp16.engine.containers import all_tensors, map_tensors
from pytest_fp16.engine.emulation.emulate import widen
from pytest_fp16.engine.emulation.operations import WIDE, seen_as
from pytest_fp16.engine.emulation.wording import is_missing_kernel, mixes_dtypes
from pytest_fp16.engine.source import calling_line, user_line
from pytest_fp16.errors import ModelError
from pytest_fp16.mixing import autocasts
from pytest_fp16.variants import Variant, variant

#: What costs most and rounds but once: not what a whole function is widened for.
_PRODUCTS = frozenset(
    "linear matmul __matmul__ __rmatmul__ mm bmm addmm baddbmm einsum bilinear "
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d "
    "scaled_dot_product_attention".split()
)
#: What is followed to where a layer refuses it; of float64 a program may take the way.
_RAISED = frozenset({*WIDE.values(), torch.float64, torch.complex128})


def lines_in_float32(
    model: nn.Module, lines: Sequence[str], meeting: Meeting | None = None
) -> nn.Module:
    """Make lines run in float32 wherever `model` runs them.

    Args:
        model: changed in place.
        lines: as of `Upcast`.
        meeting: as of `Remedy`.

    Returns:
        The same model.

    Raises:
        ModelError: a scripted model, whose lines torch has compiled.
    """
    if isinstance(model, torch.jit.ScriptModule) or "forward" in vars(model):
        raise ModelError("the forward of this model cannot be watched line by line")
    model.__class__ = variant(_Watched, type(model))
    done = vars(model)["_fp16_applied"] = Applied()
    vars(model)["_fp16_mode"] = partial(mode_for, tuple(lines), meeting, done)
    return model


def applied_to(model: nn.Module) -> Applied | None:
    """What was done on the lines of a model that ran; None where it has none in float32."""
    return vars(model).get("_fp16_applied")


def mode_for(
    lines: Sequence[str], meeting: Meeting | None, applied: Applied | None = None
) -> TorchFunctionMode:
    """The mode under which lines run in float32, and tensors of different dtypes meet so."""
    if meeting == "fitted":
        return Fitted()
    if meeting == "narrowed":
        return Narrowed(applied)
    return Upcast(lines, meeting == "widened", applied)


class _Watched(Variant):
    """A module whose forward is watched."""

    _fp16_prefix = "Watched"
    _fp16_mode: Callable[[], TorchFunctionMode]

    def _fp16_run(self, own: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        with self._fp16_mode() as mode:
            out = own(self, *args, **kwargs)
        if isinstance(mode, (Upcast, Narrowed)):
            mode.applied.named(self)  # type: ignore[arg-type]
        return mode.current(out) if isinstance(mode, Upcast) else out


class Upcast(TorchFunctionMode):
    """Computes lines in float32.

    Args:
        lines: each ``"file:number"``; the file absolute, or as seen from here. Of
            ``"file:first-last"`` what multiplies matrices stays as it is, as layers do, and of
            ``"file:first..last"`` it does not.
        meeting: whether what refuses tensors of different dtypes elsewhere is computed so, too.
        applied: where it is told what was done.
    """

    def __init__(
        self, lines: Sequence[str], meeting: bool = False, applied: Applied | None = None
    ) -> None:
        super().__init__()
        self.meeting = meeting
        self.applied = Applied() if applied is None else applied
        self.places: dict[tuple[Path, int], bool] = {}  # and whether products are widened there
        for line in lines:
            name, _, number = line.rpartition(":")
            first, but_products, last = number.partition("-")
            if not but_products:
                first, _, last = number.partition("..")
            path, numbers = Path(name).resolve(), range(int(first), int(last or first) + 1)
            self.places.update({(path, n): not but_products for n in numbers})
        self.numbers = {number for _, number in self.places}
        self.files: dict[str, Path] = {}
        self.raised: dict[int, tuple[Tensor, torch.dtype]] = {}
        self.own: dict[int, Tensor] = {}  # the program itself has these in float32
        self.instead: dict[int, tuple[Tensor, Tensor]] = {}  # of what was written on the lines

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.instead:
            return self._with_current(func, args, kwargs)
        return self._called(func, args, kwargs)

    def current(self, value: Any) -> Any:
        """What the names of tensors stand for that were written into on the lines."""
        if not self.instead:
            return value
        return map_tensors(value, lambda t: self.instead.get(id(t), (t, t))[1])

    def _with_current(self, func: Any, args: Any, kwargs: Any) -> Any:
        now = tuple(self.current(a) for a in args)
        out = self._called(func, now, {k: self.current(v) for k, v in kwargs.items()})
        if args and args[0] is not now[0] and writes(getattr(func, "__name__", "")):
            args[0].copy_(now[0])  # other names of its memory
        return out

    def _called(self, func: Any, args: Any, kwargs: Any) -> Any:
        if getattr(func, "__name__", "") in ("__get__", "__set__", "size", "dim", "numel"):
            return self._looked_at(func, args, kwargs)
        every = all_tensors((args, kwargs))
        given = [t for t in every if t.is_floating_point() or t.is_complex()]
        low = next((t.dtype for t in given if t.dtype in WIDE), None)
        raised = [self.raised[id(t)][1] for t in given if id(t) in self.raised]
        if self._here(getattr(func, "__name__", ""), given):
            return self._in_float32(func, args, kwargs, given, low or next(iter(raised), None))
        if not raised:
            try:
                return func(*args, **kwargs)
            except RuntimeError as error:
                if not (self.meeting and mixes_dtypes(str(error))):
                    raise
                return self._in_float32(func, args, kwargs, given, low)
        try:
            out = func(*args, **kwargs)
        except RuntimeError as error:
            if low is None or is_missing_kernel(error):
                raise
            self.applied.took(getattr(func, "__name__", ""))
            back = lambda t: _narrowed(t, raised[0]) if id(t) in self.raised else t  # noqa: E731
            return func(*map_tensors(args, back), **map_tensors(kwargs, back))
        self._remember(out, raised[0])
        return out

    def _looked_at(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A look at a tensor, which may be another one: its transpose, its real part."""
        out = func(*args, **kwargs)
        known = self.raised.get(id(args[0])) if isinstance(out, Tensor) and args else None
        if known is not None:
            self._remember(out, known[1])
        return out

    def _here(self, name: str, given: list[Tensor]) -> bool:
        """Whether one of the lines calls: itself, or by a module of torch's without weights."""
        line = calling_line()
        if line is None and not any(isinstance(t, nn.Parameter) for t in given):
            line = user_line()
        if line is None or line.number not in self.numbers:
            return False
        if line.filename not in self.files:
            self.files[line.filename] = Path(line.filename).resolve()
        products = self.places.get((self.files[line.filename], line.number))
        return products is not None and (products or name not in _PRODUCTS)

    def _in_float32(
        self, func: Any, args: Any, kwargs: Any, given: list[Tensor], low: torch.dtype | None
    ) -> Any:
        if "out" in kwargs:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        device = given[0].device.type if given else "cpu"
        casts = autocasts(device)
        asked = next((v for v in (*args, *kwargs.values()) if _is_low(v)), None)
        low = low or asked
        if low is None and not casts:
            return func(*args, **kwargs)
        wide = map_tensors(tuple(_float32_for(a) for a in args), widen)
        named = {k: _float32_for(v) for k, v in kwargs.items()}
        with torch.autocast(device, enabled=False):
            try:
                out = func(*wide, **map_tensors(named, widen))
            except RuntimeError as error:
                if writes(name) or not mixes_dtypes(str(error)):
                    raise
                out = func(*map_tensors(wide, _single), **map_tensors(named, _single))
        self._note(name, (*args, *kwargs.values()), given, asked is not None, casts, out)
        if writes(name):
            return self._written(name, args[0], wide[0], low)
        if low is not None:
            self._remember(out, low)
        return out

    def _note(
        self, name: str, passed: Any, given: list[Tensor], asked: bool, casts: bool, out: Any
    ) -> None:
        """Remember a function in the program's words, where float32 is new to it."""
        if isinstance(out, (bool, int)):  # a look at what a tensor is
            return
        said, product = as_called(name), casts and name in _PRODUCTS
        widens = said in WIDENING or any(v in WIDE.values() for v in passed if _is_dtype(v))
        new = any(t.dtype in WIDE or self._is_raised(t) for t in given)
        if widens or not (new or asked or product):
            self.own.update({id(t): t for t in all_tensors(out)})
            return
        (self.applied.made if said in CASTS else self.applied.computed)[said] = None
        self.applied.uncast |= product
        self.applied.complex |= any(t.is_complex() for t in all_tensors(out))

    def _written(self, name: str, target: Any, wide: Any, low: torch.dtype | None) -> Any:
        """What a name stands for that was written into: as if it were computed out of place.

        Elements that are assigned stay in their place.
        """
        if isinstance(target, Tensor) and wide is not target:
            target.copy_(wide)
            if name != "__setitem__" and wide.dtype != target.dtype:
                self._remember(wide, low or target.dtype)
                self.applied.out_of_place = True
                self.instead[id(target)] = (target, wide)
                return wide
        return target if name != "__setitem__" else None

    def _is_raised(self, tensor: Tensor) -> bool:
        """Whether float32 is not the program's own doing."""
        return id(tensor) in self.raised and id(tensor) not in self.own

    def _remember(self, out: Any, low: torch.dtype) -> None:
        for tensor in all_tensors(out):
            if tensor.dtype in _RAISED:
                self.raised[id(tensor)] = (tensor, low)


def _single(tensor: Tensor) -> Tensor:
    """What ``.float()`` makes of it."""
    return tensor.float() if tensor.is_floating_point() else tensor


def _narrowed(tensor: Tensor, low: torch.dtype) -> Tensor:
    return tensor.to(seen_as(low, tensor.dtype))


def _is_dtype(value: Any) -> bool:
    return isinstance(value, torch.dtype)


def _is_low(value: Any) -> bool:
    return _is_dtype(value) and value in WIDE


def _float32_for(value: Any) -> Any:
    return WIDE[value] if _is_low(value) else value
