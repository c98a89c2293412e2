"""Classes and outputs that are lost whole, though the metric hardly shows it."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.evaluation.parts import Parts, lost_classes, told
from pytest_fp16.task import Task


def counts(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize(
    ("had", "now", "lost"),
    [
        ((900, 40), (900, 0), [1]),
        ((900, 40), (900, 20), [1]),
        ((900, 40), (900, 21), []),  # more than half is left
        ((900, 7), (900, 0), []),  # so few say nothing
        ((900, 8), (900, 0.4), [1]),  # expected ones
        ((900, 0, 40), (940, 0, 0), [2]),
        ((900, 40), (910, 45), []),
    ],
)
def test_a_class_is_lost_where_half_of_it_is(had, now, lost):
    assert lost_classes(counts(*had), counts(*now)) == lost


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 0.4), st.integers(2, 300))
def test_where_all_is_lost_alike_no_class_is(seed, rate, classes):
    """Of a thousand classes of ten some lose half, where each answer is lost one time in three."""
    generator = torch.Generator().manual_seed(seed)
    had = torch.randint(0, 40, (classes,), generator=generator).double()
    now = torch.binomial(had, torch.full_like(had, 1 - rate), generator=generator)
    assert len(lost_classes(had, now)) <= 1


def test_false_alarms_are_rarer_than_one_in_a_thousand():
    generator = torch.Generator().manual_seed(0)
    alarms = 0
    for _ in range(2000):
        had = torch.full((50,), 12.0).double()
        now = torch.binomial(had, torch.full_like(had, 0.8), generator=generator)
        alarms += bool(lost_classes(had, now))
    assert alarms <= 2


def answers(labels, right, kind="classification", classes=2):
    parts = Parts()
    labels = torch.tensor(labels)
    right = torch.tensor(right)
    for half in (slice(0, len(labels), 2), slice(1, len(labels), 2)):
        valid = labels[half] >= 0
        parts.add_answers(Task(kind), labels[half], right[half], valid, classes)
    return parts


def test_answers_are_counted_by_class_and_by_output():
    labels = [[0, 1], [0, -100]] * 10
    reference = answers(labels, [[True, True]] * 20, "multilabel")
    assert reference.right["answer"].tolist() == [20, 10]
    assert reference.right["output"].tolist() == [20, 0, 0, 10]
    assert "output" not in answers(labels, [[True, True]] * 20).right  # classes of tokens
    gone = answers(labels, [[True, False]] * 20, "multilabel")
    assert reference.lost(gone) == [
        "yes: 0 right answers of 10 are left",
        "yes of output 1: 0 right answers of 10 are left",
    ]
    assert reference.lost(reference) == []


def values(*columns, labels):
    parts = Parts()
    parts.add_values(torch.stack(columns, 1), torch.stack(labels, 1))
    return parts


def test_an_output_is_lost_where_half_of_its_r_squared_is():
    x, small = torch.linspace(-1, 1, 40), torch.linspace(-1, 1, 40) * 1e-6
    labels = (x, small)
    reference = values(x, small, labels=labels)
    assert reference.explained.tolist() == pytest.approx([1, 1])
    gone = values(x, small * 0, labels=labels)
    assert reference.lost(gone) == ["output 1: R² 0, reference 1"]
    assert reference.lost(values(x, small * 0.5, labels=labels)) == []
    assert reference.lost(values(x, small * torch.nan, labels=labels))
    # of what the reference does not know nothing is lost, nor of what does not vary
    unknown = values(x, -small, labels=labels)
    assert unknown.lost(values(x, small * 1e9, labels=labels)) == []
    constant = values(x, x, labels=(x, torch.ones(40)))
    assert constant.lost(values(x, -x, labels=(x, torch.ones(40)))) == []


def test_pixels_and_single_outputs_are_no_parts():
    parts = Parts()
    parts.add_values(torch.ones(9, 1), torch.ones(9, 1))
    parts.add_values(torch.ones(9, 65), torch.ones(9, 65))
    assert parts.sums is None
    assert parts.lost(parts) == []


def test_batches_may_have_other_classes_and_outputs():
    """As those whose classes are the inputs of the batch."""
    parts = Parts()
    for n in (8, 9):
        labels, right = torch.arange(n)[:, None], torch.ones(n, 1)
        parts.add_answers(Task("classification"), labels, right, right > 0, n)
        parts.add_values(torch.randn(n, n), torch.randn(n, n))
    assert parts.right["class"].tolist() == [2] * 8 + [1]
    assert parts.lost(parts) == []
    assert not parts.alike


def test_many_are_counted():
    assert told(["a", "b"]) == "a; b"
    assert told(list("abcde")) == "a; b; c; 2 more"


class Rare(nn.Module):
    """One pixel of 200 is of another class, whose evidence rides on an offset."""

    def forward(self, x):
        return torch.stack([torch.zeros_like(x), x], 1) + 2400


def rare(labelled=True):
    x = torch.where(torch.arange(4000) % 200 == 0, 0.3, -0.3).reshape(40, 10, 10)
    batches = [(part, (part > 0).long()) for part in x.split(10)]
    return Evaluation(Rare(), batches if labelled else [b[0] for b in batches], labelled=labelled)


def test_a_rare_class_that_vanishes_fails_within_the_budget():
    report = check(rare(), precision="bf16-true")
    assert report.verdict == "not equivalent"
    assert report.metric.loss <= report.metric.budget
    assert [c.name for c in report.checks if not c.passed] == ["each class or output"]
    assert "class 1: 0 right answers of 20 are left" in str(report)
    assert (report.culprit.operation, report.culprit.mechanism) == ("add", "absorption")


def test_without_labels_a_run_that_answers_one_class_alone_fails():
    report = check(rare(labelled=False), precision="bf16-true")
    assert report.metric.loss <= report.metric.budget
    assert report.verdict == report.forecast.verdict == "not equivalent"
    assert [c.name for c in report.checks if not c.passed] == ["each class or output"]


class Third(nn.Module):
    """Of three classes one rides on an offset."""

    def forward(self, x):
        y = torch.stack([-x, x, torch.full_like(x, -1)], 1)
        return torch.cat([y[:, :2], (y[:, 2:] + 2 * (x == 0)[:, None] + 2400) - 2400], 1)


def test_one_of_several_is_a_warning_without_labels():
    """Nobody knows whether it means anything."""
    x = torch.randn(40, 10, 10, generator=torch.Generator().manual_seed(0))
    x = torch.where(torch.arange(4000).reshape(40, 10, 10) % 200 == 0, 0.0, x)
    given = Evaluation(Third(), list(x.split(10)), labelled=False)
    report = check(given, precision="bf16-true")
    assert report.verdict == "equivalent", str(report)
    assert any("what the reference tells apart is lost" in said for said in report.warnings)


@pytest.mark.parametrize(("budget", "verdict"), [(0.01, "not equivalent"), (0.02, "equivalent")])
def test_a_wide_budget_allows_it_and_is_warned(budget, verdict):
    report = check(rare(), precision="bf16-true", budget=budget)
    assert report.verdict == report.forecast.verdict == verdict
    told = [w for w in report.warnings if "what the reference tells apart is lost" in w]
    assert len(told) == (verdict == "equivalent")


def test_a_metric_of_ones_own_says_what_counts():
    def right(outputs, labels):
        return (outputs.argmax(1) == labels).float().mean((1, 2))

    subject = rare()
    given = Evaluation(subject.model, subject.data, metric=right)
    assert check(given, precision="bf16-true", budget=0.01).verdict == "equivalent"


class Two(nn.Module):
    """Two outputs in units of their own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("unit", torch.tensor([300.0, 1e-8]))

    def forward(self, x):
        return x * self.unit


def test_an_output_of_small_values_fails_beside_one_of_large_ones():
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    data = [(x, x * torch.tensor([300.0, 1e-8]))]
    report = check(Evaluation(Two(), data), precision="16-true")
    assert report.verdict == report.forecast.verdict == "not equivalent"
    assert re.search(r"each class or output: output 1: R² -?0\.?\d*, reference 1\n", str(report))
    assert check(Evaluation(Two(), data), precision="bf16-true").equivalent
