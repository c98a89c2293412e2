"""Is this a training at all? Everything a user can get wrong, found before long work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, zip_longest
from operator import length_hint
from typing import Any

import torch

from pytest_fp16.engine.advice import guarded, of_labels, on_data
from pytest_fp16.engine.batching import first_batch, require_kept, split_batch
from pytest_fp16.engine.belonging import Reads, belongs
from pytest_fp16.engine.copies import make_model, own_model, shares_tensors
from pytest_fp16.engine.hard_coded import HardCoded
from pytest_fp16.engine.models import Location, require_float32
from pytest_fp16.engine.training.lightning import is_lightning, unheard
from pytest_fp16.engine.training.modes import to_train
from pytest_fp16.engine.training.order import is_part_of, ordered, same_batch
from pytest_fp16.engine.training.place import Place
from pytest_fp16.engine.training.repeats import FirstStep, foreign, require_own_parameters
from pytest_fp16.engine.training.score import score
from pytest_fp16.engine.training.trainee import Trainee, initial_state
from pytest_fp16.engine.use import IGNORED, called, ignores, reaches
from pytest_fp16.errors import DataError, ModelError, SettingError
from pytest_fp16.precision import REFERENCE
from pytest_fp16.subject import Training
from pytest_fp16.task import Task

#: Of a first step that does not repeat itself.
_DRAWS = (
    "the first step is another one each time, from the same weights on the same batch: it "
    "draws from a generator of its own, so that both precisions of a pair drew different "
    "numbers, or it counts outside the model; draw from torch's, and count in the model"
)
#: Batches that are compared: an order drawn anew may begin with the same one by chance.
_COMPARED = 4


@dataclass(frozen=True)
class ValidTraining:
    """A training that was tried: the subject, how to read its outputs, and what to warn of."""

    subject: Training
    task: Task
    steps: int | None
    notes: list[str]
    opening: FirstStep


def validated(subject: Training, device: torch.device) -> ValidTraining:
    """Try one float32 step and the evaluation of one batch.

    Raises:
        DataError: data that yields once only, nothing, or labels that do not fit.
        ModelError: no model, one in 16 bits already, one that cannot be copied or trained, a loss
            that is no scalar or not finite.
        SettingError: an optimizer or scheduler that is none.
    """
    notes: list[str] = []
    for name in ("train_data", "eval_data"):
        with on_data(data := getattr(subject, name)):
            _require_repeatable(data, name)
    subject = _own_models(subject, notes)
    place = Place(device)
    state = initial_state(subject, 0)
    trainee = guarded(
        lambda: Trainee(subject, REFERENCE, 0, state, place),
        "making optimizer and scheduler in float32",
    )
    require_float32(trainee.model)
    if not trainee.parameters():
        raise ModelError("the model has no parameter that requires a gradient; nothing to train")
    _require_loss(subject, trainee)
    if foreign(trainee):
        require_own_parameters(trainee, Trainee(subject, REFERENCE, 0, state, place))
    first = first_batch(ordered(subject.train_data, 0, 0), "train_data")
    if subject.keep_inputs:
        whole = trainee.own_step or subject.training_step is not None
        require_kept(first if whole else split_batch(first, labelled=True)[0], subject.keep_inputs)
    steps = length_hint(subject.train_data) or None
    notes += _of_training(subject, trainee, steps)
    with on_data(subject.train_data):
        notes += _try_step(trainee, first)
    opening = FirstStep(subject, first, place)
    notes += [_DRAWS] if opening.draws else []
    batch = first_batch(subject.eval_data, "eval_data")
    part = replace(subject, eval_data=[batch])
    with on_data(subject.eval_data), called(trainee.model) as calls:
        scored, task = guarded(
            lambda: score(part, trainee.model, REFERENCE, place, None),
            "evaluating a batch of eval_data in float32",
        )
    if subject.forward is not None and not calls:
        _require_use(part, trainee.model, place)
    notes += scored.remarks
    if subject.metric is None and subject.task == "auto":
        notes += of_labels(task, split_batch(batch, labelled=True)[1])
    return ValidTraining(subject, task, steps, notes, opening)


def _require_use(subject: Training, model: torch.nn.Module, place: Place) -> None:
    if ignores(model, lambda given: score(subject, given, REFERENCE, place, None)):
        raise SettingError(IGNORED)


def _of_training(subject: Training, trainee: Trainee, steps: int | None) -> list[str]:
    """What to say of data, model and arguments that can be used, before the first step."""
    notes = _of_base(trainee.base)
    if is_part_of(subject.eval_data, subject.train_data):
        notes.append(
            "eval_data is train_data, or a part of it: what is learned by heart counts as learned, "
            "so a loss on new data may not show; evaluate on data that is not trained on"
        )
    if subject.loss is not None and (subject.training_step is not None or trainee.own_step):
        notes.append("loss= is not used: the training step returns the loss; leave it None")
    own = subject.loss if isinstance(subject.loss, torch.nn.Module) else None
    if own is not None and (learns := [n for n, p in own.named_parameters() if p.requires_grad]):
        notes.append(
            f"loss= has parameters of its own ({', '.join(learns[:3])}), which no optimizer "
            "trains: what a loss learns belongs into the model, and is read in training_step="
        )
    if trainee.own_step:
        notes += unheard(trainee.model)
    if not _repeats(subject.train_data):
        notes.append(
            "train_data does not repeat under the same seed, so both precisions of a pair saw "
            "different data; give the loader a torch.Generator, or draw from torch's own"
        )
    if steps is not None and subject.accumulate > steps:
        notes.append(
            f"accumulate={subject.accumulate}, and an epoch of train_data has {steps} batch(es): "
            "each epoch is one step of the optimizer, of the gradients' sum divided by "
            f"{subject.accumulate}"
        )
    return notes


def _require_repeatable(data: Any, name: str) -> None:
    if isinstance(data, Iterator):
        raise DataError(
            f"{name} yields once only (a {type(data).__name__}); pass a list, a DataLoader or "
            "another object that starts anew each time"
        )
    if not isinstance(data, Iterable):
        raise DataError(f"{name} must yield batches (got {type(data).__name__})")


def _repeats(data: Any) -> bool:
    """Whether the first batches, in their order, are the same under the same seed."""
    passes = (islice(ordered(data, 0, 0), _COMPARED) for _ in range(2))
    pairs = list(zip_longest(*map(list, passes), fillvalue=()))
    return all(same_batch(one, two) for one, two in pairs)


def _own_models(subject: Training, notes: list[str]) -> Training:
    """A function that returns one and the same module means that module: it is copied.

    One that puts the same parts into each, a pretrained embedding, would have all runs train them.
    """
    if isinstance(subject.model, torch.nn.Module) or not callable(subject.model):
        return subject
    first, second = (
        guarded(lambda: make_model(subject.model), "making the model") for _ in range(2)
    )
    if not shares_tensors(first, second):
        return subject
    if first is not second:
        return replace(subject, model=partial(own_model, subject.model))
    notes.append(
        "the model function returns the same module each time, so every seed starts from its "
        "weights; make a new one in it, and seeds will vary the initial weights too"
    )
    return replace(subject, model=first)


def _of_base(base: Mapping[str, torch.dtype]) -> list[str]:
    """What became of a frozen base that was in 16 bits before."""
    if not base:
        return []
    dtype = str(next(iter(base.values()))).removeprefix("torch.")
    return [
        f"{len(base)} frozen tensor(s) of the model are {dtype} already: the mixed precisions have "
        "them so, 32-true has them in float32, where they lose nothing"
    ]


def _require_loss(subject: Training, trainee: Trainee) -> None:
    if subject.training_step is not None or callable(subject.loss):
        return
    if not is_lightning(trainee.model):
        raise SettingError(
            f"loss must be a function of (outputs, targets) (got {type(subject.loss).__name__}); "
            "for a model that has its own: training_step=lambda model, batch: model(**batch).loss"
        )


def _require_graph(loss: torch.Tensor, parameters: list[torch.nn.Parameter]) -> None:
    """Refuse a step that has gone backward itself, and left nothing of its graph."""
    if all(p.grad is None for p in parameters):
        return
    try:
        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        raise ModelError(
            "the training step calls backward() itself; return the loss, and leave backward(), the "
            "optimizer's step and zero_grad() to the check"
        ) from error


def _try_step(trainee: Trainee, batch: Any) -> list[str]:
    """What to say of a first step that can be made."""
    to_train(trainee.model)
    where = Location(trainee.model)
    seen, reads = HardCoded(where), Reads(trainee.model, where, inside=True)

    def attempt() -> torch.Tensor:
        with torch.enable_grad(), trainee.installed(), seen, reads:
            return trainee.loss(trainee.placed(batch))

    loss = guarded(attempt, "the first training step in float32")
    if reads.found is not None:
        raise ModelError(belongs(reads.found))
    if trainee.left_out:
        raise ModelError(
            "the training step must return the loss (got None for the first batch); None leaves a "
            "batch out"
        )
    if trainee.by_hand is None:
        _require_graph(loss, trainee.parameters())
    if not loss.requires_grad:
        raise ModelError(
            "the loss does not depend on the model's parameters: it requires no gradient; check "
            "for .detach(), .item() or torch.no_grad() in the model or the loss"
        )
    if not reaches(loss, trainee.parameters()):
        given = [n for n in ("training_step", "forward") if getattr(trainee.subject, n)]
        raise ModelError(
            "the loss does not depend on the model's parameters: no gradient reaches one; does "
            f"{(*given, 'loss')[0]}= use what it is given? A model from outside is not trained"
        )
    trainee.optimizer.zero_grad()
    if not bool(loss.detach().isfinite()):
        raise ModelError(
            f"the reference is no reference: the loss of the untrained float32 model is "
            f"{float(loss.detach())}; repair the float32 training first"
        )
    return seen.remarks
