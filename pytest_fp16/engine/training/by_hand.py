"""A Lightning module that optimizes by hand: several optimizers, each stepped inside its own step.

Trained, its step runs as it is written: `manual_backward` and the optimizers' steps go through the
loss scale of the precision. Where a gradient alone is asked for, no optimizer steps: every
parameter has the gradient that its own optimizer would apply, all at the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from pytest_fp16.engine.training.lightning import own_loss
from pytest_fp16.engine.training.several import Several
from pytest_fp16.errors import SettingError

if TYPE_CHECKING:
    from pytest_fp16.engine.training.trainee import Trainee


class _Noted(NamedTuple):
    """A step that was not made: its losses, whose parameters, and how gradients are clipped."""

    losses: list[Tensor]
    parameters: list[nn.Parameter]
    clips: Callable[[list[nn.Parameter]], Any] | None = None


class Handle:
    """An optimizer as a module that optimizes by hand has it."""

    def __init__(self, owner: ByHand, optimizer: torch.optim.Optimizer) -> None:
        self._owner, self.optimizer = owner, optimizer
        self.pending: list[Tensor] = []
        self.clips: Callable[[list[nn.Parameter]], Any] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.optimizer, name)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those it steps."""
        return [p for g in self.optimizer.param_groups for p in g["params"]]

    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> None:
        """Step it, or note what it would step with."""
        self._owner.stepped(self, closure)
        self._owner.trainee.counted.steps += self._owner.noted is None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget its gradients."""
        self.pending.clear()
        if self._owner.noted is None or self._owner.reads:
            self.optimizer.zero_grad(set_to_none)

    @contextmanager
    def toggle_model(self, sync_grad: bool = True) -> Iterator[None]:
        """Let gradients flow to its own parameters only."""
        self._owner.toggle(self)
        yield
        self._owner.untoggle()


class ByHand:
    """Runs the step of such a module.

    Attributes:
        noted: steps of the optimizers, where none is made; None where all are.
        reads: the step looks at gradients between its backward pass and its optimizers' steps.
    """

    def __init__(self, trainee: Trainee, optimizer: Several) -> None:
        self.trainee, self.optimizer = trainee, optimizer
        self.handles = [Handle(self, part) for part in optimizer.parts]
        self.noted: list[_Noted] | None = None
        self.reads = False
        self.losses: list[Tensor] = []
        self._toggled: list[tuple[nn.Parameter, bool]] = []
        _attach(trainee.model, self, optimizer.schedulers)

    def _run(self, batch: Any) -> Tensor:
        """The module's own step; the sum of the losses it went backwards from."""
        self.losses.clear()
        for handle in self.handles:
            handle.pending, handle.clips = [], None
        # Gradients are compared of trainees that have come to different batches: it is the first.
        index = 0 if self.noted is not None else max(self.trainee.counted.index, 0)
        try:
            own_loss(self.trainee.model, batch, index)
        finally:
            self.untoggle()
        if not self.losses:
            raise SettingError(
                "the Lightning module optimizes by hand, and its training_step never called "
                "manual_backward(loss); a loss.backward() of its own cannot be followed"
            )
        return torch.stack([loss.detach().float() for loss in self.losses]).sum()

    def step(self, batch: Any) -> float:
        """Every optimizer's own steps, as the module makes them."""
        self.noted, trainee = None, self.trainee
        before = trainee.scale
        value = float(trainee.within(lambda: self._run(batch)))
        if trainee.scale < before:
            trainee.skipped += 1
            trainee.lost += trainee.applied > 0
        else:
            trainee.applied += 1
        return value

    def loss(self, batch: Any) -> Tensor:
        """The sum of its losses, with the gradients that its optimizers would apply."""
        state = torch.get_rng_state()
        try:
            return self._loss(batch)
        except SettingError:
            raise
        except Exception:
            if self.reads:
                raise
        self.reads = True  # it may be a gradient that is not there, as none is made
        torch.set_rng_state(state)
        return self._loss(batch)

    def _loss(self, batch: Any) -> Tensor:
        held = [(p, p.grad) for h in self.handles for p in h.parameters] if self.reads else []
        for p, _ in held:
            p.grad = None
        self.noted = []
        try:
            value = self._run(batch)
            steps = self.noted
            turned = {id(p) for step in steps for p in step.parameters}
            for handle in self.handles:  # one that adds up several batches first
                if handle.pending and not any(id(p) in turned for p in handle.parameters):
                    steps.append(_Noted(list(handle.pending), handle.parameters))
        finally:
            self.noted = None
            for p, grad in held:
                p.grad = grad
        own = {id(p): p for step in steps for p in step.parameters if p.requires_grad}
        result: Tensor = _Gradients.apply(steps, value, *own.values())  # type: ignore[no-untyped-call]
        return result

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """`manual_backward`: backwards, scaled where the precision does so."""
        self.losses.append(loss)
        if self.noted is not None:
            for handle in self.handles:
                handle.pending.append(loss)
            if self.reads:
                loss.backward(*args, **{**kwargs, "retain_graph": True})
        elif self.trainee.scaler is not None:
            self.trainee.scaler.scale(loss).backward(*args, **kwargs)
        else:
            (loss * (self.trainee.amendment.loss_scale or 1)).backward(*args, **kwargs)

    def stepped(self, handle: Handle, closure: Callable[[], Any] | None) -> None:
        """An optimizer's turn has come."""
        if closure is not None and self.noted is None and self.trainee.scaler is None:
            handle.optimizer.step(lambda: self._asked(handle, closure))
            return
        if closure is not None:
            with torch.enable_grad():
                closure()
        scaler = self.trainee.scaler
        torch.clear_autocast_cache()  # it holds the weights as they were; a Trainer keeps none
        if self.noted is not None:
            self.noted.append(_Noted(list(handle.pending), handle.parameters, handle.clips))
        elif scaler is not None:
            scaler.step(handle.optimizer)
            scaler.update()
        else:
            self._unscale(handle)
            handle.optimizer.step()

    def _asked(self, handle: Handle, closure: Callable[[], Any]) -> Any:
        """The loss an optimizer asks for as it moves the weights, its gradients to be applied."""
        torch.clear_autocast_cache()
        value = closure()
        self._unscale(handle)
        return value

    def _unscale(self, handle: Handle) -> None:
        factor = self.trainee.amendment.loss_scale
        for p in handle.parameters:
            if factor and p.grad is not None:
                p.grad.div_(factor)

    def clip(self, handle: Handle, value: float | None, algorithm: str | None) -> None:
        """`clip_gradients`, of gradients that are still scaled: so does a Trainer by hand."""
        if value is None:
            return
        if algorithm == "value":
            handle.clips = partial(nn.utils.clip_grad_value_, clip_value=value)
        else:
            handle.clips = partial(nn.utils.clip_grad_norm_, max_norm=value)
        if self.noted is None:
            handle.clips(handle.parameters)

    def toggle(self, handle: Handle) -> None:
        """`toggle_optimizer`: gradients flow to its own parameters only."""
        own = {id(p) for p in handle.parameters}
        self.untoggle()
        others = {id(p): p for h in self.handles for p in h.parameters if id(p) not in own}
        self._toggled = [(p, p.requires_grad) for p in others.values()]
        for p in others.values():
            p.requires_grad_(False)

    def untoggle(self) -> None:
        """`untoggle_optimizer`."""
        for p, required in self._toggled:
            p.requires_grad_(required)
        self._toggled = []


def _attach(model: nn.Module, owner: ByHand, schedulers: list[Any]) -> None:
    """Give a module what it asks of its Trainer. Functions: a copy of the module shares them."""

    def one_or_all(found: list[Any]) -> Any:
        return found[0] if len(found) == 1 else found

    def clip_gradients(
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        owner.clip(optimizer, gradient_clip_val, gradient_clip_algorithm)

    vars(model).update(
        optimizers=lambda use_pl_optimizer=True: one_or_all(owner.handles),
        lr_schedulers=lambda: one_or_all(schedulers) if schedulers else None,
        manual_backward=lambda loss, *args, **kwargs: owner.backward(loss, *args, **kwargs),
        toggle_optimizer=lambda optimizer: owner.toggle(optimizer),
        untoggle_optimizer=lambda optimizer: owner.untoggle(),
        clip_gradients=clip_gradients,
    )


class _Gradients(torch.autograd.Function):
    """A loss whose slope, for each parameter, is what its own optimizer's losses give."""

    @staticmethod
    def forward(ctx: Any, steps: list[Any], value: Tensor, *parameters: nn.Parameter) -> Tensor:
        ctx.steps, ctx.own = steps, parameters
        return value.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        found: dict[int, Tensor] = {}
        for step in ctx.steps:
            for key, grad in _of(step, slope).items():
                found[key] = found[key] + grad if key in found else grad
        return None, None, *(found.get(id(p)) for p in ctx.own)


def _of(step: _Noted, slope: Tensor) -> dict[int, Tensor]:
    """The gradients of one step, times a slope, clipped as the step would clip them."""
    known, found = [p for p in step.parameters if p.requires_grad], dict[int, Tensor]()
    for loss in step.losses:
        out = slope.to(loss.dtype).reshape(loss.shape)
        grads = torch.autograd.grad(loss, known, out, retain_graph=True, allow_unused=True)
        for p, grad in zip(known, grads, strict=True):
            if grad is not None:
                found[id(p)] = found[id(p)] + grad if id(p) in found else grad
    if step.clips is not None:
        stand_ins = {key: nn.Parameter(grad.detach().clone()) for key, grad in found.items()}
        for key, one in stand_ins.items():
            one.grad = found[key].clone()
        step.clips(list(stand_ins.values()))
        found = {key: one.grad for key, one in stand_ins.items() if one.grad is not None}
    return found
