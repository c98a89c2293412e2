"""Operations that ATen composes of others, each of which rounds: they arrive here as one.

``logsumexp`` is a maximum, a difference, an exponential, a sum, a logarithm and a sum again, in
every format (``logsumexp_out_impl`` in ``ReduceOps.cpp``). A third power is two products and a
power of minus two the inverse of one, which kernels compute in the tensor's own type: CUDA's in
both formats (``PowKernel.cu``), a CPU's in bfloat16 (``cpu/PowKernel.cpp``). A cross product and a
squared error are computed so on both (``CrossKernel.cu``, ``BinaryMiscOpsKernels.cu``). What is
reduced to places is added there as ``scatter_add`` does, on CUDA one addition after the other; for
their mean the terms are counted so, too (``scatter_reduce_two`` in ``TensorAdvancedIndexing.cpp``).
A soft margin loss is the logarithm of one plus an exponential, and so is its slope (``Loss.cpp``).
The mean loss of all pixels is a quotient of two sums, each in the tensor's format (``NLLLoss2d.cu``
and ``LossNLL2d.cpp``). An affine grid is a product with places that are made in the format
(``AffineGridGenerator.cpp``). ``cdist`` of many rows is the root of a matrix product, in which the
squared lengths stand beside the rows, rounded (``_euclidean_dist`` in ``Distance.cpp``): what two
near rows leave of them is no distance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from pytest_fp16.engine.emulation.composed_layers import (
    LAYERS,
    OF_BILINEAR,
    TRILINEAR,
    moments_are_rounded,
)
from pytest_fp16.engine.emulation.composed_on_cpu import ON_CPU
from pytest_fp16.engine.emulation.operations import LOW
from pytest_fp16.engine.emulation.windows import WINDOWS

#: Runs one operation of the program.
Step = Callable[..., Any]

_aten: Any = torch.ops.aten


def composition(
    func: OpOverload, args: tuple[Any, ...], target: str | None
) -> Callable[..., Any] | None:
    """What an operation on 16-bit tensors consists of; None where it is one kernel.

    The result takes a function that runs one operation, then the operation's own arguments.

    Args:
        func: the operation.
        args: its arguments.
        target: the device type whose kernel is meant; None for this device's own.
    """
    if id(func) not in _TAKEN_APART:
        return None
    if func in WINDOWS:  # whose dtype is no argument's; a CPU's run as they are
        return WINDOWS[func] if target == "cuda" else None
    if not isinstance(args[0], Tensor) or args[0].dtype not in LOW:
        return None
    if func in _POWERS:
        powers = target == "cuda" or (target == "cpu" and args[0].dtype == torch.bfloat16)
        return _POWERS[func] if powers and args[1] in (3, -2) else None
    if target == "cpu" and func in ON_CPU:
        return ON_CPU[func](*args)
    if func in _REDUCED:
        return _REDUCED[func] if target == "cuda" and args[4] in ("sum", "mean") else None
    if func is _aten.native_group_norm.default:
        alike = all(t is None or t.dtype == args[0].dtype for t in args[1:3])  # else it refuses
        return LAYERS[func] if target == "cuda" and moments_are_rounded() and alike else None
    if func is _aten.linalg_cross.default and args[1].dtype != args[0].dtype:
        return None  # its kernel refuses them
    if func is TRILINEAR and tuple(map(tuple, args[3:7])) != OF_BILINEAR:
        return None
    if func is _aten.nll_loss2d_forward.default and args[3] != 1:
        return None  # no mean
    if func is _aten.affine_grid_generator.default and min(args[1][2:]) < 2:
        return None  # its one place is made otherwise
    return _COMPOSED.get(func)


def _logsumexp(step: Step, x: Tensor, dim: list[int], keepdim: bool = False) -> Any:
    if not x.numel():
        return step(_aten.log.default, step(_aten.sum.dim_IntList, x, dim, keepdim))
    # ATen takes zero for an infinite maximum; the largest finite number gives the same result.
    most = torch.finfo(x.dtype).max
    largest = step(_aten.clamp.default, step(_aten.amax.default, x, dim, True), -most, most)
    terms = step(_aten.exp.default, step(_aten.sub.Tensor, x, largest))
    logarithm = step(_aten.log.default, step(_aten.sum.dim_IntList, terms, dim, keepdim))
    if not keepdim:
        largest = step(_aten.squeeze.dims, largest, dim or list(range(x.dim())))
    return step(_aten.add.Tensor, logarithm, largest)


def _power(step: Step, x: Tensor, exponent: Any) -> Any:
    square = step(_aten.mul.Tensor, x, x)
    if exponent == 3:
        return step(_aten.mul.Tensor, square, x)
    return step(_aten.reciprocal.default, square)


def _power_in_place(step: Step, x: Tensor, exponent: Any) -> Any:
    return step(_aten.copy_.default, x, _power(step, x, exponent))


_POWERS: dict[OpOverload, Callable[..., Any]] = {
    _aten.pow.Tensor_Scalar: _power,
    _aten.pow_.Scalar: _power_in_place,
}


def _cross(step: Step, a: Tensor, b: Tensor, *, dim: int = -1) -> Any:
    def turned(x: Tensor, places: int) -> Any:
        return step(_aten.roll.default, x, [-places], [dim])

    one, other = (step(_aten.mul.Tensor, turned(a, i), turned(b, 3 - i)) for i in (1, 2))
    return step(_aten.sub.Tensor, one, other)


def _mse_loss(step: Step, x: Tensor, y: Tensor, reduction: int = 1) -> Any:
    difference = step(_aten.sub.Tensor, x, y)
    return _reduced(step, step(_aten.mul.Tensor, difference, difference), reduction)


def _reduced(step: Step, terms: Tensor, reduction: int) -> Any:
    if reduction == 0:
        return terms
    return step((_aten.mean if reduction == 1 else _aten.sum).default, terms)


def _against(step: Step, x: Tensor, target: Tensor) -> Any:
    """exp(-tx), in the format of x."""
    product = step(_aten.mul.Tensor, step(_aten.neg.default, x), target)
    if target.dtype != x.dtype:
        product = step(_aten._to_copy.default, product, dtype=x.dtype)
    return step(_aten.exp.default, product)


def _soft_margin_loss(step: Step, x: Tensor, target: Tensor, reduction: int = 1) -> Any:
    return _reduced(step, step(_aten.log1p.default, _against(step, x, target)), reduction)


def _soft_margin_slope(
    step: Step, grad: Tensor, x: Tensor, target: Tensor, reduction: int = 1
) -> Any:
    share = 1 / x.numel() if reduction == 1 else 1.0
    odds = _against(step, x, target)
    part = step(_aten.mul.Scalar, step(_aten.mul.Tensor, target, odds), -share)
    part = step(_aten.div.Tensor, part, step(_aten.add.Scalar, odds, 1))
    return step(_aten.mul.Tensor, part, grad)


def _nll_loss2d(step: Step, x: Tensor, target: Tensor, weight: Any, _: int, ignored: int) -> Any:
    total, count = step(_aten.nll_loss2d_forward.default, x, target, weight, 2, ignored)
    return step(_aten.div.Tensor, total, count), count


def _affine_grid(
    step: Step,
    theta: Tensor,
    size: list[int],
    align_corners: bool,
    cast: Callable[[Tensor], Tensor] = lambda x: x,
) -> Any:
    number, _, *sides = size
    like = {"dtype": theta.dtype, "device": theta.device}
    lines = []
    for axis, count in reversed(list(enumerate(sides))):  # x comes first
        line = step(_aten.linspace.default, -1, 1, count, **like)
        if not align_corners:
            line = step(_aten.mul.Tensor, line, count - 1)
            line = step(_aten.div.Tensor, line, count)
        line = step(_aten.view.default, line, [-1 if i == axis else 1 for i in range(len(sides))])
        lines.append(step(_aten.expand.default, line, sides))
    base = step(_aten.stack.default, [*lines, step(_aten.ones.default, sides, **like)], -1)
    base = step(_aten.view.default, base, [1, -1, len(sides) + 1])
    base = step(_aten.expand.default, base, [number, -1, -1])
    grid = step(_aten.bmm.default, cast(base), cast(step(_aten.transpose.int, theta, 1, 2)))
    return step(_aten.view.default, grid, [number, *sides, len(sides)])


def grid_cast_inside(
    cast: Callable[[Tensor], Tensor], theta: Tensor, size: list[int], align_corners: bool
) -> Any:
    """An affine grid under autocast, which sees the product inside, and its places as they are."""
    if min(size[2:]) < 2:
        return _aten.affine_grid_generator.default(cast(theta), size, align_corners)
    return _affine_grid(lambda func, *a, **kw: func(*a, **kw), theta, size, align_corners, cast)


def _euclidean_dist(step: Step, a: Tensor, b: Tensor) -> Any:
    def beside(x: Tensor, first: bool) -> Any:
        square = step(_aten.sum.dim_IntList, step(_aten.pow.Tensor_Scalar, x, 2), [-1], True)
        ones = step(_aten.ones_like.default, square)
        parts = [step(_aten.mul.Tensor, x, -2), square, ones] if first else [x, ones, square]
        return step(_aten.cat.default, parts, -1)

    product = _aten.mm.default if a.dim() == 2 else _aten.bmm.default
    turned = step(_aten.transpose.int, beside(b, False), -2, -1)
    squares = step(_aten.clamp_min.default, step(product, beside(a, True), turned), 0)
    return step(_aten.sqrt.default, squares)


def _scatter_reduce(
    step: Step,
    x: Tensor,
    dim: int,
    index: Tensor,
    source: Tensor,
    reduce: str,
    *,
    include_self: bool = True,
) -> Any:
    base = x if include_self else step(_aten.scatter.value, x, dim, index, 0)
    total = step(_aten.scatter_add.default, base, dim, index, source)
    if reduce == "sum":
        return total
    none = step((_aten.ones_like if include_self else _aten.zeros_like).default, x)
    terms = step(_aten.ones_like.default, source)
    count = step(_aten.scatter_add.default, none, dim, index, terms)
    empty = step(_aten.eq.Scalar, count, 0)
    return step(_aten.div.Tensor, total, step(_aten.masked_fill.Scalar, count, empty, 1))


def _scatter_reduce_in_place(step: Step, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    return step(_aten.copy_.default, x, _scatter_reduce(step, x, *args, **kwargs))


_REDUCED: dict[OpOverload, Callable[..., Any]] = {
    _aten.scatter_reduce.two: _scatter_reduce,
    _aten.scatter_reduce_.two: _scatter_reduce_in_place,
}

_COMPOSED: dict[OpOverload, Callable[..., Any]] = {
    _aten.logsumexp.default: _logsumexp,
    _aten.linalg_cross.default: _cross,
    _aten.mse_loss.default: _mse_loss,
    _aten.soft_margin_loss.default: _soft_margin_loss,
    _aten.soft_margin_loss_backward.default: _soft_margin_slope,
    _aten.nll_loss2d_forward.default: _nll_loss2d,
    _aten.affine_grid_generator.default: _affine_grid,
    **LAYERS,
}
if (_distances := getattr(_aten, "_euclidean_dist", None)) is not None:
    _COMPOSED[_distances.default] = _euclidean_dist


#: By id, as every operation of a program is looked up: the hash of one is a function in Python.
_TAKEN_APART = frozenset(map(id, (*_POWERS, *_REDUCED, *_COMPOSED, *ON_CPU, *WINDOWS)))
