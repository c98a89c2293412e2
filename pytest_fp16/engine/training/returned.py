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
        got, what_to_do = _other(value, may_leave_out)
        raise ModelError(f"the loss must be a scalar tensor (got {got}); {what_to_do}")
    return value.reshape(())


def _other(value: Any, step: bool) -> tuple[str, str]:
    """What was returned in place of a loss, and what to do; a step may be a whole loop's."""
    alone = "return the loss alone, or a dictionary with 'loss'"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}", "reduce it, with .mean() say"
    if isinstance(value, Mapping):
        return f"a dictionary with {', '.join(map(repr, value)) or 'nothing'}"[:80], alone
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}", alone
    if value is None or isinstance(value, (bool, int, float, str)):
        rest = ", and leave backward() and the optimizer's step to the check" if step else ""
        return repr(value)[:80], f"return it as it was computed, before .item(){rest}"
    has_one = isinstance(getattr(value, "loss", None), Tensor)
    return type(value).__name__, "return its .loss" if has_one else alone
