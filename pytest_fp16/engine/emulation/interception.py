"""What every run has in common that follows a 16-bit program operation by operation.

A `Carrier` is a tensor the program sees in place of the values that are really computed; an
`Interception` turns each operation on carriers into one on what they carry.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import _disable_current_modes

from pytest_fp16.engine.emulation.assignments import assigned, assigned_to
from pytest_fp16.engine.emulation.composed import composition
from pytest_fp16.engine.emulation.literals import made_by_operations, stated
from pytest_fp16.engine.emulation.operations import AUTOCAST, WHOLE, Facts, facts
from pytest_fp16.engine.emulation.recurrent import padded_by_operations
from pytest_fp16.engine.emulation.scalars import narrowed
from pytest_fp16.engine.emulation.target_mode import OnTarget

if TYPE_CHECKING:
    from typing_extensions import Self

#: Results that composite kernels read through a raw pointer: they must be plain tensors.
READ_ON_HOST = frozenset({("_pack_padded_sequence", 1)})


class Carrier(Tensor):
    """A tensor without memory of its own; an active `Interception` alone computes with it."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __init_subclass__(cls) -> None:
        """Carriers are tensors to a program that says in a message what it was given."""
        cls.__name__ = "Tensor"

    @classmethod
    def like(cls, shown: Tensor, dtype: torch.dtype) -> Any:
        """A carrier shaped like `shown`, of the dtype the program sees; it carries nothing yet."""
        compressed = shown.layout not in (torch.strided, torch.sparse_coo)  # rows have no strides
        return torch.Tensor._make_wrapper_subclass(
            cls,
            shown.shape,
            strides=None if compressed else shown.stride(),
            dtype=dtype,
            device=shown.device,
        )

    def shown(self) -> Tensor:
        """The values the program would read."""
        raise NotImplementedError  # each kind of carrier holds them in its own way

    def was_read(self) -> None:
        """The program reads values past the dispatcher."""

    def native(self) -> Tensor:
        """The plain tensor the program would hold here."""
        with _disable_current_modes():
            return self.shown().detach().to(self.dtype)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        """What the program would print, such as in the text of an exception."""
        self.was_read()
        with _disable_current_modes():
            return repr(self.native())

    def __format__(self, spec: str) -> str:
        """What the program would write: one value as a number, which torch does for its own."""
        self.was_read()
        with _disable_current_modes():
            return format(self.native(), spec)

    def numpy(self, *, force: bool = False) -> Any:
        """What the program would read on the host."""
        self.was_read()
        with _disable_current_modes():
            return self.native().numpy(force=force)

    def tolist(self) -> Any:
        """What the program would read on the host."""
        self.was_read()
        with _disable_current_modes():
            return self.native().tolist()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if wrapped(types):
            return NotImplemented
        raise RuntimeError(f"{func} was called on a {cls.__qualname__} after its run had ended")


#: What torch asks of a "traceable wrapper subclass".
_PROTOCOL = ("__tensor_flatten__", "__tensor_unflatten__")


@lru_cache(maxsize=256)
def wrapped(types: tuple[type, ...]) -> bool:
    """Whether an argument is a tensor of others (jagged, quantised) that says itself what to do.

    Args:
        types: what the dispatcher names: the classes of arguments that are no plain tensors.
    """
    return any(all(hasattr(kind, name) for name in _PROTOCOL) for kind in types)


def place(tensor: Tensor) -> Hashable:
    """What a plain tensor shares with every other that is the same memory, as ``.data`` is."""
    try:
        start = tensor.data_ptr()
    except (RuntimeError, NotImplementedError):  # a sparse one
        start = 0
    if not start:
        return id(tensor)
    signs = (tensor.is_conj(), tensor.is_neg())
    return start, tensor.shape, tensor.stride(), tensor.dtype, *signs


class Interception(OnTarget):
    """Sends each operation of a program to the method for its kind, with carriers as arguments.

    Args:
        target: the device whose refusals the program meets; None for none but this device's own.
    """

    def __enter__(self) -> Self:
        self._context.enter_context(padded_by_operations())
        self._said: list[Any] = []
        self._context.enter_context(made_by_operations(Carrier, self._said))
        self._assigned: dict[int, tuple[Tensor, Carrier]] = {}
        self._context.enter_context(assigned(Carrier, self._assigned))
        return super().__enter__()

    def run(
        self, func: OpOverload, types: Sequence[type], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """One operation, sent to the method for its kind."""
        if wrapped(types):
            return NotImplemented  # its turn: the carriers it computes with come back here
        known = facts(func)
        if known.name == "_to_copy" and not isinstance(args[0], Tensor):
            args = (torch.tensor(args[0]), *args[1:])  # a number that torch.func had wrapped
        args = tuple(self._adopted(a) for a in args)
        kwargs = {k: self._adopted(v) for k, v in kwargs.items()}
        composed = self.composed(func, args)
        if composed is not None:
            with self.as_one(known.name):
                return composed(self.step, *args, **kwargs)
        if not known.exact and self._meets is not None:
            args = self._narrowed(known, args)
        with self.below():
            if known.view:
                return self.view(func, known, args, kwargs)
            if known.reshapes:
                return self.reshape(func, args, kwargs)
            return self.operate(func, known, args, kwargs)

    def composed(self, func: OpOverload, args: tuple[Any, ...]) -> Callable[..., Any] | None:
        """What an operation is followed through as; see `composition`."""
        return composition(func, args, self._meets)

    def _narrowed(self, known: Facts, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments, those without dimensions cast where the target's kernel rounds them."""
        first = narrowed(known, args, self._meets or "")
        if first is None:
            return args
        cast = torch.ops.aten._to_copy.default
        pairs = enumerate(args)
        return tuple(self.step(cast, a, dtype=first[0]) if i in first[1] else a for i, a in pairs)

    def named(self, known: Facts) -> str:
        """What an operation is called: the cast at the end of a composed one as the whole."""
        as_whole = known.name == "_to_copy" or self._whole in WHOLE
        return self._whole if self._whole and as_whole else known.name

    def _adopted(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if isinstance(value, Carrier):
                return value
            instead = assigned_to(value, self._assigned)
            if instead is None:
                wide = stated(value, self._said)
                instead = self.adopt(value) if wide is None else self.adopt_stated(value, wide)
            return instead
        if isinstance(value, (list, tuple)):
            return [self._adopted(item) for item in value]
        return value

    def below(self) -> AbstractContextManager[Any]:
        """Where operations on what is carried are computed: below autocast, which has acted."""
        guard: AbstractContextManager[Any] = torch._C._ExcludeDispatchKeyGuard(AUTOCAST)
        return guard

    def adopt(self, value: Tensor) -> Carrier:
        """A carrier for a plain tensor: a parameter, a buffer, a fresh constant."""
        raise NotImplementedError  # a trace and a twin run each do so in their own way

    def adopt_stated(self, value: Tensor, wide: Tensor) -> Carrier:
        """The same for a 16-bit constant, with the numbers in the program's text."""
        return self.adopt(value)

    def view(self, func: OpOverload, known: Facts, args: Any, kwargs: Any) -> Any:
        """An operation whose results share memory with its first argument."""
        raise NotImplementedError  # a trace and a twin run each do so in their own way

    def reshape(self, func: OpOverload, args: Any, kwargs: Any) -> Any:
        """An operation such as ``transpose_``, which changes its argument's shape in place."""
        raise NotImplementedError  # a trace and a twin run each do so in their own way

    def operate(self, func: OpOverload, known: Facts, args: Any, kwargs: Any) -> Any:
        """Any other operation."""
        raise NotImplementedError  # a trace and a twin run each do so in their own way
