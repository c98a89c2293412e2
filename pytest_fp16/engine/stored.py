"""What a cast of a whole model makes infinite, or zero, of the values that it stores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pytest_fp16.theory.rounding import BFLOAT16, Format


@dataclass(frozen=True)
class Stored:
    """A parameter or buffer that a cast has brought into a format.

    Attributes:
        name: qualified, as in ``named_parameters`` and ``named_buffers``.
        count: its values.
        infinite: those that were finite and are infinite now.
        largest: the largest finite magnitude before the cast.
        meant: what became infinite is a constant that stands for infinity, as a mask's does.
    """

    name: str
    count: int
    infinite: int
    largest: float
    meant: bool = False

    @property
    def surprising(self) -> bool:
        """Whether values became infinite that are to be read as numbers."""
        return bool(self.infinite) and not self.meant


class BeforeCast:
    """The stored values of a model that is about to be cast.

    Args:
        model: in float32.
        fmt: the format it is cast to.

    Only tensors that the format cannot hold are kept, so that a large model costs no copy.
    """

    def __init__(self, model: nn.Module, fmt: Format) -> None:
        self.fmt = fmt
        self.fitting: dict[str, Stored] = {}
        self.others: dict[str, Tensor] = {}
        for name, tensor in _stored(model).items():
            values = _values(tensor)
            if values is None or not values.is_floating_point() or not values.numel():
                continue
            low, high = (float(v) for v in torch.aminmax(values.float()))
            largest = max(-low, high)
            if largest < fmt.overflow_threshold and low == low:  # NaN is neither
                self.fitting[name] = Stored(name, values.numel(), 0, largest)
            else:
                self.others[name] = values.float().clone()

    def cast(self, model: nn.Module) -> list[Stored]:
        """What the model, which has been cast, stores in the format now."""
        found = []
        for name, tensor in _stored(model).items():
            if tensor.dtype != self.fmt.dtype:  # kept in float32, or a cast of the model's own
                continue
            if name in self.fitting:
                found.append(self.fitting[name])
            elif (before := self.others.get(name)) is not None:
                after = _values(tensor)
                if after is not None and after.shape == before.shape:
                    found.append(self._measured(name, before, after))
        return found

    def _measured(self, name: str, before: Tensor, after: Tensor) -> Stored:
        finite = before.isfinite()
        lost = finite & after.isinf()
        beyond, rest = before[lost], before[finite & ~lost]
        largest = float(before[finite].abs().max()) if bool(finite.any()) else 0.0
        meant = bool(len(beyond)) and stands_for_infinity(beyond, rest, self.fmt)
        return Stored(name, before.numel(), len(beyond), largest, meant)


def emptied(before: Mapping[str, Tensor], model: nn.Module) -> dict[str, float]:
    """By name, the largest magnitude of what is zero in a buffer of a model that has been cast.

    Args:
        before: its buffers as they were, not rounded.
    """
    found = {}
    for name, buffer in model.named_buffers():
        after, wide = _values(buffer), before.get(name)
        wide = None if wide is None else _values(wide)
        if after is None or wide is None or after.shape != wide.shape or after.dtype == wide.dtype:
            continue
        lost = wide[(after == 0) & (wide != 0)]
        if lost.numel():
            found[name] = float(lost.abs().max())
    return found


def _stored(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _values(tensor: Tensor) -> Tensor | None:
    """What a tensor stores; None where nobody can tell."""
    if type(tensor) not in (Tensor, nn.Parameter):
        return None  # a subclass may have no such operations
    tensor = tensor.detach()
    if tensor.layout is torch.strided:
        return tensor
    return tensor._values() if tensor.layout is torch.sparse_coo else tensor.values()


def stands_for_infinity(beyond: Tensor, rest: Tensor, fmt: Format) -> bool:
    """Whether values that a format cannot hold are one constant that means "as large as can be".

    A mask's: it stands more than once, or is a round number; it is added to scores, or subtracted
    where all others are zero. What was measured or learned is not.

    Args:
        beyond: the values that became infinite, at least one.
        rest: those that did not.
        fmt: to its digits they are one constant.
    """
    if float(beyond.abs().min()) >= BFLOAT16.largest:  # the largest number of float32, say
        return True
    constant = float(beyond[0])
    if float((beyond - constant).abs().max()) > fmt.unit_roundoff * abs(constant):
        return False
    if len(beyond) == 1 and not _is_round(constant):
        return False
    return constant < 0 or (len(rest) > 0 and not bool(rest.any()))


def _is_round(value: float) -> bool:
    """Whether somebody wrote it: one digit and zeros, or a power of two."""
    one_digit = float(torch.tensor(float(f"{value:.0e}"), dtype=torch.float32))
    return value == one_digit or abs(math.frexp(value)[0]) == 0.5
