"""What a gradient does once a model has learned: sure of what is right, and nothing wrong left.

Losses that fail late are found early so: a logarithm of 1 - p by hand where p becomes one, a
reward that becomes the same for a whole batch, a mean over hard examples of which there are none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from pytest_fp16.engine.batching import split_batch
from pytest_fp16.engine.gradients.points import Gradients, scaled_gradients
from pytest_fp16.engine.gradients.probes.confidence import (
    MARGINS,
    Changed,
    Confidence,
    confidence_of,
    decisions,
    scaled_outputs,
)
from pytest_fp16.engine.gradients.probes.memory import follow, passes_of
from pytest_fp16.engine.models import call_as_is
from pytest_fp16.engine.outputs import main_output
from pytest_fp16.engine.training.modes import modes_kept
from pytest_fp16.engine.training.trainee import Trainee
from pytest_fp16.engine.untouched import untouched
from pytest_fp16.theory.expected_steps import expected_solved, share

#: So many steps are expected where one is more likely than none.
LIKELY = math.log(2)


@dataclass(frozen=True)
class Solved:
    """A gradient that is lost once a batch has nothing wrong left.

    Attributes:
        expected: how many steps of the training will see such a batch.
        skipped: a gradient scaler skips them, so that they do no harm.
        least: how many must be expected for it to count.
    """

    expected: float
    skipped: bool
    least: float = 1.0

    @property
    def harmless(self) -> bool:
        """Whether the training will see none, or live with it."""
        return self.skipped or self.expected < self.least


def breaking(
    reference: Trainee, candidate: Trainee, batch: Any, solved: bool = False
) -> Confidence | None:
    """The sure outputs that cost the candidate its gradient and not the reference; None if none do.

    Args:
        reference: the 32-bit training, as far as it has come.
        candidate: takes its weights.
        batch: one that is not trained on.
        solved: whether what is wrong becomes right.
    """
    for passes in _passes(reference, batch, solved):
        sure = _survived(reference, batch, solved, passes)
        if sure is None:
            return None
        candidate.follow(reference)
        if is_lost(candidate, batch, sure):
            return sure
    return None


def _passes(reference: Trainee, batch: Any, solved: bool) -> Iterator[int]:
    """How often the outputs have been so before: never, and until what is kept of them follows."""
    yield 0
    if not solved:  # a batch without mistakes is a single one
        passes = passes_of(reference, batch)
        if passes:
            yield passes


def _survived(reference: Trainee, batch: Any, solved: bool, passes: int) -> Confidence | None:
    """The surest outputs that leave 32 bits a gradient; None where there are none."""
    for margin in MARGINS:
        sure = confidence_of(reference, batch, margin, solved)
        if sure is None:
            return None
        sure = replace(sure, passes=passes)
        try:
            if _finite(gradients_of(reference, batch, sure)):
                return sure
        except torch.OutOfMemoryError:
            raise
        except Exception:
            return None  # a loss that does not take outputs which have been changed
    return None


def is_lost(candidate: Trainee, batch: Any, sure: Changed) -> bool:
    """Whether a candidate has no gradient of outputs that were changed.

    Its loss alone may be infinite: nothing is learned from that, and outputs that are so sure need
    not come.
    """
    try:
        found = gradients_of(candidate, batch, sure)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return False  # outputs of no real run: an error they cause says nothing
    return not found.finite


def gradients_of(trainee: Trainee, batch: Any, sure: Changed) -> Gradients:
    """Loss and gradients of a batch whose outputs are changed."""
    with scaled_outputs(trainee.model, sure), untouched(trainee.model):
        follow(trainee, batch, sure.passes)
        return scaled_gradients(trainee, batch, 0)


def _finite(found: Gradients) -> bool:
    return found.finite and math.isfinite(found.loss)


def wrong_share(trainee: Trainee, batches: Sequence[Any]) -> tuple[float, int] | None:
    """(share of wrong decisions, decisions per batch); None where outputs are no decisions."""
    model = trainee.model
    wrong = count = 0
    try:
        with torch.no_grad(), untouched(model), modes_kept(model):
            model.eval()
            for batch in batches:
                inputs, targets = split_batch(trainee.placed(batch), labelled=True)
                outputs = main_output(call_as_is(model, inputs, trainee.subject.forward))
                _, right = decisions(outputs.float(), targets)
                if right is None:
                    return None
                wrong, count = wrong + int((~right).sum()), count + right.numel()
    except Exception:
        return None  # the user's own step calls the model, or reads the batch, in its own way
    return share(wrong, count), max(count // len(batches), 1)


def solved(
    candidate: Trainee, shares: Sequence[tuple[int, tuple[float, int] | None]], total: int
) -> Solved:
    """How many steps will see a batch without mistakes.

    Args:
        candidate: in its precision.
        shares: per point, the step and what `wrong_share` found.
        total: steps of the whole training.
    """
    known = [(step, found) for step, found in shares if found is not None]
    if not known:
        return Solved(0.0, candidate.scaler is not None)
    expected = expected_solved([(s, f[0]) for s, f in known], total, known[-1][1][1])
    return Solved(expected, candidate.scaler is not None)
