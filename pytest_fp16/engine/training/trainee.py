"""A fresh model with its optimizer at one precision, and one training step of it.

True 16-bit precisions keep parameters, gradients and optimizer state so, without master weights,
and cast the batch, floating targets too. Mixed ones are autocast, float16's with a gradient scaler.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pytest_fp16.engine.batching import cast_batch, cast_module, copied, split_batch, to_device
from pytest_fp16.engine.carried import carry_over
from pytest_fp16.engine.copies import make_model
from pytest_fp16.engine.emulation.autocast import held_policy
from pytest_fp16.engine.emulation.cast_cache import nothing_kept
from pytest_fp16.engine.models import applied_loss, call_as_is, require_float32
from pytest_fp16.engine.own_caches import OwnTables
from pytest_fp16.engine.randomness import seed_everything
from pytest_fp16.engine.source import entrance
from pytest_fp16.engine.stored import emptied
from pytest_fp16.engine.training.by_hand import ByHand
from pytest_fp16.engine.training.frozen_base import narrowed, widened
from pytest_fp16.engine.training.lightning import is_lightning, own_loss
from pytest_fp16.engine.training.optimization import (
    needs_closure,
    needs_gradients_too,
    optimization,
    step_after_epoch,
)
from pytest_fp16.engine.training.place import Amendment, Place
from pytest_fp16.engine.training.returned import scalar_of
from pytest_fp16.engine.training.several import Several
from pytest_fp16.engine.training.stand_in import counted
from pytest_fp16.precision import Precision
from pytest_fp16.subject import Training


def initial_state(subject: Training, seed: int) -> dict[str, Any]:
    """The float32 weights and buffers every precision of a seed starts from.

    Raises:
        ModelError: a model that cannot be trained in both.
    """
    seed_everything(seed)
    model = make_model(subject.model)
    widened(model)
    require_float32(model)
    return {k: copied(v) for k, v in model.state_dict().items()}


def as_real(tensor: Tensor) -> Tensor:
    """Complex numbers as pairs of real ones, which a cast would halve."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def gradient_of(parameter: Tensor) -> Tensor:
    """The gradient of a parameter that has one: dense (an embedding's may be sparse), float32."""
    assert parameter.grad is not None, "asked of parameters with a gradient only"
    gradient = as_real(parameter.grad.detach()).float()
    return gradient if gradient.layout is torch.strided else gradient.to_dense()


class Trainee:
    """A model in training at one precision.

    Args:
        subject: the training.
        precision: how the model runs.
        seed: the seed the model is made with.
        state: the weights to start from, as `initial_state` gives them.
        place: device, target and emulation.
        amendment: what a cure changes.
    """

    def __init__(
        self,
        subject: Training,
        precision: Precision,
        seed: int,
        state: Mapping[str, Any],
        place: Place,
        amendment: Amendment | None = None,
    ) -> None:
        self.subject, self.precision, self.place = subject, precision, place
        self.amendment = amendment or Amendment()
        self.cast = precision.dtype if precision.casts else None
        seed_everything(seed)
        model = make_model(subject.model)
        self.base = widened(model)
        model.load_state_dict(state)
        model = model.to(place.device)
        if self.amendment.model is not None:
            self.amendment.model(model)
        if precision.mixed:
            narrowed(model, self.base)
        held = dict(model.named_buffers())
        self.model = model if self.cast is None else cast_module(model, self.cast)
        self.emptied = emptied(held, self.model)  # what is zero of buffers since the cast
        self.own_step = subject.training_step is None and is_lightning(self.model)
        self.optimizer, self.scheduler, self.interval = optimization(subject, self.model)
        if self.amendment.optimizer is not None:
            self.amendment.optimizer(self.optimizer)
        scaled = precision.mixed and precision.dtype_name == "float16"
        self.scaler = torch.amp.GradScaler(place.device.type) if scaled else None
        self.by_hand = ByHand(self, own) if isinstance(own := self.optimizer, Several) else None
        self.closure = self.by_hand is None and needs_closure(self.optimizer)
        self.primed = self.closure and needs_gradients_too(self.optimizer)
        self.pending: list[Any] = []
        self.clipping: Callable[[], None] = lambda: None  # told before gradients are clipped
        self.applied = self.skipped = self.lost = 0
        self.counted = counted(self.model, subject)
        self.left_out, self.last_loss, self.tables = False, 0.0, OwnTables()
        self.formats: Mapping[str, torch.dtype] = {}  # of what its own steps keep, where known

    @contextmanager
    def installed(self) -> Iterator[None]:
        """What stays in force for the length of a run."""
        with ExitStack() as stack, warnings.catch_warnings():
            for said in ("lr_scheduler.step.*before", "self.log.*trainer", "CUDA is not available"):
                warnings.filterwarnings("ignore", message=f".*{said}.*")
            if any(isinstance(m, torch.jit.ScriptModule) for m in self.model.modules()):
                # Optimized, a script's backward pass casts to the format that it first ran in.
                stack.enter_context(torch.jit.optimized_execution(False))  # type: ignore[attr-defined]
            if self.precision.mixed:
                stack.enter_context(held_policy(self.place.device.type, self.place.target))
            yield

    def follow(self, leader: Trainee) -> None:
        """Go on from where another trainee is now, in this precision's own formats."""
        carry_over(leader.model, self.model, self.cast, weights=True, formats=self.formats)
        self.emptied = emptied(dict(leader.model.named_buffers()), self.model)
        self.counted.follow(leader.counted)

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def scale(self) -> float:
        """The factor the loss is multiplied by before the backward pass."""
        if self.scaler is not None:
            return float(self.scaler.get_scale())  # zero in the end, where every step is skipped
        return self.amendment.loss_scale or 1.0

    def placed(self, batch: Any) -> Any:
        """A copy of a batch on the device, floating tensors cast where the whole model is."""
        batch, keep = to_device(batch, self.place.device), self.subject.keep_inputs
        whole = self.own_step or self.subject.training_step is not None
        return copied(batch if self.cast is None else cast_batch(batch, self.cast, keep, whole))

    @entrance
    def loss(self, batch: Any) -> Tensor:
        """The loss of a placed batch; zero, and `left_out` set, where the user's step gave None.

        Raises:
            ModelError: the user's function returned no scalar tensor.
        """
        may_leave_out = self.own_step or self.subject.training_step is not None
        found = scalar_of(self.within(lambda: self._user_loss(batch)), may_leave_out)
        self.left_out = found is None
        if found is None:
            return torch.zeros((), device=self.place.device, requires_grad=True)
        return found

    def within(self, run: Callable[[], Any]) -> Any:
        """Something of the user's, in this precision; a Trainer lets autocast keep no casts."""
        anew = nothing_kept() if self.own_step or self.amendment.anew else nullcontext()
        with self.tables.lent(), anew, self.place.region(self.precision):
            return run()

    def _user_loss(self, batch: Any) -> Any:
        if self.subject.training_step is not None:
            return self.subject.training_step(self.model, batch)
        if self.by_hand is not None:
            return self.by_hand.loss(batch)
        if self.own_step:
            return own_loss(self.model, batch, max(self.counted.index, 0))
        inputs, targets = split_batch(batch, labelled=True)
        outputs = call_as_is(self.model, inputs, self.subject.forward)
        return applied_loss(self.subject.loss, outputs, targets)

    @entrance
    def step(self, batch: Any, last: bool = False, observer: Any = None) -> float:
        """Forward and backward of one batch, and the optimizer's step when it is due.

        Args:
            batch: as the data yields it.
            last: no batch follows in this epoch, so what has been accumulated is applied.
            observer: a dispatch mode that sees the operations as the 16-bit program has them.

        Returns:
            The loss of the batch, or of the last before it that was not left out.
        """
        self.counted.begin(last)
        with self.place.arithmetic(self.precision), observer or nullcontext():
            batch = self.placed(batch)
            if self.by_hand is not None:
                return self.by_hand.step(batch)
            if self.closure:
                return self._closed_step(batch, last)
            loss = self.loss(batch)
            if not self.left_out:
                self._backward(loss)
                self.last_loss = float(loss.detach())
            self.pending.append(not self.left_out)
            if len(self.pending) >= self.subject.accumulate or last:
                self._apply()
            return self.last_loss

    def _backward(self, loss: Tensor) -> None:
        if self.subject.accumulate > 1:
            loss = loss / self.subject.accumulate
        if self.scaler is not None:
            self.scaler.scale(loss).backward()
        elif self.amendment.loss_scale:
            (loss * self.amendment.loss_scale).backward()
        else:
            loss.backward()

    def _unscale(self) -> None:
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        elif self.amendment.loss_scale:
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(self.amendment.loss_scale)

    def _clip(self) -> None:
        if self.subject.clip_grad_norm is not None:
            self.clipping()
            nn.utils.clip_grad_norm_(self.parameters(), self.subject.clip_grad_norm)

    def _apply(self) -> None:
        """Unscale, clip, step, and forget the gradients that were applied."""
        if any(self.pending):  # all left out is no step
            self._unscale()
            self._clip()
            before = self.scale
            if self.scaler is not None:
                self.scaler.step(self.optimizer)
                self.scaler.update()
            else:
                self.optimizer.step()
            if self.scale < before:
                self.skipped += 1
                self.lost += self.applied > 0  # the scale was found: it is the batch
            else:
                self.applied += 1
        self.pending.clear()
        self.optimizer.zero_grad()
        self._stepped()

    def _stepped(self) -> None:
        self.counted.steps += 1
        if self.scheduler is not None and self.interval == "step":
            self.scheduler.step()

    def _closed_step(self, batch: Any, last: bool) -> float:
        """A step of an optimizer that evaluates the loss itself (LBFGS)."""
        if self.scaler is not None:  # torch's own refusal
            raise RuntimeError("Closure use is not currently supported if GradScaler is enabled.")
        self.pending.append(batch)
        if len(self.pending) < self.subject.accumulate and not last:
            return float(self.loss(batch).detach())
        batches, self.pending = self.pending, []
        losses: list[float] = []

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            total = torch.zeros((), device=self.place.device)
            for part in batches:
                loss = self.loss(part)
                if not self.left_out:
                    self._backward(loss)
                total += loss.detach() / len(batches)
            self._unscale()
            self._clip()
            losses.append(float(total))
            return total

        if self.primed:
            closure()
        self.optimizer.step(closure)
        if not losses:  # one that had no use for it
            closure()
        self.applied += 1
        self._stepped()
        return losses[0]

    def end_epoch(self, mean_loss: float) -> None:
        """Step a scheduler that goes by epochs."""
        self.counted.end_epoch()
        if self.scheduler is not None and self.interval == "epoch":
            step_after_epoch(self.scheduler, mean_loss)
