"""What is refused, or remarked, of data and reference before long work starts."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.errors import DataError, ModelError, SettingError
from pytest_fp16.evaluation.soundness import (
    guesses,
    handed_on,
    require_better_than_chance,
    require_data,
)
from pytest_fp16.metric.tallies import Accuracy, RSquared
from pytest_fp16.task import Task

CLASSES = 4


def logits(right, n=64):
    """Outputs of a classifier that is right on so many of n inputs, and its labels."""
    labels = torch.arange(n) % CLASSES
    answers = torch.where(torch.arange(n) < right, labels, (labels + 1) % CLASSES)
    return torch.nn.functional.one_hot(answers, CLASSES).float(), labels


@pytest.mark.parametrize(
    ("right", "n", "refused"),
    [(10, 96, True), (40, 96, False), (16, 64, False), (10, 40, False)],
)
def test_a_first_batch_that_guesses_without_doubt_is_refused(right, n, refused):
    """Chance is 1/4; a small batch near it may be one of a weak model."""
    output, labels = logits(right, n)
    if not refused:
        require_better_than_chance(Task("classification"), output, labels, n)
        return
    with pytest.raises(ModelError, match=r"near chance: accuracy 10\.4% on the first 96 inputs"):
        require_better_than_chance(Task("classification"), output, labels, n)


def test_a_first_batch_of_one_class_says_nothing():
    """Folders of images come class by class, and a model may be bad at the first."""
    output, _ = logits(96, 96)
    labels = (output.argmax(1) + 1) % CLASSES
    one = (labels == 0).nonzero().flatten().repeat(8)
    require_better_than_chance(Task("classification"), output[one], labels[one], len(one))
    with pytest.raises(ModelError):
        require_better_than_chance(Task("classification"), output, labels, 96)


@pytest.mark.parametrize(
    ("right", "n", "known"),
    [(160, 640, False), (175, 640, False), (190, 640, True), (230, 640, True), (10, 40, True)],
)
def test_over_all_data_a_reference_that_guesses_proves_nothing(right, n, known):
    output, labels = logits(right, n)
    tally = Accuracy()
    tally.add((output.argmax(1) == labels)[:, None], torch.ones(n, 1, dtype=torch.bool))
    said = guesses(Task("classification"), tally, CLASSES)
    assert (said is None) is known
    if not known:
        assert (
            f"near chance: accuracy {right / n:.1%}, chance is 25.0%; what knows nothing loses"
            in said
        )
        assert "shifted" not in said


def test_tokens_that_are_their_own_labels_are_asked_whether_they_are_shifted():
    model = nn.Sequential(nn.Embedding(20, 20))
    model[0].weight.data = 5 * torch.eye(20).roll(1, dims=1)  # the next token, for sure
    tokens = torch.arange(2000).remainder(20).view(100, 20)
    with pytest.raises(ModelError, match=r"is a token's label the next one \(shifted\)\?"):
        check(Evaluation(model=model.eval(), data=[(tokens, tokens)]), precision="bf16-true")

    report = check(
        Evaluation(model=model.eval(), data=[(row[None], row[None]) for row in tokens]),
        precision="bf16-true",
    )
    assert report.verdict == "inconclusive"
    (failed,) = (c for c in report.checks if not c.passed)
    assert failed.name == "better than chance"
    assert failed.detail.startswith("the reference is near chance: accuracy 0.0%, chance is 5.0%")
    assert "(shifted)" in str(report)

    right = check(
        Evaluation(model=model.eval(), data=[(row[None, :-1], row[None, 1:]) for row in tokens]),
        precision="bf16-true",
    )
    assert right.equivalent


def test_weak_models_in_small_batches_are_judged():
    """Right in 62 of 100 cases, and in half of the first batch."""
    torch.manual_seed(0)
    x = torch.randn(1024, 4)
    model = nn.Linear(4, 2)
    with torch.no_grad():
        answers = model(x).argmax(1)
    chances = torch.where(torch.arange(1024) < 64, 0.5, 0.62)
    labels = torch.where(torch.rand(1024) < chances, answers, 1 - answers)
    assert (labels[:64] == answers[:64]).float().mean() < 0.56
    data = list(zip(x.split(64), labels.split(64), strict=True))
    assert check(Evaluation(model=model.eval(), data=data), precision="16-true").equivalent


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


OUTSIDE = nn.Linear(4, 3)


@pytest.mark.parametrize("given", [OUTSIDE, lambda: OUTSIDE, lambda: nn.Linear(4, 3)])
@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: OUTSIDE(x.float()),
        lambda net, x: OUTSIDE(x.to(next(net.parameters()).device)),
    ],
)
def test_a_forward_that_runs_a_model_from_outside_is_refused(given, forward):
    """It would run the same float32 model in every precision."""
    subject = Evaluation(model=given, data=[torch.randn(32, 4)], labelled=False, forward=forward)
    with pytest.raises(SettingError, match="forward= never uses the model that it is given"):
        check(subject)


class Method(nn.Module):
    """A model by another name than forward, and one that computes with no parameter."""

    def __init__(self, parts):
        super().__init__()
        self.layer = nn.Linear(4, 3) if parts else None

    def encode(self, x):
        return x * 2 if self.layer is None else self.layer(x)


@pytest.mark.parametrize("given", [lambda model: model, lambda model: lambda: model])
@pytest.mark.parametrize("parts", [True, False])
def test_a_forward_that_calls_a_method_is_none_of_these(given, parts):
    torch.manual_seed(0)
    model = Method(parts).eval()
    subject = Evaluation(
        model=given(model),
        data=[torch.randn(32, 4)],
        labelled=False,
        forward=lambda net, x: net.encode(x),
    )
    assert check(subject).verdict == "equivalent"


@pytest.mark.parametrize(
    ("outputs", "labels", "said"),
    [
        ([0.9, 0.8], [1, 0], "accuracy 50.0%, every decision is the same"),
        ([0.1, 0.2, 0.3, 0.2], [1, 0, 0, 0], "accuracy 75.0%, every decision is the same"),
        ([0.9, 0.2, 0.9, 0.2], [1, 0, 0, 1], "accuracy 50.0%, chance is 50.0%"),
        ([0.9, 0.2, 0.9, 0.2], [1, 0, 0, 0], None),
        ([0.9, 0.9, 0.9, 0.9], [1, 1, 1, 1], None),  # a folder of one class
    ],
)
def test_a_label_that_is_always_given_proves_nothing(outputs, labels, said):
    class Constant(nn.Module):
        def forward(self, x):
            return x

    rows = (torch.tensor(values, dtype=torch.float32).repeat(128) for values in (outputs, labels))
    subject = Evaluation(Constant(), [tuple(row[:, None] for row in rows)], task="multilabel")
    report = check(subject, precision="bf16-mixed")
    assert report.verdict == ("inconclusive" if said else "equivalent"), str(report)
    assert (said or "equivalent") in str(report)


def test_a_first_batch_that_guesses_between_two_is_refused():
    labels = torch.arange(1000) % 2
    with pytest.raises(ModelError, match=r"near chance: accuracy 50\.0% on the first 1000 inputs"):
        require_better_than_chance(Task("multilabel"), torch.ones(1000, 1), labels, 1000)


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


def values(n, noise, seed=0):
    """Inputs, and labels that are what `Doubled` says, and noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, generator=generator)
    return x, 2 * x + noise * torch.randn(n, 2, generator=generator)


@pytest.mark.parametrize(
    ("n", "shift", "noise", "worse"),
    [(200, 9.0, 0.0, True), (12, 9.0, 0.0, True), (200, 0.0, 9.0, False), (4, 9.0, 0.0, False)],
)
def test_a_reference_that_is_worse_than_a_constant_proves_nothing(n, shift, noise, worse):
    x, y = values(n, noise)
    report = check(Evaluation(Doubled(), [(x, y + shift)]), precision="bf16-true")
    assert report.verdict == ("inconclusive" if worse else "equivalent"), str(report)
    assert ("worse than a constant: R² -" in str(report)) is worse

    own = Evaluation(Doubled(), [(x, y + shift)], metric=lambda o, y: -(o - y).abs().mean(1))
    assert check(own, precision="bf16-true").equivalent
    assert check(Evaluation(Doubled(), [x], task="regression"), precision="bf16-true").equivalent


def test_a_reference_that_is_a_constant_is_seldom_called_worse():
    """The mean of other data, of the same kind: R² is below zero by what chance makes of it."""
    called = 0
    for seed in range(400):
        _, y = values(40, 1.0, seed)
        tally = RSquared()
        tally.add(torch.zeros_like(y), y)
        assert tally.value < 0
        called += guesses(Task("regression"), tally, 1) is not None
    assert called < 20
