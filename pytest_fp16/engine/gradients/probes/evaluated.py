"""The weights of a 32-bit training, evaluated in both precisions: what no gradient shows.

A model may compute what it returns in another way once it is trained (an expected value, an
inverse), and a metric is taken in 16 bits too.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import torch

from pytest_fp16.engine.gradients.finding import Finding
from pytest_fp16.engine.gradients.origins.lost_digits import LostDigits
from pytest_fp16.engine.training.order import preserved_generators
from pytest_fp16.engine.training.score import Score, score
from pytest_fp16.engine.training.trainee import Trainee
from pytest_fp16.engine.untouched import untouched
from pytest_fp16.subject import Training

#: Batches of the evaluation data that are looked at.
FEW = 4
#: A loss counts beyond so many resolutions of the metric, and so many standard errors of its flips.
RESOLUTIONS, ERRORS = 4.0, 4.0


@dataclass(frozen=True)
class Evaluated:
    """Both scores of the same weights.

    Attributes:
        steps: of 32-bit training that the weights have seen.
    """

    reference: Score
    candidate: Score
    steps: int

    @property
    def loss(self) -> float:
        """What the metric loses; NaN where an output is not finite."""
        return self.reference.value - self.candidate.value

    @property
    def error(self) -> float:
        """The standard error of that loss, were flips to go either way; 0 for no classes."""
        one, two = self.reference.predictions, self.candidate.predictions
        if self.reference.majority is None or one.shape != two.shape or not one.numel():
            return 0.0
        flips = (one.argmax(-1) != two.argmax(-1)).sum()
        return math.sqrt(float(flips)) / one[..., 0].numel()


def evaluated(reference: Trainee, candidate: Trainee, steps: int) -> Evaluated | None:
    """The reference's weights in both precisions; None where they cannot be evaluated."""
    candidate.follow(reference)
    found = scores(reference, candidate, FEW)
    return None if found is None else Evaluated(*found, steps)


def scores(
    reference: Trainee, candidate: Trainee, most: int | None = None
) -> tuple[Score, Score] | None:
    """The scores of two trainees on at most so many batches; None where they cannot be taken.

    What is wrong with the evaluation itself is said where it is made, after the training.
    """
    subject = reference.subject
    try:
        with preserved_generators(subject.eval_data):
            if most is not None:
                few = list(itertools.islice(subject.eval_data, most))
                subject = replace(subject, eval_data=few)
            return _score(reference, subject), _score(candidate, subject)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return None


def _score(trainee: Trainee, subject: Training) -> Score:
    with untouched(trainee.model):
        return score(subject, trainee.model, trainee.precision, trainee.place, None)[0]


def metric_lost(seen: Evaluated | None, digits: LostDigits | None = None) -> Finding | None:
    """Trained weights whose metric is lost by evaluating them in 16 bits.

    Args:
        digits: what loses the digits of a loss, where that is known.
    """
    if seen is None or not seen.reference.finite:
        return None
    name, high, low = seen.reference.name, seen.reference.value, seen.candidate.value
    if not seen.candidate.finite:
        what = f"after {seen.steps} steps in 32 bits, outputs are not finite in 16 bits"
        return Finding(f"the evaluation is lost: {what}", "", "", "overflow", what)
    beyond = max(RESOLUTIONS * seen.reference.resolution, ERRORS * seen.error)
    # What a rounding adds to R² grows with the errors it meets, which a training has yet to remove.
    against = max(1.0, 1 - high) if name == "R²" else 1.0
    if not seen.loss > beyond * against:
        return None
    what = (
        f"weights of {seen.steps} steps in 32 bits have {name} {low:.3g} evaluated in 16 bits, "
        f"{high:.3g} in 32"
    )
    reason = f"the evaluation loses it: {what}"
    if digits is not None:
        return digits.finding(reason, what)
    return Finding(reason, "", "", "precision-loss", what)
