"""Steps of a training made once more, watched by what names the operation that broke them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pytest_fp16.engine.gradients.origins.found import Found
from pytest_fp16.engine.gradients.origins.origin import CLIPPING, OriginWatch
from pytest_fp16.engine.gradients.probes.confidence import Changed, scaling
from pytest_fp16.engine.gradients.probes.memory import follow
from pytest_fp16.engine.randomness import seed_everything
from pytest_fp16.engine.training.modes import to_train
from pytest_fp16.engine.training.order import step_seed
from pytest_fp16.engine.training.place import Place
from pytest_fp16.engine.training.trainee import Trainee
from pytest_fp16.engine.untouched import attribute, formats_of
from pytest_fp16.precision import Precision


def watched(
    trainee: Trainee,
    batches: list[Any],
    seed: int | None,
    sure: Changed | None = None,
    drawn: int = 0,
    since: int = 0,
) -> OriginWatch:
    """What saw the steps of a trainee, up to what broke them. It has made them afterwards.

    Args:
        trainee: as it is before the first of them.
        batches: one per step, or per part of an accumulated one.
        seed: of the training, where these are its own steps; None at its points.
        sure: what is done to the outputs.
        drawn: the seed of what is drawn at a point: each batch of it has its own.
        since: the number of the first of the training's own steps.
    """
    origin = OriginWatch(trainee.model)
    nn.Module.register_forward_hook(trainee.model, scaling(sure))
    origin.watch(trainee)
    every = trainee.subject.accumulate
    if sure is not None:
        follow(trainee, batches[0], sure.passes)
    for number, batch in enumerate(batches):
        origin.begin()
        own = since + number // every, number % every
        seed_everything(drawn if seed is None else step_seed(seed, *own))
        to_train(trainee.model)
        try:
            trainee.step(batch, observer=origin)
        except Exception:
            break
        if origin.found is not None and origin.swallowed is origin.found:
            break  # what nothing reads breaks no step
    return origin


class Replays:
    """Steps of a candidate made once more, by a fresh one, and watched.

    What a program keeps in plain attributes has the formats that the program gives it, which one
    that follows the reference cannot tell: they are learned from steps of its own.

    Args:
        reference: the 32-bit training, as far as it has come.
        state: the weights that it started from.
        precision, place: of the candidate.
        seed: of the training.
    """

    def __init__(
        self,
        reference: Trainee,
        state: Mapping[str, Any],
        precision: Precision,
        place: Place,
        seed: int,
    ) -> None:
        self.reference, self.state = reference, state
        self.precision, self.place, self.seed = precision, place, seed
        self._formats: dict[str, torch.dtype] = {}
        self._learned: set[str] = set()

    def fresh(self) -> Trainee:
        """A candidate as it starts, which knows the formats that have been learned so far."""
        state, place = self.state, self.place
        made = Trainee(self.reference.subject, self.precision, self.seed, state, place)
        if not self._learned:
            self._formats.update(formats_of(made.model))
        made.formats = self._formats
        return made

    def learn_formats(self, batches: list[Any]) -> None:
        """Which formats the candidate's own first steps give to what the reference keeps by now.

        Args:
            batches: of the training's first steps: as many of them are made as it takes. Where one
                raises, no more is known.
        """
        if not self._unknown():
            return
        own, every = self.fresh(), self.reference.subject.accumulate
        for number, batch in enumerate(batches):
            seed_everything(step_seed(self.seed, number // every, number % every))
            to_train(own.model)
            try:
                own.step(batch)
            except torch.OutOfMemoryError:
                raise
            except Exception:
                return
            found = formats_of(own.model)
            self._formats.update(found)
            self._learned.update(found)
            if not self._unknown():
                return

    def _unknown(self) -> bool:
        """Whether the reference keeps what no step of the candidate's has been seen to keep.

        Of a list that grows, one format that all of it has is enough.
        """
        kept = formats_of(self.reference.model)
        return any(not {name, attribute(name)} & self._learned for name in kept)

    def here(self, batches: list[Any], sure: Changed | None = None, drawn: int = 0) -> OriginWatch:
        """Steps from where the reference is now."""
        fresh = self.fresh()
        fresh.follow(self.reference)
        return watched(fresh, batches, None, sure, drawn)

    def cause_in(self, batches: list[Any]) -> Found | None:
        """What breaks the first of the batches of a point that breaks, each with its own seed."""
        causes = (self.here([batch], drawn=seed).cause for seed, batch in enumerate(batches))
        return next((cause for cause in causes if cause is not None), None)

    def first(self, batches: list[Any]) -> OriginWatch:
        """The first steps of the training, from its first weights."""
        return watched(self.fresh(), batches, self.seed)

    def beyond_range(self, batches: list[Any], first: list[Any]) -> Found | None:
        """What leaves the range in a length over all weights: clipping, or a user's own optimizer.

        A sample of the weights does not show it, which torch's own, element by element, do with.

        Args:
            batches: steps from where the reference is now.
            first: those of the training's first steps, where a length is largest.
        """
        own = not type(self.reference.optimizer).__module__.startswith("torch.")
        clips = self.reference.subject.clip_grad_norm is not None
        if self.precision.mixed or not (own or clips):
            return None
        for look, held in ((self.here, batches), (self.first, first[: len(batches)])):
            found = look(held).found
            if found is not None and found.module == "<optimizer>":
                return found if own or found.operation == CLIPPING else None
        return None
