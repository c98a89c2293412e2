"""Running totals of a metric."""

import math

import pytest
import torch

from pytest_fp16.metric.scores import Scores
from pytest_fp16.metric.tallies import Accuracy, RSquared, right, summed


def test_batches_add_up_to_the_accuracy_of_the_whole():
    total = Accuracy()
    total.add(torch.tensor([[True], [False]]), torch.tensor([[True], [True]]))
    total.add(torch.zeros(0, 1, dtype=torch.bool), torch.zeros(0, 1, dtype=torch.bool))
    total.add(torch.tensor([[True], [True]]), torch.tensor([[True], [False]]))
    assert total.value == pytest.approx(2 / 3)
    assert (total.count, total.inputs) == (3, 3)


def test_positions_of_one_input_are_not_independent():
    total = Accuracy()
    total.add(torch.tensor([[True] * 4, [False] * 4]), torch.ones(2, 4, dtype=torch.bool))
    # shares 1 and 0, with two inputs right and two wrong beside them: standard deviation 1/2,
    # over two inputs and not eight decisions
    assert total.standard_error == pytest.approx(0.5 / 2**0.5)


def test_tokens_that_are_all_right_leave_an_error_too():
    """Without labels every token agrees; a budget of nothing would refuse one flip in thousands."""
    total = Accuracy()
    total.add(torch.ones(96, 25, dtype=torch.bool), torch.ones(96, 25, dtype=torch.bool))
    assert total.standard_error == pytest.approx((0.98 * 0.02 / 96) ** 0.5)


@pytest.mark.parametrize("kind", [Accuracy, RSquared, Scores])
def test_nothing_seen_is_no_number(kind):
    assert math.isnan(kind().value)
    assert kind().standard_error == math.inf


def test_r_squared_is_pooled_over_batches_and_dimensions():
    values = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    labels = torch.tensor([[1.0, 11.0], [2.0, 20.0], [5.0, 30.0]])
    total = RSquared()
    total.add(values[:1], labels[:1])
    total.add(values[1:], labels[1:])
    spread = (labels.double() - labels.double().mean(0)).square().sum().item()
    assert total.value == pytest.approx(1 - 5 / spread)


def test_labels_that_do_not_vary_are_measured_from_zero():
    total = RSquared()
    total.add(torch.tensor([[2.0], [1.0]]), torch.tensor([[2.0], [2.0]]))
    assert total.value == pytest.approx(1 - 1 / 8)


@pytest.mark.parametrize(("value", "expected"), [(0.0, 1.0), (1.0, -math.inf)])
def test_labels_that_are_all_zero(value, expected):
    total = RSquared()
    total.add(torch.full((2, 1), value), torch.zeros(2, 1))
    assert total.value == expected


def test_an_infinity_that_is_met_is_no_error():
    total = RSquared()
    total.add(torch.tensor([[math.inf]]), torch.tensor([[math.inf]]))
    assert total.squared_error == 0


def test_of_a_tie_the_first_class_and_of_nan_none():
    logits = torch.tensor([[[1.0, 1.0]], [[math.nan, 1.0]], [[0.0, math.inf]]])
    assert right(logits, torch.tensor([[0], [1], [1]])).flatten().tolist() == [True, False, True]


def test_counts_of_more_classes_are_added_to_those_of_fewer():
    few, many = torch.tensor([1, 2]), torch.tensor([1, 1, 1])
    assert summed(None, few).tolist() == [1, 2]
    assert summed(few, many).tolist() == summed(many, few).tolist() == [2, 3, 1]


def test_outputs_may_be_longer_in_one_batch_than_in_another():
    """Each place has the mean of the batches that reach it."""
    generator = torch.Generator().manual_seed(0)
    long, short = (torch.randn(50, d, generator=generator).double() for d in (6, 4))
    total = RSquared()
    total.add(long + 0.1, long)
    total.add(short + 0.1, short)
    shared, own = torch.cat([long[:, :4], short]), long[:, 4:]
    spread = sum(float((part - part.mean(0)).square().sum()) for part in (shared, own))
    assert total.value == pytest.approx(1 - 0.01 * (long.numel() + short.numel()) / spread)
