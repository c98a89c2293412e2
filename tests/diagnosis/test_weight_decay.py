"""Weight decay that moves no weight."""

from functools import partial

import pytest
import torch

from pytest_fp16.diagnosis.training_cures import proposals
from pytest_fp16.diagnosis.weight_decay import vanished_decay
from pytest_fp16.engine.randomness import preserved_state
from pytest_fp16.engine.training.runs import Runs
from pytest_fp16.engine.training.validation import validated
from pytest_fp16.precision import precision
from pytest_fp16.settings import Settings

CPU = torch.device("cpu")


def found(subject, name="bf16-true"):
    with preserved_state():
        runs = Runs(validated(subject, CPU), Settings().with_(device="cpu"), CPU)
        return vanished_decay(runs, precision(name), 0)


@pytest.mark.parametrize(
    ("optimizer", "name", "lost"),
    [
        (partial(torch.optim.AdamW, lr=1e-3, weight_decay=1.0), "bf16-true", True),
        (partial(torch.optim.SGD, lr=1e-3, weight_decay=1.0), "bf16-true", True),
        (partial(torch.optim.AdamW, lr=1e-3, weight_decay=1.0), "16-true", False),  # NaN
        (partial(torch.optim.SGD, lr=1e-3, weight_decay=1.0), "16-true", False),
        (partial(torch.optim.AdamW, lr=1e-3, weight_decay=1.0), "bf16-mixed", False),
        (partial(torch.optim.AdamW, lr=1e-2, weight_decay=1.0), "bf16-true", False),
        (partial(torch.optim.AdamW, lr=1e-3, weight_decay=1e-2), "bf16-true", False),  # too little
        (partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.0), "bf16-true", False),
        (torch.optim.LBFGS, "bf16-true", False),
    ],
)
def test_it_is_lost_where_no_weight_shrinks_that_should(digits_training, optimizer, name, lost):
    subject = digits_training(optimizer=optimizer, batch=32, epochs=60)
    culprit = found(subject, name)
    assert (culprit is not None) == lost
    if lost:
        assert (culprit.module, culprit.operation) == ("<optimizer>", "weight_decay")
        assert culprit.evidence.startswith("weight decay takes 0.001 of a weight in each step")


def test_an_epsilon_is_no_cure_for_it(digits_training):
    subject = digits_training(
        optimizer=partial(torch.optim.AdamW, lr=1e-3, weight_decay=1.0), batch=32, epochs=60
    )
    cures = proposals(subject, subject.model(), precision("bf16-true"), found(subject), None)
    assert [cure.kind for cure in cures] == ["mixed"]
