"""What a Lightning module brings: its training step, its optimizer, and what is not heard of it.

Lightning itself is never imported: a module is told by what it has.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from pytest_fp16.errors import SettingError
from pytest_fp16.subject import Training

#: Hooks that can change a training and are the Trainer's to call, which there is none of here.
_HOOKS = (
    "backward configure_gradient_clipping configure_model lr_scheduler_step on_after_backward "
    "on_after_batch_transfer on_before_backward on_before_optimizer_step on_before_zero_grad "
    "on_fit_start on_train_batch_end on_train_batch_start on_train_epoch_end on_train_epoch_start "
    "on_train_start optimizer_step optimizer_zero_grad setup transfer_batch_to_device"
).split()
_PACKAGES = ("lightning", "pytorch_lightning")


def is_lightning(model: nn.Module) -> bool:
    """Whether a module brings its own training step and optimizer, as Lightning's do."""
    return all(callable(getattr(model, n, None)) for n in ("training_step", "configure_optimizers"))


def lightning_base(model: nn.Module) -> type | None:
    """Lightning's own class that a module is of, or None."""
    return next(
        (
            c
            for c in type(model).__mro__
            if c.__name__ == "LightningModule" and c.__module__.partition(".")[0] in _PACKAGES
        ),
        None,
    )


def optimizes_by_hand(model: nn.Module) -> bool:
    """Whether a module steps its own optimizers, inside its training step."""
    return is_lightning(model) and not getattr(model, "automatic_optimization", True)


def require_own_optimizers(subject: Training) -> None:
    """What a module that optimizes by hand does itself, and is not to be asked for.

    Raises:
        SettingError: it is.
    """
    asked = {
        "optimizer": subject.optimizer is not None,
        "scheduler": subject.scheduler is not None,
        "clip_grad_norm": subject.clip_grad_norm is not None,
        "accumulate": subject.accumulate > 1,
    }
    given = ", ".join(f"{name}=" for name, is_given in asked.items() if is_given)
    if given:
        raise SettingError(
            f"the Lightning module optimizes by hand (automatic_optimization is False): {given} "
            "cannot take part in its steps; leave it out, or pass optimizer= and training_step=, a "
            "function of (model, batch) that returns the loss"
        )


def unheard(model: nn.Module) -> list[str]:
    """A note that names the hooks the module overrides and nobody will call."""
    base = lightning_base(model)
    own = [
        n
        for n in _HOOKS
        if base is not None and getattr(type(model), n, 0) is not getattr(base, n, 0)
    ]
    if not own:
        return []
    return [
        f"hooks of the Lightning module that only a Trainer calls were left out: {', '.join(own)}; "
        "if the training needs them, pass training_step="
    ]


def own_calls(subject: Training, model: Any) -> tuple[Any, ...]:
    """The functions of the user's own that are called with a model in training, or None."""
    step = subject.training_step or getattr(model, "training_step", None)
    return step, subject.forward, subject.loss


def own_loss(model: Any, batch: Any, index: int) -> Any:
    """What the module's training step returns for a batch of that index."""
    step = model.training_step
    numbered = len(inspect.signature(step).parameters) > 1
    return step(batch, index) if numbered else step(batch)


def configured(model: Any) -> tuple[Any, Any, str]:
    """(optimizer, scheduler or None, "epoch" or "step") of any form of configure_optimizers.

    Raises:
        SettingError: it makes more than one, or asks for a Trainer.
    """
    optimizers, schedulers = _made(model)
    interval = "epoch"
    optimizer: Any = _single(optimizers)
    scheduler: Any = _single(schedulers)
    if isinstance(optimizer, Mapping):  # a list of one dictionary
        optimizer, scheduler = optimizer.get("optimizer"), optimizer.get("lr_scheduler")
    if isinstance(scheduler, Mapping):
        interval = scheduler.get("interval", "epoch")
        scheduler = scheduler["scheduler"]
    return optimizer, scheduler, interval


def every_configured(model: Any) -> tuple[list[Any], list[Any]]:
    """(optimizers, schedulers) of any form of configure_optimizers.

    Raises:
        SettingError: it asks for a Trainer.
    """
    optimizers, schedulers = map(_listed, _made(model))
    found = [o.get("optimizer") if isinstance(o, Mapping) else o for o in optimizers]
    schedulers += [o["lr_scheduler"] for o in optimizers if isinstance(o, Mapping) and len(o) > 1]
    return found, [s["scheduler"] if isinstance(s, Mapping) else s for s in schedulers]


def _listed(value: Any) -> list[Any]:
    if isinstance(value, (tuple, list)):
        return list(value)
    return [] if value is None else [value]


def _made(model: Any) -> tuple[Any, Any]:
    """(optimizers, schedulers), each as configure_optimizers has them."""
    try:
        made = model.configure_optimizers()
    except RuntimeError as error:
        if "Trainer" not in str(error):
            raise
        raise SettingError(
            "configure_optimizers() asks for a Trainer, and there is none here; pass optimizer= "
            "(and scheduler=) to Training instead"
        ) from None
    optimizers, schedulers = made, None
    if isinstance(made, Mapping):
        optimizers, schedulers = made.get("optimizer"), made.get("lr_scheduler")
    elif isinstance(made, (tuple, list)) and len(made) == 2 and isinstance(made[0], (tuple, list)):
        optimizers, schedulers = made
    return optimizers, schedulers


def _single(value: Iterable[Any] | Any) -> Any:
    if not isinstance(value, (tuple, list)):
        return value
    if len(value) > 1:
        raise SettingError(
            f"configure_optimizers returned {len(value)} optimizers or schedulers; only a training "
            "by hand (automatic_optimization = False) can have several; or pass training_step= and "
            "optimizer=, one that steps all"
        )
    return value[0] if value else None
