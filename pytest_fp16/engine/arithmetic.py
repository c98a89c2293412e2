"""How much arithmetic a program does, and in which format, counted from the shapes of operands."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pytest_fp16.engine.emulation.operations import ATTENTION, facts, flat, tensors
from pytest_fp16.engine.uncompiled import FollowingMode

#: Matrix products, and which argument's last dimension is summed over.
_PRODUCTS = {
    "mm": 0,
    "bmm": 0,
    "mv": 0,
    "dot": 0,
    "vdot": 0,
    "_int_mm": 0,
    "addmm": 1,
    "addmv": 1,
    "baddbmm": 1,
    "addbmm": 1,
    "_addmm_activation": 1,
}
_CONVOLUTIONS = frozenset(
    "convolution _convolution convolution_overrideable cudnn_convolution miopen_convolution "
    "mkldnn_convolution _slow_conv2d_forward".split()
)
_TRANSPOSED = 6  # position of convolution's flag
_RECURRENT = frozenset("_cudnn_rnn miopen_rnn mkldnn_rnn_layer".split())


class _Whole(TorchFunctionMode):
    """Shows attention as the program calls it."""

    def __init__(self, counted: Arithmetic) -> None:
        super().__init__()
        self.counted = counted

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        given = dict(zip(("query", "key"), args, strict=False)) | kwargs
        run = partial(func, *args, **kwargs)
        return self.counted.attended(run, given["query"], given["key"])


class Arithmetic(FollowingMode):
    """Counts the operations of a program, entered innermost so that it sees the program's dtypes.

    A product counts its multiply-adds; any other operation that rounds counts one for each value
    of its largest tensor. What only moves values counts nothing. Attention counts as one operation
    of its result's format: where torch has no fused kernel it computes the parts in float32.

    Attributes:
        work: that many operations, by the dtype of their results.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work: Counter[torch.dtype] = Counter()
        self._attention = _Whole(self)
        self._within = False

    def __enter__(self) -> Arithmetic:
        self._attention.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._attention.__exit__(*exception)  # type: ignore[no-untyped-call]

    def attended(self, run: Callable[[], Tensor], query: Tensor, key: Tensor) -> Tensor:
        """An attention, counted once."""
        self._within = True
        try:
            out = run()
        finally:
            self._within = False
        self.work[out.dtype] += _attended(query, key, out.shape[-1])
        return out

    @property
    def float32_share(self) -> float:
        """Share of the work whose results are float32 (or wider); 0 where there is no work."""
        total = sum(self.work.values())
        wide = sum(self.work[d] for d in (torch.float32, torch.float64, torch.complex64))
        return wide / total if total else 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        known = facts(func)
        if self._within or known.view or known.exact or known.reshapes:
            return out
        result = next((t for t in flat(out) if isinstance(t, Tensor)), None)
        if result is not None and (result.is_floating_point() or result.is_complex()):
            self.work[result.dtype] += multiply_adds(known.name, args, kwargs, result)
        return out


def multiply_adds(name: str, args: Any, kwargs: dict[str, Any], result: Tensor) -> int:
    """The multiply-adds of an operation; of one that is no product, its largest tensor's values."""
    if name in _PRODUCTS:
        terms: int = args[_PRODUCTS[name]].shape[-1]
        return result.numel() * terms * _summed(name, args)
    if name in _CONVOLUTIONS:
        weight = args[1]
        transposed = len(args) > _TRANSPOSED and args[_TRANSPOSED] is True
        outputs: Tensor = args[0] if transposed else result
        return outputs.numel() * int(math.prod(weight.shape[1:]))
    if name in ATTENTION:
        query, key, value = args[:3]
        return _attended(query, key, value.shape[-1])
    if name in _RECURRENT:
        weights = [t for t in tensors(args[1:], kwargs) if t.dim() == 2 and t.is_floating_point()]
        places: int = args[0].numel() // max(1, args[0].shape[-1])
        return places * sum(w.numel() for w in weights)
    every = [t.numel() for t in tensors(args, kwargs) if t.is_floating_point()]
    return max([result.numel(), *every])


def _attended(query: Tensor, key: Tensor, width: int) -> int:
    """Of an attention whose values are so wide."""
    return math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + width)


def _summed(name: str, args: Any) -> int:
    """Matrices that a batched product adds up."""
    return int(args[1].shape[0]) if name == "addbmm" else 1
