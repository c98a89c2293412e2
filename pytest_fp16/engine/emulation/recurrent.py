"""Recurrent layers step by step, where rounding is followed.

cuDNN and oneDNN run a whole layer in one kernel, which rounds the state at every step out of sight.
So a layer is taken apart: for CUDA into the steps of `cells`, otherwise into ATen's, one operation
each. What their sequences are unpacked with is replaced where tensors are carried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.emulation.cells import as_on_cuda
from pytest_fp16.engine.emulation.patching import replaced

_WITHIN = ContextVar("within a layer", default=False)
_LAYERS = ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell")


@contextmanager
def recurrent_by_steps(target: str | None = None) -> Iterator[None]:
    """Take torch's recurrent layers apart as a target does, and nothing else.

    Args:
        target: ``"cuda"``, or another one for ATen's own steps.
    """
    home: Any = torch._VF
    layers = {name: _in_steps(name, getattr(home, name), target) for name in _LAYERS}
    with replaced(home, **layers):
        yield


def _in_steps(name: str, own: Callable[..., Any], target: str | None) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        token = _WITHIN.set(not name.endswith("_cell"))
        try:
            out = as_on_cuda(name, args) if target == "cuda" else None
            if out is not None:
                return out
            with _without_whole_layers():
                return own(*args, **kwargs)
        finally:
            _WITHIN.reset(token)

    return run


def within_a_layer() -> bool:
    """Whether what runs is a step of a layer that a library runs as a whole.

    How that rounds the state from one step to the next is its own affair: errors are of this size,
    but none is certain.
    """
    return _WITHIN.get()


@contextmanager
def _without_whole_layers() -> Iterator[None]:
    """Without the libraries that run a layer in one kernel."""
    libraries: list[Any] = [torch.backends.cudnn, torch.backends.mkldnn]
    was = [library.enabled for library in libraries]
    for library in libraries:
        library.enabled = False
    try:
        yield
    finally:
        for library, enabled in zip(libraries, was, strict=True):
            library.enabled = enabled


@contextmanager
def padded_by_operations() -> Iterator[None]:
    """Unpack packed sequences by operations that carry anything.

    ATen's own ``_pad_packed_sequence`` writes the lengths through a raw pointer, into a tensor that
    has no memory while values are carried.
    """
    with replaced(torch._VF, _pad_packed_sequence=_pad_packed_sequence):
        yield


def _pad_packed_sequence(
    data: Tensor, batch_sizes: Tensor, batch_first: bool, padding_value: float, total_length: int
) -> tuple[Tensor, Tensor]:
    """What ``torch._VF._pad_packed_sequence`` returns: sequences and their lengths."""
    sizes = batch_sizes.tolist()
    steps, batch = max(len(sizes), total_length), sizes[0]
    places = [t * batch + i for t, size in enumerate(sizes) for i in range(size)]
    padded = data.new_full((steps * batch, *data.shape[1:]), padding_value)
    padded = padded.index_copy(0, torch.tensor(places, device=data.device), data)
    padded = padded.view(steps, batch, *data.shape[1:])
    lengths = torch.tensor([sum(size > i for size in sizes) for i in range(batch)])
    return padded.transpose(0, 1) if batch_first else padded, lengths
