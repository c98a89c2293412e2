"""What torch's fast path of `nn.TransformerEncoder` does beside being fast: padding becomes zero.

In eval mode, without gradients, it packs what is not padded into a nested tensor and unpacks it at
the end, so that padded positions are zero before the encoder's last norm. Elsewhere, as under
autocast, they hold what the layers make of them, and a model that reads them (a mean over all
positions) is another function there. A check runs without the fast path, which hides its
operations; this puts its zeros where they would be.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pytest_fp16.variants import Variant

#: Whether the user's own runs may take the fast path, while it is off for a check.
_WANTED: list[bool] = []
#: Marks an encoder whose fast path was switched off for what a module of it is kept in.
_SWITCHED_OFF = "_fp16_was_nested"
#: On its last layer: whether it is to have zeros, and whether padding must be on the right.
_ZEROS = "_fp16_zeros"
_ASKS = "_fp16_asks_for_padding"
_FORWARD = nn.TransformerEncoder.forward


def fast_path_taken() -> bool:
    """Whether the user's own runs may take the fast path."""
    return _WANTED[-1] if _WANTED else torch.backends.mha.get_fastpath_enabled()


@contextmanager
def fast_path_off() -> Iterator[None]:
    """Without any fast path of `nn.MultiheadAttention` and its layers.

    A fused kernel of its own would hide the operations; none is taken where anything is hooked.
    """
    mha = torch.backends.mha
    wanted = mha.get_fastpath_enabled()
    _WANTED.append(fast_path_taken())
    mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        _WANTED.pop()
        mha.set_fastpath_enabled(wanted)


@contextmanager
def fast_path_on() -> Iterator[None]:
    """As the user's own runs have it, within `fast_path_off`."""
    mha = torch.backends.mha
    off = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(fast_path_taken())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*nested tensors is in prototype")
        try:
            yield
        finally:
            mha.set_fastpath_enabled(off)


def with_zero_padding(model: nn.Module, there: bool = True) -> list[str]:
    """Give the encoders of a model of our own the zeros of torch's fast path; changed in place.

    Args:
        model: it; a copy of it has them, too, until it is told otherwise.
        there: whether it is to have them.

    Returns:
        The names of the encoders that have them now.
    """
    there &= fast_path_taken()
    found = []
    for name, encoder in model.named_modules():
        if not packs(encoder) and not getattr(encoder, _SWITCHED_OFF, False):
            continue
        last = vars(encoder.layers[-1])
        if there and _ZEROS not in last:
            _hook(encoder, _zeroed)
        if there or _ZEROS in last:
            last[_ZEROS] = there
        found += [name] * there
    return found


@contextmanager
def zero_padding(model: nn.Module, there: bool = True) -> Iterator[list[str]]:
    """The same for a while, if it is `there`; gives the names of the encoders."""
    names = with_zero_padding(model) if there else []
    try:
        yield names
    finally:
        if there:
            with_zero_padding(model, False)


def without_fast_path(encoder: Any) -> None:
    """Switch the fast path of an encoder (of another module none) off; changed in place.

    Its zeros stay where torch would take it: not in training, under autocast, or for gradients.
    """
    if packs(encoder):
        setattr(encoder, _SWITCHED_OFF, True)
        encoder.use_nested_tensor = False
        _hook(encoder, _zeroed_in_use)


def packs(module: nn.Module) -> bool:
    """Whether a module is an encoder that packs padding, and not one with a forward of its own."""
    if not isinstance(module, nn.TransformerEncoder):
        return False
    kinds = (k for k in type(module).__mro__ if "forward" in vars(k) and not issubclass(k, Variant))
    return vars(next(kinds))["forward"] is _FORWARD and bool(
        getattr(module, "use_nested_tensor", False)
    )


def _hook(encoder: Any, hook: Any) -> None:
    last = encoder.layers[-1]
    vars(last)[_ASKS] = getattr(encoder, "mask_check", True)
    # First, so that whoever watches the layer sees what comes out of it.
    last.register_forward_hook(hook, prepend=True, with_kwargs=True)


def _zeroed_in_use(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    """The same, where a model in use would be on the fast path."""
    if not fast_path_taken() or torch.is_autocast_enabled(output.device.type):
        return None
    # Of gradients a check may ask for reasons of its own.
    differentiated = torch.is_grad_enabled() and any(p.requires_grad for p in layer.parameters())
    if differentiated and not _WANTED:
        return None
    return _with_zeros(layer, kwargs, output)


def _zeroed(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    return _with_zeros(layer, kwargs, output) if vars(layer)[_ZEROS] else None


def _with_zeros(layer: nn.Module, kwargs: Any, output: Any) -> Any:
    """The output of an encoder's last layer, [N, S, E], with zeros where its input is padded.

    Conditions are those of `nn.TransformerEncoder.forward`.
    """
    mask = kwargs.get("src_key_padding_mask")
    if layer.training or not may_pack(output, mask, kwargs.get("src_mask")):
        return None
    padded = as_padding(mask)
    if vars(layer)[_ASKS]:  # torch looks at the values, which a trace need not be asked for here
        padded = padded & on_the_right(padded)
    return output.masked_fill(padded.unsqueeze(-1), 0.0)


def may_pack(source: Tensor, padding: Tensor | None, mask: Tensor | None) -> bool:
    """Whether an encoder in eval mode packs inputs [N, S, E], if their padding is on the right."""
    return padding is not None and mask is None and source.dim() == 3


def as_padding(mask: Tensor) -> Tensor:
    """True where a row is padded, [N, S], of a mask that may be one of numbers."""
    return mask if mask.dtype == torch.bool else mask != 0


def on_the_right(padded: Tensor) -> Tensor:
    """Whether padding [N, S] is at the end of every row, one bool."""
    return (padded[:, 1:] | ~padded[:, :-1]).all()
