"""What left the range in a training whose loss and weights stayed finite all the same.

An infinite norm makes a factor of zero, and a step that is none; nothing of the run shows it but
what it has learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_fp16.engine.gradients.origins.found import Found
from pytest_fp16.engine.gradients.origins.origin import Origin
from pytest_fp16.engine.training.order import ordered
from pytest_fp16.engine.training.train import with_last
from pytest_fp16.engine.training.trainee import Trainee
from pytest_fp16.precision import REFERENCE, Precision
from pytest_fp16.report.model import Culprit
from pytest_fp16.theory.rounding import FORMATS

if TYPE_CHECKING:
    from pytest_fp16.engine.training.runs import Runs


def silently_lost(runs: Runs, precision: Precision, seed: int) -> Culprit | None:
    """The first operation of a run that made an infinity or NaN, where its 32-bit twin made none.

    The run is made again, each of its steps watched. A gradient scaler looks for its scale by such
    infinities: of a run with one nothing is said.
    """
    for epoch, step, found in _watched(runs, precision, seed):
        twin = (f for e, s, f in _watched(runs, REFERENCE, seed, (epoch, step)))
        if any((f.module, f.operation) == (found.module, found.operation) for f in twin):
            return None
        return Culprit(
            module=found.module,
            operation=found.operation,
            mechanism=found.mechanism,
            evidence=f"{found.detail(FORMATS[precision.dtype])}; first in epoch {epoch + 1}, step "
            f"{step + 1} of seed {seed}",
            source=found.source,
        )
    return None


def _watched(
    runs: Runs, precision: Precision, seed: int, at: tuple[int, int] | None = None
) -> Iterator[tuple[int, int, Found]]:
    """(epoch, step, what was seen) of the first step that shows something, or of the one asked."""
    subject = runs.subject_for(precision)
    trainee = Trainee(subject, precision, seed, runs.state(seed), runs.place)
    if trainee.scaler is not None:
        return
    origin = Origin(trainee.model)
    origin.watch(trainee)
    with trainee.installed():
        for epoch in range(subject.epochs):
            trainee.model.train()
            losses = []
            batches = with_last(ordered(subject.train_data, seed, epoch))
            for step, (batch, last) in enumerate(batches):
                origin.begin()
                watch = at is None or (epoch, step) == at
                losses.append(trainee.step(batch, last, origin if watch else None))
                if origin.found is not None:
                    yield epoch, step, origin.found
                if origin.found is not None or (epoch, step) == at:
                    return
            trainee.end_epoch(sum(losses) / len(losses))
