"""What is known about ATen operations: which only move values, which round at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

LOW = frozenset({torch.float16, torch.bfloat16})

#: What their operations are computed in. Complex numbers of 16 bits have two parts in float16.
WIDE = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.complex32: torch.complex64,
}

_KEYS: Any = torch._C.DispatchKey
#: Where autocast acts, on every device.
AUTOCAST: Any = (
    torch._C.DispatchKeySet(_KEYS.AutocastCPU)
    | torch._C.DispatchKeySet(_KEYS.AutocastCUDA)
    | torch._C.DispatchKeySet(_KEYS.AutocastMPS)
)

_EXACT = frozenset(
    """
    _reshape_alias _to_copy _unsafe_index _unsafe_view abs adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d alias amax amin aminmax any all argmax argmin argsort as_strided
    as_strided_scatter bernoulli block_diag broadcast_tensors bucketize cat ceil channel_shuffle
    clamp clamp_max clamp_min clone combinations constant_pad_nd contiguous copy copysign cummax
    cummin detach diag_embed diagonal_scatter embedding empty empty_like empty_strided eq
    expand_copy
    eye fill flip floor fmax fmin full full_like gather ge gt hardshrink hardtanh heaviside im2col
    index
    index_copy index_fill index_select isclose isfinite isin isinf isnan kthvalue le lift
    lift_fresh lift_fresh_copy logical_and logical_not logical_or logical_xor lt masked_fill
    masked_scatter masked_select max max_pool2d_with_indices max_pool3d_with_indices maximum median
    min minimum mode mvlgamma nan_to_num nanmedian narrow_copy ne neg new_empty
    new_empty_strided new_full new_ones new_zeros nonzero one_hot ones ones_like pad permute_copy
    pixel_shuffle pixel_unshuffle positive put reflection_pad1d reflection_pad2d reflection_pad3d
    relu relu6 repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d
    resize_ resize_as_ roll round rot90 scalar_tensor scatter searchsorted select_backward
    select_scatter set_ sgn sign signbit slice_backward slice_scatter sort split_copy
    split_with_sizes_copy stack take threshold topk tril triu trunc unbind_copy unfold_backward
    unfold_copy unique2 _unique2 unsafe_split unsafe_split_with_sizes upsample_nearest1d
    upsample_nearest2d upsample_nearest3d where zero zeros zeros_like _local_scalar_dense equal
    is_nonzero relu_backward threshold_backward
    """.split()
)

#: Kernels that round at every step, on a CPU and on CUDA: accumulators kept in the tensor itself,
#: and a slope whose guard of 1e-12 is taken in the format: zero in float16 (ATen's ``Loss.cu``).
#: A ``linspace`` goes by a step in the format, times a place, from the nearer end
#: (``RangeFactories.cu`` and ``RangeFactoriesKernel.cpp``).
STEPWISE = frozenset(
    """
    index_add scatter_add index_put _index_put_impl put_ binary_cross_entropy_backward linspace
    """.split()
)

#: A CPU's kernels that round a few times on the way: weights between pixels, products before sums.
_ON_THE_WAY_ON_CPU = frozenset(
    """
    upsample_linear1d upsample_bicubic2d upsample_trilinear3d addbmm addr renorm embedding_renorm
    """.split()
)

#: A CPU's kernels that do so too, where CUDA's have accumulators, and bounds, of 32 bits.
#: Windows and frequencies multiply in place, and round the factor first.
_STEPWISE_ON_CPU = _ON_THE_WAY_ON_CPU | frozenset(
    """
    prod col2im logit _adaptive_avg_pool3d hann_window hamming_window blackman_window
    bartlett_window kaiser_window fft_fftfreq fft_rfftfreq
    """.split()
)

#: Running sums and products, which CUDA keeps in 16 bits (see `scans`).
SCANS = frozenset({"cumsum", "cumprod", "logcumsumexp"})

#: Kernels of which the error on the way is known from their operands.
ON_THE_WAY = _ON_THE_WAY_ON_CPU | SCANS

#: Operations that are taken apart, and whose parts bear their name.
WHOLE = SCANS | {"scatter_reduce", "affine_grid_generator"}

#: Operations whose float32 result is a decision: comparisons, selections, integer parts.
DISCRETE = frozenset(
    """
    argmax argmin argsort sort topk kthvalue mode median floor ceil round trunc sign sgn heaviside
    gt lt ge le eq ne bucketize searchsorted max min _to_copy allclose equal
    signbit copysign frac fmod remainder floor_divide div hardshrink threshold
    """.split()
)

#: Families whose operations round as ATen's own do; anything else is an opaque kernel.
_TRANSPARENT = frozenset({"aten", "prims", "prim", "torchvision", "profiler", "c10d"})

_WRITES_STATISTICS = ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")

ATTENTION = frozenset(
    {
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_fused_attention_overrideable",
    }
)

_RANDOM = frozenset(
    """
    rand randn rand_like randn_like randint randint_like randperm normal uniform exponential
    bernoulli multinomial native_dropout geometric cauchy log_normal poisson rrelu_with_noise
    _standard_gamma _sample_dirichlet binomial random
    """.split()
)


@dataclass(frozen=True)
class Facts:
    """The facts about one operation overload.

    Attributes:
        name: its name without namespace, overload and the underscore of in-place variants.
        view: its results share memory with an argument and are not written.
        mutated: positions of the positional arguments it writes.
        mutated_names: names of the keyword arguments it writes.
        exact: it moves, selects or compares values, and never rounds one.
        opaque: a kernel from outside ATen, whose arithmetic is its own.
        foreign: a kernel from outside ATen, whatever its arithmetic: it refuses what it likes.
        statistics: positions of running statistics written without an alias annotation.
        reshapes: it changes the shape or strides of its first argument in place.
        pointwise: it is elementwise, so that dtypes are promoted.
    """

    name: str
    view: bool
    mutated: tuple[int, ...]
    mutated_names: tuple[str, ...]
    exact: bool
    stepwise: bool
    opaque: bool
    foreign: bool
    random: bool
    statistics: tuple[int, ...]
    reshapes: bool
    pointwise: bool


_KNOWN: dict[int, tuple[OpOverload, Facts]] = {}


def facts(op: OpOverload) -> Facts:
    """The facts about `op`, read off its schema once."""
    known = _KNOWN.get(id(op))  # the hash of an operation is a function in Python
    if known is None:
        known = _KNOWN[id(op)] = op, _read_off(op)
    return known[1]


def _read_off(op: OpOverload) -> Facts:
    schema = op._schema
    namespace, _, full = schema.name.partition("::")
    name = full if full in _EXACT or full in STEPWISE else full.removesuffix("_")
    writes = [
        (i, a.name, a.kwarg_only)
        for i, a in enumerate(schema.arguments)
        if a.alias_info is not None and a.alias_info.is_write
    ]
    returns_alias = any(r.alias_info is not None for r in schema.returns)
    return Facts(
        name=name,
        view=returns_alias and not writes,
        reshapes=torch.Tag.inplace_view in op.tags,
        mutated=tuple(i for i, _, kw in writes if not kw),
        mutated_names=tuple(n for _, n, kw in writes if kw),
        exact=name in _EXACT and namespace in _TRANSPARENT,
        stepwise=name in STEPWISE,
        opaque=namespace not in _TRANSPARENT,
        foreign=namespace not in ("aten", "prims", "prim"),
        random=name in _RANDOM,
        statistics=(3, 4) if full in _WRITES_STATISTICS else (),
        pointwise=torch.Tag.pointwise in op.tags,
    )


_COMPUTED_OF_COMPLEX = frozenset({"abs", "sgn"})

#: Accumulators that only do so where they are asked to, by their fourth argument.
_MAY_ACCUMULATE = frozenset({"index_put", "_index_put_impl", "put_"})


def on_target(known: Facts, target: str) -> Facts:
    """The facts about an operation as the kernels of a target compute it."""
    stepwise = known.name in (_STEPWISE_ON_CPU if target == "cpu" else SCANS)
    return replace(known, stepwise=True) if stepwise else known


def as_called(known: Facts, args: Sequence[Any], kwargs: dict[str, Any]) -> Facts:
    """The facts about one call: an assignment ``x[mask] = y`` moves values and adds none.

    The size of a complex number is computed, of another it is only its sign that goes.
    """
    if known.name in _COMPUTED_OF_COMPLEX and args[0].is_complex():
        return replace(known, exact=False)
    if known.name not in _MAY_ACCUMULATE or kwargs.get("accumulate", len(args) > 3 and args[3]):
        return known
    return replace(known, exact=True, stepwise=False)


def tensors(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Every tensor among the arguments of an operation (ATen nests lists one deep)."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (item for item in value if isinstance(item, Tensor))


@cache
def functional(op: OpOverload) -> OpOverload | None:
    """The overload of an ``out=`` operation that returns new tensors, or None."""
    wanted = [(a.name, str(a.type)) for a in op._schema.arguments if not a.is_out]
    packet = op.overloadpacket
    for name in packet.overloads():
        other: OpOverload = getattr(packet, name)
        if [(a.name, str(a.type)) for a in other._schema.arguments] == wanted:
            return None if any(r.alias_info for r in other._schema.returns) else other
    return None


@cache
def differentiable(op: OpOverload) -> bool:
    """Whether somebody registered a gradient for `op`; autograd only warns where nobody did."""
    has_kernel = getattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", None)
    keys = ("Autograd", "AutogradCPU", "AutogradCUDA", "CompositeImplicitAutograd")
    return has_kernel is None or any(has_kernel(op.name(), key) for key in keys)


def seen_as(dtype: torch.dtype, wide: torch.dtype) -> torch.dtype:
    """The dtype of a view in the 16-bit program: numbers as complex ones, and the other way round.

    Args:
        dtype: of what is viewed.
        wide: of the view, where what is viewed is held in 32 bits.
    """
    if dtype in WIDE and wide == torch.complex64:
        return torch.complex32
    if dtype == torch.complex32 and wide == torch.float32:
        return torch.float16
    return dtype if WIDE.get(dtype) == wide else wide


def each(value: Any, change: Callable[[Any], Any], kind: type = Tensor) -> Any:
    """An argument with every tensor (or whatever is of that kind) changed, lists item by item."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, (list, tuple)):
        return [each(item, change, kind) for item in value]
    return value


def flat(out: Any) -> list[Any]:
    """The results of an operation as a flat list."""
    if isinstance(out, (list, tuple)):
        return [item for part in out for item in flat(part)]
    return [out]


def rebuild(out: Any, items: Iterator[Any]) -> Any:
    """The structure of `out`, filled from `items` in the order of `flat`."""
    if isinstance(out, (list, tuple)):
        return type(out)([rebuild(part, items) for part in out])
    return next(items)
