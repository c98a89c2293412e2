"""What is refused, or remarked, of data and reference before long work starts."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.errors import DataError, ModelError
from pytest_fp16.evaluation.soundness import (
    handed_on,
    require_better_than_chance,
    require_data,
)
from pytest_fp16.task import Task

CLASSES = 4


def logits(right, n=64):
    """Outputs of a classifier that is right on so many of n inputs, and its labels."""
    labels = torch.arange(n) % CLASSES
    answers = torch.where(torch.arange(n) < right, labels, (labels + 1) % CLASSES)
    return torch.nn.functional.one_hot(answers, CLASSES).float(), labels


@pytest.mark.parametrize(
    ("right", "n", "refused"), [(19, 64, True), (20, 64, False), (10, 40, False)]
)
def test_a_reference_that_guesses_is_refused(right, n, refused):
    """Chance is 1/4, its standard error over 64 inputs 0.054: 19.46 right answers."""
    output, labels = logits(right, n)
    if not refused:
        require_better_than_chance(Task("classification"), output, labels, n)
        return
    with pytest.raises(ModelError, match=r"near chance: accuracy 29\.7% on the first 64 inputs"):
        require_better_than_chance(Task("classification"), output, labels, n)


def test_other_tasks_have_no_chance():
    require_better_than_chance(Task("regression"), torch.zeros(64, 1), torch.ones(64), 64)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (iter([1]), "once only"),
        ((i for i in [1]), "once only"),
        (3, "must yield batches"),
        (lambda: iter([1]), "got function; pass what it makes"),
    ],
)
def test_data_that_cannot_be_drawn_again_are_refused(data, said):
    with pytest.raises(DataError, match=said):
        require_data(data)
    require_data([1])


def test_an_object_that_hides_its_tensors_is_remarked():
    graph = SimpleNamespace(to=lambda device: graph)
    (said,) = handed_on([graph, torch.zeros(2)])
    assert "an object of type SimpleNamespace" in said
    assert handed_on([torch.zeros(2)]) == []


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf")])
def test_a_metric_that_says_nothing_of_the_reference_is_refused(score):
    """Such as the signal-to-noise ratio of outputs that are the labels themselves."""

    def metric(outputs, labels):
        return torch.full((len(outputs),), score)

    x = torch.randn(8, 4)
    with pytest.raises(DataError, match="on the float32 outputs already"):
        check(Evaluation(nn.Linear(4, 2).eval(), [(x, x)], metric=metric))


def test_values_that_are_nan_are_no_labels():
    labels = torch.tensor([0.5, float("nan"), 1.0, float("nan")])
    with pytest.raises(DataError, match="2 labels are NaN; leave their inputs out"):
        check(Evaluation(nn.Linear(3, 1).eval(), [(torch.randn(4, 3), labels)]))


@pytest.mark.parametrize("draws", [True, False])
def test_a_metric_that_draws_is_remarked(draws):
    def metric(outputs, labels):
        return torch.rand(len(outputs)) if draws else -(outputs - labels).square().mean(1)

    x = torch.randn(16, 4)
    report = check(Evaluation(nn.Linear(4, 2).eval(), [(x, x[:, :2])], metric=metric))
    said = [w for w in report.warnings if "metric= is not deterministic" in w]
    assert len(said) == draws
