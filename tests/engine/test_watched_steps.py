"""Watched steps stop at what broke them, and name it."""

import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16 import Training
from pytest_fp16.engine.trainee import Place, Trainee, initial_state
from pytest_fp16.engine.watched_steps import watched
from pytest_fp16.precision import precision


def trainee(loss):
    data = [(torch.ones(4, 2), torch.zeros(4, dtype=torch.long))] * 3
    given = {"train_data": data, "eval_data": data, "loss": loss, "model": lambda: nn.Linear(2, 2)}
    subject = Training(**given, optimizer=lambda params: torch.optim.SGD(params, lr=0.1))
    place = Place(torch.device("cpu"), "cuda", True)
    return Trainee(subject, precision("16-true"), 0, initial_state(subject, 0), place), data


def test_the_step_that_broke_is_the_last():
    calls = []

    def loss(z, y):
        calls.append(z)
        return F.cross_entropy(z, y) * (1e5 if len(calls) == 2 else 1)

    fresh, data = trainee(loss)
    origin = watched(fresh, data, seed=0)
    assert len(calls) == 2
    assert (origin.found.operation, origin.found.mechanism) == ("mul", "overflow")


def test_an_error_ends_them_where_it_was_raised():
    def loss(z, y):
        raise ValueError("no")

    fresh, data = trainee(loss)
    origin = watched(fresh, data, seed=None)
    assert (origin.found, origin.failed_in) == (None, "<loss>")
