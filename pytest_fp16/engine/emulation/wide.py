"""Operations on float32 values in place of 16-bit ones, where their kernels take 16 bits alone.

CUDA has fused attention without a float32 kernel (flash, cuDNN), a softmax that turns float16 into
float32 in one kernel, and recurrent cells that a CPU has no kernel for. A program meets them as
its tensors are 16-bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from pytest_fp16.engine.emulation.attention import fused_attention
from pytest_fp16.engine.emulation.cells import fused_gru_cell, fused_lstm_cell
from pytest_fp16.engine.emulation.operations import ATTENTION, LOW, facts

_CPU_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
#: ``half_to_float`` is their third argument.
_SOFTMAX = frozenset({"_softmax", "_log_softmax"})
_CELLS: dict[str, Callable[..., Any]] = {
    "_thnn_fused_lstm_cell": fused_lstm_cell,
    "_thnn_fused_gru_cell": fused_gru_cell,
}


def run_wide(func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What an operation gives for float32 values, none of its results rounded.

    Args:
        func: the operation, as the 16-bit program calls it.
        args, kwargs: its arguments; tensors hold float32 where the program has 16 bits.
    """
    name = facts(func).name
    if name in ATTENTION and name != _CPU_ATTENTION and args[0].dtype not in LOW:
        return attention(func, args, kwargs, lambda probabilities: probabilities)
    if name in _CELLS and args[0].dtype not in LOW:
        return _CELLS[name](*args, **kwargs)
    if name in _SOFTMAX and args[2] and args[0].dtype not in LOW:
        args = (*args[:2], False)
    return func(*args, **kwargs)


def attention(
    func: OpOverload,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    round_probabilities: Callable[[Tensor], Tensor],
) -> tuple[Any, ...]:
    """A fused attention in float32, with as many results as its schema has.

    Args:
        func: one of `ATTENTION`.
        args, kwargs: its arguments, tensors in float32.
        round_probabilities: see `fused_attention`.

    Returns:
        The output and the log of the sums; after them nothing but fillers, which a backward pass
        of the fused kernel alone would read.
    """
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    mask = given.get("attn_mask")
    out, logsumexp = fused_attention(
        given["query"],
        given["key"],
        given["value"],
        mask=given.get("attn_bias") if mask is None else mask,
        causal=bool(given.get("is_causal", False)),
        scale=given.get("scale"),
        dropout=float(given.get("dropout_p", 0.0)),
        round_probabilities=round_probabilities,
    )
    rest = [_filler(result, out) for result in func._schema.returns[2:]]
    return (out, logsumexp, *rest)


def _filler(result: Any, out: Tensor) -> Any:
    if str(result.type) == "Tensor":
        return torch.empty(0, dtype=torch.int64, device=out.device)
    return 0  # a length
