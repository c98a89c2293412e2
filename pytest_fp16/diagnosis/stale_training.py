"""Weights that a training step changes inside autocast's region, which goes on with old casts.

A reference swapped in for a moment, weights of an inner loop: steps are watched with every weight
cast anew. Whether that is what is wrong, the cure tells: the training with no cast kept.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from pytest_fp16.diagnosis.proposal import Proposal
from pytest_fp16.diagnosis.stale_weights import CastAnew
from pytest_fp16.engine.models import Location
from pytest_fp16.engine.training.modes import to_train
from pytest_fp16.engine.training.order import ordered
from pytest_fp16.engine.training.place import Amendment
from pytest_fp16.engine.training.train import with_last
from pytest_fp16.engine.training.trainee import Trainee
from pytest_fp16.precision import Precision
from pytest_fp16.report.model import Culprit

if TYPE_CHECKING:
    from pytest_fp16.engine.training.runs import Runs

#: Steps that are watched: in the first a copy of the weights is still like them.
_STEPS = 3


def stale_in_a_step(runs: Runs, precision: Precision, seed: int) -> Culprit | None:
    """The operation that takes an old cast in one of the first steps; None where there is none.

    Args:
        runs: the training.
        precision: of the run; a mixed one, as no other casts weights.
        seed: of the run.
    """
    if not precision.mixed:
        return None
    subject = runs.subject_for(precision)
    trainee = Trainee(subject, precision, seed, runs.state(seed), runs.place, Amendment(anew=True))
    named = trainee.model.named_parameters()
    names = {id(p): name for name, p in named if p.requires_grad}
    where = Location(trainee.model)
    try:
        batches = with_last(ordered(subject.train_data, seed, 0))
        with trainee.installed():
            to_train(trainee.model)
            for batch, last in islice(batches, _STEPS):
                seen = CastAnew(names, where)
                trainee.step(batch, last, seen)
                if seen.found is not None:
                    return seen.found
    except Exception:  # the runs have told of it
        return None
    return None


def fresh_casts(culprit: Culprit | None) -> list[Proposal]:
    """What mends it, to be tried."""
    if culprit is None:
        return []
    said = "enter autocast with cache_enabled=False, or leave it before a weight changes"
    return [
        Proposal(
            kind="fresh casts",
            description=f"{said} (torch.clear_autocast_cache() behind it does the same)",
            amendment=Amendment(anew=True),
            points_to=culprit.module,
            operation=culprit.operation,
        )
    ]
