"""What a function that makes an optimizer is given: the parameters, which know their names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


class Parameters(list[nn.Parameter]):
    """A list of a model's parameters that also answers what the model does.

    Groups by name, or by the part of the model, are asked of a module; an optimizer takes a list.

    Args:
        parameters: all of them.
        model: whose they are; None for a list and no more.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter] = (), model: nn.Module | None = None
    ) -> None:
        super().__init__(parameters)
        self.__dict__["_model"] = model

    def __getattr__(self, name: str) -> Any:
        model = self.__dict__.get("_model")
        if model is None or name.startswith("__"):  # protocols are a list's own
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        return getattr(model, name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A copy, which an optimizer may keep, is a list alone: it takes no model along."""
        return list, (list(self),)
