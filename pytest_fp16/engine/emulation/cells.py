"""Recurrent layers as CUDA steps through them: products, and one fused kernel for what is left.

The fused kernels take the products in 16 bits, compute in float32 and round the new states alone
(``_thnn_fused_lstm_cell`` and ``_thnn_fused_gru_cell`` in ATen's ``RNN.cu``); cuDNN keeps states in
16 bits, too. A CPU runs an operation for each gate instead, and rounds in each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from pytest_fp16.engine.emulation.cast_cache import kept_cast
from pytest_fp16.engine.emulation.operations import AUTOCAST, LOW, each

_aten: Any = torch.ops.aten

#: A state of one layer: of a GRU the output alone, of an LSTM with the cell behind it.
State = tuple[Tensor, ...]
#: Input's gates, hidden gates, the state before and the biases, to the state after.
Cell = Callable[[Tensor, Tensor, State, Sequence[Tensor]], State]

_WEIGHTS = 2  # of a layer: of the input, of the hidden state; as many biases follow


def _lstm_cell(inputs: Tensor, hidden: Tensor, state: State, biases: Sequence[Tensor]) -> State:
    h, c, _ = _aten._thnn_fused_lstm_cell(inputs, hidden, state[1], *biases)
    return h, c


def _gru_cell(inputs: Tensor, hidden: Tensor, state: State, biases: Sequence[Tensor]) -> State:
    return (_aten._thnn_fused_gru_cell(inputs, hidden, state[0], *biases)[0],)


_CELLS: dict[str, Cell] = {"lstm": _lstm_cell, "gru": _gru_cell}


def as_on_cuda(name: str, args: Sequence[Any]) -> Any:
    """What a recurrent layer or cell gives, in CUDA's own steps; None where ATen's are to be taken.

    Those are taken outside of 16 bits, of packed sequences, of projections, and where gradients are
    recorded: in a training, or of a model that differentiates on its own.

    Args:
        name: a function of ``torch._VF``, such as ``"lstm"`` or ``"gru_cell"``.
        args: its arguments.
    """
    kind = name.removesuffix("_cell")
    if kind not in _CELLS or torch.is_grad_enabled():
        return None
    args, low = _cast(args, Tensor.to if kind == name else kept_cast)
    if not low:
        return None
    with torch._C._ExcludeDispatchKeyGuard(AUTOCAST):
        if kind != name:
            return _one_step(_CELLS[kind], *args)
        return _layers(_CELLS[kind], *args) if isinstance(args[3], bool) else None


def _cast(
    args: Sequence[Any], to: Callable[[Tensor, torch.dtype], Tensor]
) -> tuple[Sequence[Any], bool]:
    """The arguments as autocast hands them on, and whether all that is floating has 16 bits."""
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        args = [each(a, lambda t: to(t, dtype) if t.is_floating_point() else t) for a in args]
    dtypes: set[torch.dtype] = set()
    for value in args:
        each(value, lambda t: dtypes.add(t.dtype))
    return args, len(dtypes) == 1 and dtypes <= LOW


def _one_step(cell: Cell, x: Tensor, state: Any, w_input: Tensor, w_hidden: Tensor, *b: Any) -> Any:
    lstm = isinstance(state, (list, tuple))
    before = tuple(state) if lstm else (state,)
    biases = [bias for bias in b if bias is not None]
    after = cell(linear(x, w_input), linear(before[0], w_hidden), before, biases)
    return after if lstm else after[0]


def _layers(
    cell: Cell,
    x: Tensor,
    initial: Any,
    weights: Sequence[Tensor],
    biased: bool,
    layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Any:
    each = _WEIGHTS * (1 + biased)
    directions = 1 + bidirectional
    if len(weights) != layers * directions * each or (training and dropout):
        return None  # with a projection there is a weight more
    before = list(zip(*(t.unbind(0) for t in _listed(initial)), strict=True))
    ended: list[State] = []
    x = x.transpose(0, 1) if batch_first else x
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            place = layer * directions + direction
            own = weights[place * each : (place + 1) * each]
            out, last = _sequence(cell, x, before[place], own, backwards=direction == 1)
            outputs.append(out)
            ended.append(last)
        x = torch.cat(outputs, -1) if bidirectional else outputs[0]
    x = x.transpose(0, 1) if batch_first else x
    return x, *(torch.stack(states) for states in zip(*ended, strict=True))


def _listed(initial: Any) -> list[Tensor]:
    return [initial] if isinstance(initial, Tensor) else list(initial)


def _sequence(
    cell: Cell, x: Tensor, state: State, weights: Sequence[Tensor], backwards: bool
) -> tuple[Tensor, State]:
    """One layer in one direction over x [T, B, …]: outputs [T, B, H] and the last state."""
    hidden, biases = weights[1].t(), weights[_WEIGHTS:]
    gates = linear(x, weights[0]).unbind(0)
    outputs = []
    for inputs in reversed(gates) if backwards else gates:
        state = cell(inputs, torch.mm(state[0], hidden), state, biases)
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backwards else outputs), state


def fused_lstm_cell(
    inputs: Tensor, hidden: Tensor, before: Tensor, *biases: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """ATen's ``_thnn_fused_lstm_cell`` in the precision of its arguments.

    Args:
        inputs, hidden: products of a step's input and of the state before, [B, 4H]; input gate,
            forget gate, cell and output gate.
        before: the cell before, [B, H].
        biases: of both products, [4H] each; or none.

    Returns:
        The state and the cell, [B, H] each, and nothing in place of the workspace.
    """
    i, f, g, o = _with(inputs, hidden, *biases).chunk(4, -1)
    after = f.sigmoid() * before + i.sigmoid() * g.tanh()
    return o.sigmoid() * after.tanh(), after, inputs.new_empty(0)


def fused_gru_cell(
    inputs: Tensor, hidden: Tensor, before: Tensor, *biases: Tensor | None
) -> tuple[Tensor, Tensor]:
    """ATen's ``_thnn_fused_gru_cell`` in the precision of its arguments.

    Args:
        inputs, hidden: products of a step's input and of the state before, [B, 3H]; reset gate,
            update gate and new state.
        before: the state before, [B, H].
        biases: of both products, [3H] each; or none.

    Returns:
        The state, [B, H], and nothing in place of the workspace.
    """
    own, other = (*biases, None, None)[:2]
    reset, update, new = _with(inputs, own).chunk(3, -1)
    more_reset, more_update, more_new = _with(hidden, other).chunk(3, -1)
    new = (new + (reset + more_reset).sigmoid() * more_new).tanh()
    return new + (update + more_update).sigmoid() * (before - new), inputs.new_empty(0)


def _with(x: Tensor, *more: Tensor | None) -> Tensor:
    for other in more:
        x = x if other is None else x + other
    return x
