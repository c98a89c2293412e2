"""A training run made once more, to see where its first value that is not finite comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from pytest_fp16.engine.gradients.origins.found import Found
from pytest_fp16.engine.gradients.origins.origin import OriginWatch
from pytest_fp16.engine.training.modes import to_train
from pytest_fp16.engine.training.order import ordered
from pytest_fp16.engine.training.train import with_last
from pytest_fp16.engine.training.trainee import Trainee
from pytest_fp16.precision import Precision
from pytest_fp16.report.model import Culprit
from pytest_fp16.theory.rounding import FORMATS

if TYPE_CHECKING:
    from pytest_fp16.engine.training.runs import Runs

#: (epoch, step), from zero.
Step = tuple[int, int]


class Seen(NamedTuple):
    """Where a run was left: the step, what had been seen until then, and what it raised."""

    at: Step
    origin: OriginWatch
    error: Exception | None


def watched_run(
    runs: Runs, precision: Precision, seed: int, watch: Callable[[Step], bool], end: Step | None
) -> Seen | None:
    """The run of a seed up to where something is seen, an error, or `end`; None at its own end.

    Args:
        runs: the training.
        precision: of the run.
        seed: of the run.
        watch: which steps are watched, as that costs a multiple of a step.
        end: the last step that is made; None for all.
    """
    subject = runs.subject_for(precision)
    trainee = Trainee(subject, precision, seed, runs.state(seed), runs.place)
    origin = OriginWatch(trainee.model)
    origin.watch(trainee)
    with trainee.installed():
        for epoch in range(subject.epochs):
            to_train(trainee.model)
            losses = []
            batches = with_last(ordered(subject.train_data, seed, epoch))
            for step, (batch, last) in enumerate(batches):
                origin.begin()
                at = epoch, step
                try:
                    losses.append(trainee.step(batch, last, origin if watch(at) else None))
                except Exception as error:  # sooner, where something of the user's counts the steps
                    return Seen(at, origin, error)
                if at == end or origin.found is not None:
                    return Seen(at, origin, None)
            trainee.end_epoch(sum(losses) / len(losses))
    return None


def culprit_of(found: Found, precision: Precision, seed: int, at: Step | None) -> Culprit:
    """What was found, as a report says it."""
    return Culprit(
        module=found.module,
        operation=found.operation,
        mechanism=found.mechanism,
        evidence=found.detail(FORMATS[precision.dtype]) + when(seed, at),
        source=found.source,
    )


def when(seed: int, at: Step | None) -> str:
    """The step, in words to be added; empty where it is not known."""
    return "" if at is None else f"; first in epoch {at[0] + 1}, step {at[1] + 1} of seed {seed}"
