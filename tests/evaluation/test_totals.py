"""The metric of a run: as it came out, as theory expects it, and of every kind."""

import pytest
import torch

from pytest_fp16 import Evaluation
from pytest_fp16.engine.prediction.theory_batch import TheoryBatch
from pytest_fp16.evaluation.batch import Batch
from pytest_fp16.evaluation.totals import MetricTotals
from pytest_fp16.task import Task

N = 400


def logits():
    return torch.randn(N, 1, 3, generator=torch.Generator().manual_seed(0))


def batch(values, labels=None, raw=None):
    valid = torch.ones(values.shape[:2], dtype=torch.bool)
    return Batch(None, raw, len(values), 0, values[:, 0], values, labels, valid, seed=0)


def theory(values, sigma, margin=None):
    none = torch.zeros(len(values), 1, dtype=torch.bool)
    top = values.sort(-1, descending=True).values
    margin = top[..., 0] - top[..., 1] if margin is None else margin
    spread = torch.full((len(values), 1), sigma)
    return TheoryBatch(values, margin, spread, None, none, none, none[:, 0], none[:, 0])


def totals(kind="classification", metric=None):
    return MetricTotals(Task(kind), Evaluation(model=None, data=[], metric=metric))


def test_decisions_are_counted_against_the_labels_or_the_reference():
    values = logits()
    wrong = values.clone()
    wrong[:100] = -wrong[:100]
    labels = values.argmax(-1)
    for known in (labels, None):
        run = totals()
        run.add(batch(values, known), wrong[:, 0], wrong)
        assert run.value == pytest.approx(float((wrong.argmax(-1) == labels).float().mean()))


def test_without_error_theory_expects_what_the_reference_does():
    values = logits()
    labels = values.argmax(-1)
    labels[:40] = (labels[:40] + 1) % 3
    run = totals()
    run.add_expected(batch(values, labels), theory(values, 1e-9), torch.zeros(N, 1).double())
    assert run.value == pytest.approx(0.9)


def test_a_decision_that_may_flip_is_right_with_that_probability():
    """Right now, right with the chance to stay; wrong now, right by a flip to the label at most."""
    values = logits()
    run = totals()
    run.add_expected(
        batch(values, values.argmax(-1)), theory(values, 1.0), torch.full((N, 1), 0.25).double()
    )
    assert run.value == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize("outputs", [1, 3])
def test_values_are_judged_by_r_squared_and_their_scatter_counts(outputs):
    values = logits()[..., :outputs]
    labels = values[:, 0]
    exact, scattered = totals("regression"), totals("regression")
    nobody = torch.zeros(N, 1).double()
    known = batch(values, labels)
    exact.add(known, values[:, 0], values)
    assert exact.value == pytest.approx(1.0)
    # σ is that of one direction of the output, of which there are as many as values.
    scattered.add_expected(known, theory(values, 0.5, values[..., 0]), nobody)
    assert scattered.value == pytest.approx(1 - 0.25 / float(labels.double().var()), abs=0.01)


def test_values_that_are_nan_are_as_far_off_as_can_be():
    values = logits()[..., :1]
    lost = values.clone()
    lost[3] = torch.nan
    run = totals("regression")
    run.add(batch(values, values[:, 0]), lost[:, 0], lost)
    assert run.value == float("-inf")


def test_a_score_of_the_users_own_sees_raw_outputs_and_raw_labels():
    values, seen = logits(), []

    def metric(outputs, labels):
        seen.append((tuple(outputs.shape), labels))
        return outputs[:, 0]

    run = totals(metric=metric)
    run.add(batch(values, raw="as given"), values[:, 0], values)
    run.add_expected(
        batch(values, raw="as given"), theory(values, 1e-9), torch.zeros(N, 1).double()
    )
    assert seen == [((N, 3), "as given")] * 2
    assert run.value == pytest.approx(float(values[:, 0, 0].mean()), abs=1e-6)


def test_an_embedding_has_no_raw_output_to_expect_a_score_of():
    values = logits()
    run = totals("embedding", metric=lambda outputs, labels: outputs[:, 0])
    run.add_expected(batch(values), theory(values, 1e-9), torch.zeros(N, 1).double())
    assert run.tally.count == 0
