"""Whether torch's fast path of attention layers, which a check leaves off, gives other outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pytest_fp16.engine.candidate import Candidate
from pytest_fp16.engine.fast_path import fast_path_on
from pytest_fp16.engine.models import call, prepare, quiet
from pytest_fp16.engine.outputs import main_output
from pytest_fp16.engine.randomness import seed_everything
from pytest_fp16.precision import REFERENCE

#: Difference, relative to the largest output, that the order of float32 sums does not explain.
_APART = 1e-3
_HAVE_ONE = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)


def fast_path_remarks(
    reference: Candidate, fresh: Callable[[], nn.Module], inputs: Any, seed: int
) -> list[str]:
    """The warning of that; nothing where there is no such path, or it raises.

    Args:
        reference: as the check runs it.
        fresh: makes the same model, which nothing watches: torch takes no fast path past a hook.
        inputs: some that the reference has taken.
        seed: the random state.
    """
    if not any(isinstance(module, _HAVE_ONE) for module in reference.model.modules()):
        return []
    model = prepare(fresh(), REFERENCE, reference.device)
    try:
        seed_everything(seed)
        with torch.no_grad(), quiet(), fast_path_on():
            fast = main_output(call(model, inputs, REFERENCE, reference.subject)).float()
        plain = reference.outputs(inputs, seed)
    except Exception:  # the check is not of that path
        return []
    how = _apart(fast, plain)
    return [f"torch's fast path of attention layers, which is left off here, {how}"] if how else []


def _apart(fast: Tensor, plain: Tensor) -> str:
    if fast.shape != plain.shape:
        return (
            f"gives outputs of shape {tuple(fast.shape)}, and here they have {tuple(plain.shape)}"
        )
    lost = int((plain.isfinite() & ~fast.isfinite()).sum())
    if lost:
        return f"makes {lost:,} of {fast.numel():,} outputs looked at NaN or infinite in float32"
    both = plain.isfinite() & fast.isfinite()
    largest = float(plain[both].abs().max()) if bool(both.any()) else 0.0
    differ = float((fast - plain)[both].abs().max()) if largest else 0.0
    return (
        f"gives others: by {differ / largest:.2g} of the largest"
        if differ > _APART * largest
        else ""
    )
