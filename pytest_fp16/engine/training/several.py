"""Several optimizers as one: those that a Lightning module which optimizes by hand configures."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from pytest_fp16.engine.training.lightning import every_configured
from pytest_fp16.errors import SettingError


class Several(torch.optim.Optimizer):
    """The optimizers of one module, looked at together. Hooks of a step are told of each one's."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer], schedulers: Sequence[Any]) -> None:
        self.parts, self.schedulers = list(parts), list(schedulers)
        groups = [g for p in parts for g in p.param_groups]
        self.defaults: dict[str, Any] = {}
        self.param_groups = groups

    @property
    def state(self) -> dict[Any, Any]:  # type: ignore[override]
        """What all of them keep."""
        return {key: held for part in self.parts for key, held in part.state.items()}

    def register_step_pre_hook(self, hook: Any) -> Any:  # noqa: D102 (the base class's)
        return _together([part.register_step_pre_hook(hook) for part in self.parts])

    def register_step_post_hook(self, hook: Any) -> Any:  # noqa: D102 (the base class's)
        return _together([part.register_step_post_hook(hook) for part in self.parts])

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: D102 (the base class's)
        for part in self.parts:
            part.zero_grad(set_to_none)


def _together(handles: list[Any]) -> Any:
    return SimpleNamespace(remove=lambda: [handle.remove() for handle in handles])


def several(model: Any) -> Several:
    """All that a module's configure_optimizers makes.

    Raises:
        SettingError: it makes something else.
    """
    optimizers, schedulers = every_configured(model)
    for optimizer in optimizers:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise SettingError(
                "configure_optimizers must return torch.optim.Optimizers "
                f"(it returned {type(optimizer).__name__})"
            )
    return Several(optimizers, schedulers)
