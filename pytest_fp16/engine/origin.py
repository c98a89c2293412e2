"""Where in a training step the first value that is not finite comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_fp16.engine.models import Location
from pytest_fp16.engine.operations import facts, flat, tensors

_FILLS = frozenset("full full_like fill masked_fill scalar_tensor where empty empty_like".split())
_ZERO_DIVISORS = frozenset("div reciprocal rsqrt log log2 log10 pow addcdiv sqrt".split())


#: (module, operation, mechanism, largest finite argument).
Found = tuple[str, str, str, float]


class Origin(TorchDispatchMode):
    """Remembers the first operation that makes NaN or infinity of finite arguments.

    Entered inside an emulation it sees the results as the 16-bit program has them. A module's
    backward pass is told from hooks on the gradients of its outputs.

    Attributes:
        phase: ``"<loss>"`` (forward and backward) or ``"<optimizer>"``, set by whoever runs it.
        found: (module, operation, mechanism, largest finite argument), or None.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = "<loss>"
        self.location = Location(model)
        self.backward_of = "<loss>"
        self.found: Found | None = None
        for name, module in model.named_modules():
            module.register_forward_hook(self._follow(name))

    def _follow(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            for item in flat(output) if isinstance(output, (list, tuple)) else [output]:
                if isinstance(item, Tensor) and item.requires_grad:
                    item.register_hook(lambda grad: self._entered(name))

        return hook

    def _entered(self, name: str) -> None:
        self.backward_of = name

    @property
    def place(self) -> str:
        """The module that is running, forwards or backwards."""
        if self.phase != "<loss>":
            return self.phase
        if self.location.stack:
            return self.location()
        return self.backward_of

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [
            t.detach().clone() if self.found is None and _small(t) else t
            for t in tensors(args, kwargs)
        ]
        out = func(*args, **kwargs)
        if self.found is None:
            self._look(facts(func).name, given, out)
        return out

    def _look(self, name: str, given: list[Tensor], out: Any) -> None:
        if name in _FILLS or all(_finite(t) for t in flat(out)):
            return
        floating = [t for t in given if t.is_floating_point()]
        if not all(_finite(t) for t in floating):
            return
        zero = name in _ZERO_DIVISORS and any(bool((t == 0).any()) for t in floating)
        nan = any(isinstance(t, Tensor) and bool(t.isnan().any()) for t in flat(out))
        mechanism = "eps-underflow" if zero else "cancellation" if nan else "overflow"
        largest = max((float(t.abs().max()) for t in floating if t.numel()), default=0.0)
        self.found = (self.place, name, mechanism, largest)


def _small(tensor: Tensor) -> bool:
    return tensor.numel() <= 2**20


def _finite(value: Any) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return True
    return bool(torch.isfinite(value).all())
