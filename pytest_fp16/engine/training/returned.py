"""What a training step returns: a loss, a dictionary with one, or None to leave a batch out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pytest_fp16.errors import ModelError


def scalar_of(value: Any, may_leave_out: bool) -> Tensor | None:
    """The loss that was returned; None for a batch that the step leaves out.

    Args:
        value: what the user's function returned.
        may_leave_out: whether it is a step, which may; a loss that is None lacks its ``return``.

    Raises:
        ModelError: it is no scalar tensor.
    """
    if isinstance(value, Mapping) and "loss" in value:
        value = value["loss"]
    if value is None and may_leave_out:
        return None
    if not isinstance(value, Tensor) or value.numel() != 1:
        shaped = isinstance(value, Tensor)
        got = f"a tensor of shape {tuple(value.shape)}" if shaped else repr(value)[:80]
        raise ModelError(
            f"the loss must be a scalar tensor (got {got}); reduce it, with .mean() say"
        )
    return value.reshape(())
