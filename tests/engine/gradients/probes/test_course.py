"""The course of a check: how long it is, and that no batch of a point is trained on."""

from itertools import islice

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pytest_fp16 import Training
from pytest_fp16.engine.gradients.points import BATCHES
from pytest_fp16.engine.gradients.probes.course import Course, batches_per_epoch, endless
from pytest_fp16.errors import DataError

X, Y = torch.arange(12.0).reshape(12, 1), torch.zeros(12)


def training(data, **changes):
    given = {"model": nn.Linear(1, 1), "optimizer": torch.optim.SGD, "loss": nn.functional.mse_loss}
    return Training(**given, train_data=data, eval_data=data, **changes)


def course(count, epochs=1, tell=None, **changes):
    data = [(torch.full((1, 1), float(n)), torch.zeros(1, 1)) for n in range(count)]
    return Course(training(data, epochs=epochs, **changes), tell)


def numbers(batches):
    return [float(x) for x, _ in batches]


@pytest.mark.parametrize(
    ("count", "accumulate", "total", "length", "together"),
    [(1, 1, 1, 2, 2), (12, 1, 12, 6, 4), (120, 1, 120, 20, 6), (120, 4, 30, 6, 4)],
)
def test_lengths(count, accumulate, total, length, together):
    found = course(count, accumulate=accumulate)
    assert (found.total, found.length, found.together) == (total, length, together)
    assert len(found.first) == together * accumulate


def test_a_long_training_is_followed_so_far():
    assert course(300, epochs=10).length == 256


def test_steps_follow_the_first_batches_and_pass_over_those_of_the_points():
    found = course(120)
    held = numbers(found.first)
    steps = [number for step in range(found.length) for number in numbers(found.of(step))]
    assert steps[: len(held)] == held
    assert len(set(steps)) == found.length
    assert not set(steps) & set(numbers(found.extra))
    assert numbers(islice(found.again(), found.length)) == steps
    assert numbers(islice(found.any(), len(held) + BATCHES)) == held + numbers(found.extra)


def test_whoever_listens_hears_of_every_batch():
    heard = []
    found = course(20, tell=heard.append)
    begun = len(found.first) + BATCHES
    assert heard == list(range(1, begun + 1))
    found.of(found.together), list(islice(found.again(), 3))
    assert heard[-1] == begun + 1 + 3


class Lengthless:
    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return ((X, Y) for _ in range(self.count))


def test_batches_of_an_epoch_are_counted_where_nobody_tells():
    assert batches_per_epoch(training([(X, Y)] * 2)) == 2
    assert batches_per_epoch(training(DataLoader(TensorDataset(X, Y), 5))) == 3
    assert batches_per_epoch(training(Lengthless(7))) == 7
    assert batches_per_epoch(training(Lengthless(10_000))) == 256


def test_epochs_follow_each_other_in_the_order_of_the_training():
    data = DataLoader(TensorDataset(X, Y), 4, shuffle=True)
    first, second = (
        torch.cat([x for x, _ in islice(endless(training(data), 3), 6)]).flatten() for _ in range(2)
    )
    assert first[:12].sort().values.tolist() == first[12:].sort().values.tolist() == list(range(12))
    assert first[:12].tolist() != first[12:].tolist()
    assert torch.equal(first, second)


def test_no_batches_are_an_error_and_no_endless_wait():
    with pytest.raises(DataError, match="no batches"):
        next(endless(training([]), 0))
