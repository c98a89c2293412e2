"""What stands behind a gradient that is finite and lost."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16 import Training
from pytest_fp16.engine.gradients.evidence import Evidence
from pytest_fp16.engine.gradients.origins.found import Found
from pytest_fp16.engine.gradients.origins.lost_gradients import (
    changed_by_scale,
    look_behind,
    not_skipped,
    skipped_share,
)
from pytest_fp16.engine.training.place import Place
from pytest_fp16.engine.training.trainee import Trainee, initial_state
from pytest_fp16.precision import REFERENCE, precision
from pytest_fp16.theory.rounding import FLOAT16

BATCH = torch.ones(8, 4), torch.arange(8) % 3
MADE = Found("<loss>", "mul", "overflow", 3e2, 1e5)


def reference(bound=None):
    def model():
        made = nn.Linear(4, 3)
        if bound is not None:
            made.weight.register_hook(lambda g: g.clamp(-bound, bound))
        return made

    given = {"train_data": [BATCH], "eval_data": [BATCH], "loss": F.cross_entropy, "model": model}
    subject = Training(**given, optimizer=lambda params: torch.optim.SGD(params, lr=0.1))
    place = Place(torch.device("cpu"))
    return Trainee(subject, REFERENCE, 0, initial_state(subject, 0), place)


def test_a_scale_changes_only_what_is_clamped_while_it_is_there():
    assert changed_by_scale(reference(), BATCH, 2.0**16) == 0
    assert changed_by_scale(reference(bound=10), BATCH, 2.0**16) > 0.3
    assert changed_by_scale(reference(bound=10), BATCH, 1.0) == 0


@pytest.mark.parametrize(
    ("found", "named"),
    [
        (MADE, True),
        (None, False),
        (MADE._replace(backward_of="mul"), False),
        (MADE._replace(mechanism="eps-underflow"), False),
    ],
)
def test_only_what_leaves_the_range_on_the_way_forward_is_blamed(found, named):
    evidence = Evidence(FLOAT16)
    look_behind(evidence, reference(), BATCH, None, found)
    assert (evidence.swallowed is not None) is named
    assert evidence.scaled == 0


def test_the_first_is_kept():
    evidence = Evidence(FLOAT16, swallowed=MADE)
    look_behind(evidence, reference(bound=10), BATCH, 2.0**16, MADE._replace(operation="exp"))
    assert evidence.swallowed is MADE
    assert evidence.scaled > 0.3


BAD = BATCH[0], BATCH[1].roll(-1)


def scaled(loss):
    given = {"train_data": [BATCH], "eval_data": [BATCH], "model": lambda: nn.Linear(4, 3)}
    subject = Training(**given, loss=loss, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    state, place = initial_state(subject, 0), Place(torch.device("cpu"), "cuda", True)
    return tuple(Trainee(subject, p, 0, state, place) for p in (REFERENCE, precision("16-mixed")))


def lost(z, y):
    return F.cross_entropy(z, y) / (1 if y[0] == 0 else torch.zeros(()))


def test_the_share_that_a_scaler_skips_and_the_first_that_it_does_not():
    exact, low = scaled(lost)
    assert skipped_share(exact, low, [BAD, BATCH, BATCH, BATCH]) == 0.25
    evidence = Evidence(FLOAT16)
    assert not_skipped(evidence, low, [BAD, BATCH]) is BAD
    evidence.skipped = 0.5, None
    assert not_skipped(evidence, low, [BAD, BATCH]) is BATCH
    assert not_skipped(evidence, low, [BAD, BAD]) is BAD
