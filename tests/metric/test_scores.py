"""A metric of the user's own that gives one score per input."""

import math
from dataclasses import replace

import pytest
import torch

from pytest_fp16 import Evaluation, check
from pytest_fp16.errors import DataError
from pytest_fp16.metric.scores import Scores, name_of, user_scores
from pytest_fp16.metric.tallies import Accuracy
from pytest_fp16.theory.budget import accuracy_error, clamp


def test_a_users_scores_have_their_own_scale():
    total = Scores()
    total.add(torch.tensor([-10, -30]))
    assert (total.value, total.scale) == (-20, 20)
    assert total.standard_error == pytest.approx(10)


def test_a_metric_that_gives_one_number_for_the_batch_is_refused():
    with pytest.raises(DataError, match="one score per input"):
        user_scores(lambda outputs, labels: outputs.mean(), torch.ones(3), None, 3)


@pytest.mark.parametrize("returned", [None, "good", object()])
def test_a_metric_that_gives_no_number_is_refused(returned):
    said = f"metric returned {type(returned).__name__} for 3 inputs; it must return one score"
    with pytest.raises(DataError, match=said):
        user_scores(lambda outputs, labels: returned, torch.ones(3), None, 3)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (lambda o, y: o.nope, r"AttributeError: 'Tensor' object has no attribute 'nope' \(at"),
        (lambda o, y: y[7], r"IndexError: .*\(at .*test_scores\.py:\d+\)"),
    ],
)
def test_a_metric_that_raises_is_told_with_what_it_was_given(metric, said):
    given = (
        r"; it is called with \(outputs, labels\), here a tensor of shape \(3, 2\) and list of 3"
    )
    with pytest.raises(DataError, match=f"metric= raised {said}.*{given}"):
        user_scores(metric, torch.ones(3, 2), ["a", "b", "c"], 3)


def of_finite(outputs, labels):
    assert outputs.isfinite().all(), "NaN in the input"
    return outputs.sum(1)


def test_a_metric_that_raises_on_lost_outputs_scores_nothing():
    """Such as scikit-learn's: what was lost in 16 bits is the model's, not the metric's."""
    lost = torch.tensor([[1.0, math.inf]])
    scores = Scores(of_finite)
    scores.take(lost, None, 1, reference=False)
    assert math.isnan(scores.value)
    assert scores.refused is None  # that outputs are lost says enough
    with pytest.raises(DataError, match="NaN in the input"):
        scores.take(lost, None, 1)


def of_probabilities(outputs, labels):
    if bool(((outputs.sum(1) - 1).abs() > 1e-4).any()):
        raise ValueError("rows must add up to one")
    return outputs[:, 0]


def test_a_metric_that_refuses_other_outputs_than_the_references_says_what():
    scores = Scores(of_probabilities)
    scores.take(torch.tensor([[0.5, 0.5]]), None, 1)
    scores.take(torch.tensor([[0.5, 0.501]]), None, 1, reference=False)
    assert math.isnan(scores.value)
    assert "metric= raised ValueError: rows must add up to one" in scores.refused
    with pytest.raises(DataError, match="rows must add up to one"):
        scores.take(torch.tensor([[0.5, 0.501]]), None, 1)


def test_lost_outputs_are_a_verdict_whatever_the_metric_raises():
    model = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Linear(2, 2)).requires_grad_(False)
    model[0].weight.fill_(3e4)
    x = torch.rand(16, 4) + 1
    subject = Evaluation(model=model, data=[(x, torch.zeros(16))], metric=of_finite)
    report = check(subject, budget=1e9)
    assert report.verdict == "not equivalent"
    assert "finite" in [c.name for c in report.checks if not c.passed]


def test_a_metric_may_write_into_its_outputs():
    outputs = torch.ones(3, 2)
    assert user_scores(lambda o, labels: o.zero_().sum(1), outputs, None, 3).tolist() == [0, 0, 0]
    assert outputs.eq(1).all()


def scored(*values):
    total = Scores()
    total.add(torch.tensor(values))
    return total


@pytest.mark.parametrize(
    ("right_ones", "n"), [(60, 100), (100, 100), (33, 298), (1, 3), (900, 1000)]
)
def test_a_score_that_is_one_or_zero_has_the_budget_of_an_accuracy(right_ones, n):
    own = scored(*[1.0] * right_ones, *[0.0] * (n - right_ones))
    accuracy = Accuracy()
    hits = (torch.arange(n) < right_ones)[:, None]
    accuracy.add(hits, torch.ones_like(hits))
    wanted = clamp(accuracy.standard_error, accuracy.scale, accuracy.grain)
    assert own.usual() == pytest.approx(wanted)
    assert (own.scale, own.grain) == (1.0, 1 / n)
    assert own.standard_error == pytest.approx(accuracy.standard_error)


def test_a_score_that_goes_in_steps_may_lose_one_and_a_half():
    own = scored(*[0.0] * 20, *[0.5] * 20, *[1.0] * 60)
    assert own.usual() == pytest.approx(1.5 * 0.5 / 100)
    assert own.grain == 0.0
    # where all are alike others show the step
    perfect = scored(*[0.0] * 100)
    perfect.hear(torch.tensor([-1.0, math.nan]))
    assert perfect.usual() == pytest.approx(accuracy_error(100, 100, 100))


def test_a_score_that_is_measured_has_no_steps():
    values = torch.linspace(-0.6, -0.4, 100).tolist()
    assert scored(*values).usual() == pytest.approx(clamp(scored(*values).standard_error, 0.5))
    alike = scored(*[1.0] * 100)  # the cosine of what it is compared with
    alike.hear(torch.tensor(values))
    assert alike.usual() == pytest.approx(0.001)
    assert scored(-0.3, -0.5).usual() == pytest.approx(0.004)


def test_one_of_few_inputs_may_be_lost_by_a_score_that_is_one_or_zero():
    """A decoded word is right or wrong, and one of 80 is more than one percent."""
    x = torch.cat([torch.tensor([[0.5 + 2**-12, 0.5]]), torch.tensor([[2.0, 1.0]]).repeat(79, 1)])

    def exact(outputs, labels):
        return (outputs.argmax(1) == labels).float()

    subject = Evaluation(torch.nn.Identity(), [(x, torch.zeros(80))], metric=exact)
    for labels in (torch.zeros(80), torch.cat([torch.zeros(50), torch.ones(30)])):
        given = replace(subject, data=[(x.flip(1), 1 - labels)])
        report = check(given, precision="16-true")
        assert report.metric.loss == pytest.approx(1 / 80)
        assert report.verdict == "equivalent", str(report)


def test_a_metric_is_called_by_its_name():
    assert name_of(of_finite) == "of_finite"
    assert name_of(torch.nn.CosineSimilarity()) == "metric"


@pytest.mark.parametrize("shift", [2**-13, 0.4])
def test_the_budget_is_the_same_whatever_a_candidate_scores(shift):
    """Shares of 64 positions, all of them right in float32: no accuracy of whole inputs."""
    x = torch.arange(96 * 64).reshape(96, 64) % 8 / 8 + 0.1 + shift

    def within(outputs, labels):
        return ((outputs - labels).abs() < 1e-4).float().mean(1)

    subject = Evaluation(torch.nn.Identity(), [(x, x)], task="regression", metric=within)
    for precision in ("16-true", "bf16-true", "bf16-mixed"):
        assert check(subject, precision=precision).metric.budget == pytest.approx(0.001)
