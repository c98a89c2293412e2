"""The optimizer and the learning-rate scheduler of a training."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from pytest_fp16.engine.lightning import configured, is_lightning
from pytest_fp16.errors import SettingError
from pytest_fp16.subject import Training


def needs_closure(optimizer: Any) -> bool:
    """Whether an optimizer asks for the loss itself (LBFGS)."""
    parameter = inspect.signature(optimizer.step).parameters.get("closure")
    return parameter is not None and parameter.default is inspect.Parameter.empty


def optimization(subject: Training, model: nn.Module) -> tuple[Any, Any, str]:
    """(optimizer, scheduler or None, "epoch" or "step") of a training.

    Raises:
        SettingError: what should make an optimizer or a scheduler made something else.
    """
    if subject.optimizer is None:
        if not is_lightning(model):
            raise SettingError(
                "optimizer is None, and the model has no configure_optimizers(); pass a function "
                "of the parameters, such as lambda params: SGD(params, lr=0.1)"
            )
        optimizer, scheduler, interval = configured(model)
    else:
        optimizer = subject.optimizer(list(model.parameters()))
        scheduler, interval = None, subject.scheduler_step
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise SettingError(
            "optimizer must be a function of the parameters that returns a torch.optim.Optimizer "
            f"(it returned {type(optimizer).__name__})"
        )
    if subject.scheduler is not None:
        scheduler, interval = subject.scheduler(optimizer), subject.scheduler_step
        if not callable(getattr(scheduler, "step", None)):
            raise SettingError(
                "scheduler must be a function of the optimizer that returns a learning-rate "
                f"scheduler (it returned {type(scheduler).__name__})"
            )
    return optimizer, scheduler, interval
