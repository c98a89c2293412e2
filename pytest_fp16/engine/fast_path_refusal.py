"""What torch's fast path of `nn.TransformerEncoder` refuses: padding under autocast on a CPU.

Whether autocast is on torch asks of CUDA alone there, packs the padding and stops at the first
layer, whose weights have another dtype. A check runs without the fast path; this raises what it
would raise.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from pytest_fp16.engine.emulation.wording import FAST_PATH, first_line
from pytest_fp16.engine.fast_path import (
    as_padding,
    fast_path_on,
    fast_path_taken,
    may_pack,
    on_the_right,
    packs,
)
from pytest_fp16.precision import Precision

#: Marks an encoder that was told to.
_REFUSES = "_fp16_refuses"


@functools.cache
def refusal(dtype: torch.dtype) -> str | None:
    """What this torch says there, tried on an encoder of its own; None where it takes the path.

    Args:
        dtype: of the autocast.
    """
    with torch.random.fork_rng(devices=()), fast_path_on(), torch.no_grad():
        layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        encoder = nn.TransformerEncoder(layer, 1).eval()
        padding = torch.tensor([[False, True]])
        try:
            with torch.autocast("cpu", dtype):
                encoder(torch.zeros(1, 2, 8), src_key_padding_mask=padding)
        except RuntimeError as error:
            return f"{first_line(error)} ({FAST_PATH})"
    return None


def with_refusal(model: nn.Module, precision: Precision, target: str) -> None:
    """Let the encoders of a model of our own refuse what torch's do; changed in place.

    Args:
        model: it.
        precision, target: how it runs; of others than autocast for a CPU nothing is refused.
    """
    there = model.modules() if fast_path_taken() and precision.mixed and target == "cpu" else ()
    encoders = [module for module in there if packs(module) and _REFUSES not in vars(module)]
    said = refusal(precision.dtype) if encoders else None
    if said is None:
        return
    for encoder in encoders:
        vars(encoder)[_REFUSES] = True
        encoder.register_forward_pre_hook(functools.partial(_refused, said), with_kwargs=True)


def _refused(said: str, encoder: Any, args: Any, kwargs: Any) -> None:
    """Raise it, where conditions are those of `nn.TransformerEncoder.forward`."""
    given = dict(zip(("src", "mask", "src_key_padding_mask"), args, strict=False)) | kwargs
    source, mask = given["src"], given.get("src_key_padding_mask")
    switched_off = not encoder.use_nested_tensor
    if switched_off or encoder.layers[0].training or not may_pack(source, mask, given.get("mask")):
        return
    asks = getattr(encoder, "mask_check", True)
    if torch.is_autocast_enabled(source.device.type) and (
        not asks or bool(on_the_right(as_padding(mask)))
    ):
        raise RuntimeError(said)
