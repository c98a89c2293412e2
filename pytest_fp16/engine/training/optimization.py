"""The optimizer and the learning-rate scheduler of a training."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pytest_fp16.engine.training.lightning import (
    configured,
    is_lightning,
    optimizes_by_hand,
    require_own_optimizers,
)
from pytest_fp16.engine.training.optimizer_copy import copied_over
from pytest_fp16.engine.training.parameters import Parameters
from pytest_fp16.engine.training.several import several
from pytest_fp16.errors import SettingError
from pytest_fp16.subject import Training


def needs_closure(optimizer: Any) -> bool:
    """Whether an optimizer asks for the loss itself (LBFGS), whatever its signature says."""
    parameter = inspect.signature(optimizer.step).parameters.get("closure")
    if parameter is None or parameter.default is inspect.Parameter.empty:
        return parameter is not None
    # One by hand may say closure=None, and assert that there is one: then a copy of it is asked.
    if not _insists(type(optimizer)):
        return False
    return _stepped(optimizer, False) is None and _stepped(optimizer, True) is not None


def _insists(kind: type) -> bool:
    """Whether the step of an optimizer, as it is written, cannot do without the loss.

    It checks that it is given one, or calls what it is given without a look. A step can have
    effects of its own (it may count, or log): no other optimizer is tried out.
    """
    try:
        step = ast.parse(textwrap.dedent(inspect.getsource(kind.step)))  # type: ignore[attr-defined]
    except (OSError, TypeError, SyntaxError):
        return False
    nodes = list(ast.walk(step))
    looks = [node for node in nodes if "closure" in _names(getattr(node, "test", None))]
    if not looks:
        return any(isinstance(node, ast.Call) and _calls(node) for node in nodes)
    return any(
        isinstance(node, ast.Assert) or (isinstance(node, ast.If) and _raises(node))
        for node in looks
    )


def _calls(call: ast.Call) -> bool:
    """Whether the loss is called there, or wrapped: handed on to another step it is neither."""
    if isinstance(call.func, ast.Name) and call.func.id == "closure":
        return True
    given = any(isinstance(a, ast.Name) and a.id == "closure" for a in call.args)
    return given and not (isinstance(call.func, ast.Attribute) and call.func.attr == "step")


def _raises(node: ast.If) -> bool:
    return any(isinstance(statement, ast.Raise) for statement in node.body)


def _names(node: ast.AST | None) -> set[str]:
    found = ast.walk(node) if node is not None else ()
    return {n.id for n in found if isinstance(n, ast.Name)}


def needs_gradients_too(optimizer: Any) -> bool:
    """Whether one that takes the loss expects gradients before its step (SAM as it is known)."""
    if type(optimizer).__module__.startswith("torch."):
        return False
    with_them, without = _stepped(optimizer, True), _stepped(optimizer, True, known=False)
    return with_them is not None and (without is None or not torch.equal(with_them, without))


def _stepped(optimizer: Any, closed: bool, known: bool = True) -> torch.Tensor | None:
    """Where a copy of an optimizer goes in one step from zero; None where that raises an error.

    Args:
        optimizer: any.
        closed: whether it is given the loss.
        known: whether there is a gradient before.
    """
    tensor = nn.Parameter(torch.zeros(2))
    groups = {id(group): {**group, "params": [tensor]} for group in optimizer.param_groups}

    def closure() -> torch.Tensor:
        tensor.grad = torch.ones(2)
        return torch.zeros(())

    if known:
        closure()
    try:
        copied_over(optimizer, groups).step(*([closure] if closed else []))
    except Exception:
        return None
    return tensor.detach()


def optimization(subject: Training, model: nn.Module) -> tuple[Any, Any, str]:
    """(optimizer, scheduler or None, "epoch" or "step") of a training.

    Raises:
        SettingError: what should make an optimizer or a scheduler made something else.
    """
    if subject.training_step is None and optimizes_by_hand(model):
        require_own_optimizers(subject)
        return several(model), None, "epoch"
    if subject.optimizer is None:
        if not is_lightning(model):
            raise SettingError(f"optimizer is None, and the model has {_missing(model)}")
        optimizer, scheduler, interval = configured(model)
    else:
        optimizer = subject.optimizer(Parameters(model.parameters(), model))
        scheduler, interval = None, subject.scheduler_step
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise SettingError(
            "optimizer must be a function of the parameters that returns a torch.optim.Optimizer "
            f"(it returned {type(optimizer).__name__})" + _of_several(optimizer)
        )
    if subject.scheduler is not None:
        scheduler, interval = subject.scheduler(optimizer), subject.scheduler_step
        if not callable(getattr(scheduler, "step", None)):
            raise SettingError(
                "scheduler must be a function of the optimizer that returns a learning-rate "
                f"scheduler (it returned {type(scheduler).__name__})"
            )
    if _goes_by_loss(scheduler) and interval == "step":
        raise SettingError(
            "ReduceLROnPlateau goes by the mean loss of an epoch; leave scheduler_step at 'epoch'"
        )
    return optimizer, scheduler, interval


def _missing(model: nn.Module) -> str:
    """What keeps a model from bringing its own optimizer, and what to pass in its place."""
    if callable(getattr(model, "configure_optimizers", None)):
        return (
            "configure_optimizers(), but no training_step(), without which it is no Lightning "
            "module; pass optimizer=lambda model: model.configure_optimizers(...), with what it "
            "asks for"
        )
    return (
        "no configure_optimizers(); pass a function of the parameters, such as "
        "lambda params: SGD(params, lr=0.1)"
    )


def step_after_epoch(scheduler: Any, mean_loss: float) -> None:
    """Step a scheduler that goes by epochs."""
    if _goes_by_loss(scheduler):
        scheduler.step(mean_loss)
    else:
        scheduler.step()


def _goes_by_loss(scheduler: Any) -> bool:
    return isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)


def _of_several(made: Any) -> str:
    """The ways to train with several optimizers, where that is what was asked for."""
    parts = list(made.values()) if isinstance(made, Mapping) else made
    several = isinstance(parts, (list, tuple)) and len(parts) > 0
    if not several or not all(isinstance(part, torch.optim.Optimizer) for part in parts):
        return ""
    return (
        "; several optimizers, each stepped in its turn (a GAN's), are trained as a Lightning "
        "module with automatic_optimization = False, whose training_step steps them, and with "
        "optimizer=None; where all step together, return one, with a group of parameters for each"
    )
