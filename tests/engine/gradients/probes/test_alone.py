"""What is followed to the end of a training is followed in true precisions alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16 import Training
from pytest_fp16.engine.gradients.evidence import Evidence
from pytest_fp16.engine.gradients.probes.alone import Alone
from pytest_fp16.engine.gradients.probes.course import SEED, Course
from pytest_fp16.engine.training.place import Place
from pytest_fp16.engine.training.trainee import Trainee, initial_state
from pytest_fp16.precision import REFERENCE, precision
from pytest_fp16.theory.rounding import BFLOAT16


@pytest.mark.parametrize("name", ["bf16-true", "bf16-mixed"])
def test_each_is_followed(name):
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    data = [(part, (part.sum(1) > 0).long()) for part in x.split(8)]
    subject = Training(
        model=lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        loss=F.cross_entropy,
        train_data=data,
        eval_data=data,
    )
    state, place = initial_state(subject, SEED), Place(torch.device("cpu"), emulated=True)

    def make(kind=REFERENCE):
        return Trainee(subject, kind, SEED, state, place)

    exact, course, found = make(), Course(subject), Evidence(BFLOAT16)
    candidate = precision(name)
    alone = Alone(exact, candidate)
    for batch in course.first:
        exact.step(batch)
        alone.keep()
    assert bool(alone.steady.kept) is candidate.mixed  # there nobody has looked, and let go of any
    alone.followed(found, course, (make, lambda: make(candidate)))
    assert bool(found.lags) is (found.optimizer is not None) is not candidate.mixed
    assert found.stalled is None
    steps = len(alone.recorder.steps)
    exact.step(course.first[0])
    assert len(alone.recorder.steps) == steps  # nothing is recorded any more
