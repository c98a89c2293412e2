"""What a model keeps of its own outputs, followed over passes that are no steps."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16 import Training
from pytest_fp16.engine.gradients.probes.memory import MOST, follow, passes_of
from pytest_fp16.engine.training.place import Place
from pytest_fp16.engine.training.trainee import Trainee, initial_state
from pytest_fp16.precision import REFERENCE

BATCH = torch.ones(4, 3), torch.tensor([0, 1, 0, 1])


class Averaging(nn.Module):
    """Half of what it said before, and half of what it says."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 2)
        self.register_buffer("said", torch.zeros(4, 2))

    def forward(self, x):
        out = self.body(x)
        self.said = (self.said + out.detach()) / 2
        return out


def trainee(model, epochs=5):
    given = {"train_data": [BATCH], "eval_data": [BATCH], "loss": F.cross_entropy}
    sgd = partial(torch.optim.SGD, lr=0.1)
    subject = Training(model=model, optimizer=sgd, epochs=epochs, **given)
    return Trainee(subject, REFERENCE, 0, initial_state(subject, 0), Place(torch.device("cpu")))


@pytest.mark.parametrize(("epochs", "passes"), [(5, 5), (1000, MOST)])
def test_what_is_kept_follows_as_often_as_there_are_epochs(epochs, passes):
    own = trainee(Averaging, epochs)
    assert passes_of(own, BATCH) == passes
    assert not own.model.said.any()


def test_it_ends_where_the_outputs_are():
    own = trainee(Averaging)
    follow(own, BATCH, 30)
    assert torch.allclose(own.model.said, own.model.body(BATCH[0]))


@pytest.mark.parametrize(
    "model",
    [
        lambda: nn.Linear(3, 2),
        lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)),
    ],
)
def test_what_keeps_nothing_of_its_outputs_needs_no_passes(model):
    assert passes_of(trainee(model), BATCH) == 0


def test_a_loss_that_raises_needs_none():
    own = trainee(Averaging)
    assert passes_of(own, (torch.ones(4, 5), BATCH[1])) == 0
