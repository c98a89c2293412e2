"""Whether a program has written to a model's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pytest_fp16.engine.untouched import memory

#: The integers in which a sum over the bits of a weight wraps around, by the size of its values.
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Checksums:
    """What tells that a weight has been written to, once another is made of the same model.

    Autograd counts writes in place, but none through `.data` or NumPy and none of a kernel that
    does not declare it; memory that is exchanged has another address, and may be uncounted, too.
    For the rest there is the sum of each weight's bits, in which no single change is lost, as it
    may be in the rounding of a sum of values. It stays on the device: a comparison reads it once.

    Args:
        model: whose weights they are.

    Attributes:
        sums: of the bits, by weight.
    """

    def __init__(self, model: nn.Module) -> None:
        weights = list(model.parameters())
        self._seen = [(_version(w), memory(w)) for w in weights]
        sums = [_sum(w.detach()) for w in weights]
        self.sums = torch.stack(sums) if sums else torch.zeros(0)

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Checksums), "unreachable: checksums are compared with checksums"
        return self._seen == other._seen and torch.equal(self.sums, other.sums)

    __hash__ = None  # type: ignore[assignment]


def _version(weight: Tensor) -> int:
    return 0 if weight.is_inference() else weight._version


def _sum(weight: Tensor) -> Tensor:
    try:
        bits = _BITS[weight.element_size()]
        return weight.view(bits).sum(dtype=bits).long()
    except RuntimeError:  # no memory to view, as of sparse layouts, or no values, as on meta
        return torch.zeros((), dtype=torch.long, device=weight.device)
