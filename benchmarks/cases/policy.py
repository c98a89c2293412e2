"""CUDA's autocast lists where no GPU is: what the judge of the cases runs mixed precision under.

It shares no code with pytest-fp16, which has an emulation of its own.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.utils import rnn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


def names(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


# https://docs.pytorch.org/docs/stable/amp.html, "CUDA Ops that can autocast to …", by ATen name.
CUDA_LOWER = names(
    "addbmm addmm addmv addr baddbmm bmm convolution linear mm mv _prelu_kernel lstm gru "
    "mkldnn_rnn_layer _scaled_dot_product_flash_attention_for_cpu "
    "_scaled_dot_product_attention_math"
)
CUDA_RAISE = names(
    "pow reciprocal acos asin binary_cross_entropy_with_logits cosh _cdist_forward cumprod cumsum "
    "dist erfinv exp expm1 native_group_norm native_layer_norm linalg_vector_norm norm log log10 "
    "_log_softmax log1p log2 mse_loss nll_loss_forward prod rsqrt sinh smooth_l1_loss _softmax "
    "softplus sum renorm tan"
)
CUDA_PROMOTE = names("addcdiv addcmul atan2 cross dot vdot grid_sampler_2d scatter_add index_put")


COMPOSITE = {
    *(nn.functional.linear, nn.functional.scaled_dot_product_attention),
    *(torch.conv1d, torch.conv2d, torch.conv3d),
    *(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
}

#: Those that autocast casts as a whole: what they are made of is not looked at again, be it the
#: product of a distance, or the sum that einsum is where it has one operand.
WHOLE = {torch.cdist, torch.einsum}


def cast(value: Any, dtype: torch.dtype) -> Any:
    """A tensor of floating numbers, or those in a list, in another type; all else as it is."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.to(dtype)
    if isinstance(value, rnn.PackedSequence):
        return value.to(dtype=dtype)
    if isinstance(value, (list, tuple)):
        return type(value)(cast(v, dtype) for v in value)
    return value


class Regions:
    """Where a model switches autocast off, or on again, by itself; entered, it listens."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.asked = dtype, [True]

    @property
    def off(self) -> bool:
        return not self.asked[-1]

    def __enter__(self) -> None:
        enter, leave = torch.autocast.__enter__, torch.autocast.__exit__

        def entered(region: Any) -> Any:
            self.asked.append(region._enabled)
            return enter(region)

        def left(region: Any, *exception: Any) -> Any:
            self.asked.pop()
            return leave(region, *exception)

        self.patches = [
            mock.patch.object(torch.autocast, "__enter__", entered),
            mock.patch.object(torch.autocast, "__exit__", left),
        ]
        for patch in self.patches:
            patch.start()

    def __exit__(self, *exception: object) -> None:
        for patch in self.patches:
            patch.stop()


class Composites(TorchFunctionMode):
    """Casts for what checks types, or falls apart into several operations, before any kernel."""

    def __init__(self, regions: Regions) -> None:
        super().__init__()
        self.regions = regions

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func in WHOLE and not self.regions.off:
            dtype = torch.float32 if func is torch.cdist else self.regions.dtype
            self.regions.asked.append(False)
            try:
                return func(*cast(tuple(args), dtype), **(kwargs or {}))
            finally:
                self.regions.asked.pop()
        if func in COMPOSITE and not self.regions.off:
            args = cast(tuple(args), self.regions.dtype)
            kwargs = {k: cast(v, self.regions.dtype) for k, v in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))


class CudaAutocast(TorchDispatchMode):
    """CUDA's autocast lists, applied where operations reach their kernels.

    Composite operations arrive as the operations they are made of: square as pow, normalize as a
    vector norm, an LSTM as matrix products. In-place and out= forms are left alone, as autocast
    leaves them. Inside a region where a model switches autocast off, so is all of this.
    """

    def __init__(self, regions: Regions) -> None:
        super().__init__()
        self.regions = regions

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if self.regions.off:
            return func(*args, **(kwargs or {}))
        lower = self.regions.dtype
        target = lower if name in CUDA_LOWER else torch.float32 if name in CUDA_RAISE else None
        if name in CUDA_PROMOTE and any(getattr(a, "dtype", None) == torch.float32 for a in args):
            target = torch.float32
        if target is not None:
            args = cast(tuple(args), target)
            kwargs = {k: cast(v, target) for k, v in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))


SCANS = {"cumsum": torch.add, "cumprod": torch.mul, "logcumsumexp": torch.logaddexp}


class CudaScans(TorchDispatchMode):
    """Running sums and products as CUDA's threads make them (ScanUtils.cuh): all in 16 bits."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        combine = SCANS.get(func.overloadpacket.__name__)
        wanted = (kwargs or {}).get("dtype") or getattr(args[0] if args else None, "dtype", None)
        if combine is None or wanted not in (torch.float16, torch.bfloat16) or not args[0].dim():
            return func(*args, **(kwargs or {}))
        x = args[0].to(wanted).movedim(args[1], 0)
        if args[1] % args[0].dim() < args[0].dim() - 1:
            return torch.stack(in_turn(x, combine)).movedim(0, args[1])
        rows, size = x[0].numel(), len(x)
        ratio = 9 + (size - 1).bit_length() - (rows - 1).bit_length()
        block = 2 << (9 if rows == 1 or ratio < 0 else min(max(4, ratio // 2), 9))
        parts: list[Tensor] = []
        for part in x.split(block):
            if parts:
                part = torch.cat([combine(part[:1], parts[-1][-1:]), part[1:]])
            parts.append(by_halves(part, combine))
        return torch.cat(parts).movedim(0, args[1])


def in_turn(x: Tensor, combine: Any) -> list[Tensor]:
    """One value after the other."""
    found = [x[0]]
    for value in x[1:]:
        found.append(combine(found[-1], value))
    return found


def by_halves(x: Tensor, combine: Any) -> Tensor:
    """Each half by itself, then the first's total into the second (Sklansky)."""
    if len(x) < 2:
        return x
    half = 1 << ((len(x) - 1).bit_length() - 1)
    first, second = by_halves(x[:half], combine), by_halves(x[half:], combine)
    return torch.cat([first, combine(second, first[-1:])])


def lower_recurrent(model: nn.Module, dtype: torch.dtype) -> None:
    """Recurrent layers check types in Python before autocast's own kernel would cast."""
    for cell in (m for m in model.modules() if isinstance(m, nn.RNNBase)):
        cell.to(dtype)
        cell.register_forward_pre_hook(lambda _, inputs: cast(inputs, dtype))
