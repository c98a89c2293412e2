"""Operations that ATen composes of others, each of which rounds: they arrive here as one.

``logsumexp`` is a maximum, a difference, an exponential, a sum, a logarithm and a sum again, in
every format (``logsumexp_out_impl`` in ``ReduceOps.cpp``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from pytest_fp16.engine.emulation.operations import LOW

#: Runs one operation of the program.
Step = Callable[..., Any]

_aten: Any = torch.ops.aten


def composition(func: OpOverload, args: tuple[Any, ...]) -> Callable[..., Any] | None:
    """What an operation on 16-bit tensors consists of; None where it is one kernel.

    The result takes a function that runs one operation, then the operation's own arguments.
    """
    if not args or not isinstance(args[0], Tensor) or args[0].dtype not in LOW:
        return None
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


_COMPOSED: dict[OpOverload, Callable[..., Any]] = {_aten.logsumexp.default: _logsumexp}
