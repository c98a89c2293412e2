"""Chances of decisions, and those that tie because one thing is computed twice."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.prediction.theory_batch import TheoryBatch
from pytest_fp16.evaluation.expectation import (
    alike,
    expected_right,
    flip_chance,
    noisy,
    open_chance,
)
from pytest_fp16.task import Task


def theory_of(logits, sigma=1.0, **more):
    values, none = torch.tensor(logits).unsqueeze(1), torch.zeros(len(logits), 1, dtype=torch.bool)
    top = values.sort(-1, descending=True).values
    margin = top[..., 0] - top[..., 1]
    return TheoryBatch(
        logits=values,
        margin=margin,
        sigma=torch.full_like(margin, sigma),
        bound=None,
        bounded=none,
        probable=none,
        overflowed=none[:, 0],
        undecided=none[:, 0],
        **more,
    )


def test_an_open_decision_flips_as_often_as_runs_have_shown_or_evenly():
    logits = [[2.0, 0.0], [0.0, 1.0]]
    reference = torch.tensor(logits).unsqueeze(1)
    assert open_chance(reference, theory_of(logits)).tolist() == [[0.5], [0.5]]
    runs = torch.tensor([[0] * 8, [0] * 4 + [1, 1, -1, 1]]).mT.unsqueeze(-1)
    said = theory_of(logits, noisy_classes=runs)
    assert open_chance(reference, said).tolist() == [[0.1], [0.6]]


TIED = [[2.0, 2.0, 0.0], [0.0, 1.0, 1.0], [1.0, 3.0, 2.0]]


def test_what_ties_with_exact_and_with_rounded_weights_is_one_computation():
    reference = torch.tensor(TIED).unsqueeze(1)
    same = alike(reference, theory_of([[2.5, 2.5, 0.0], [0.0, 1.0, 1.001], [1.0, 1.0, 2.0]]))
    assert same[:, 0].tolist() == [[True, True, False], [False, True, False], [False, True, False]]


def test_a_tie_of_one_computation_with_itself_does_not_flip():
    reference = torch.tensor(TIED).unsqueeze(1)
    chance = flip_chance(reference, theory_of(TIED), 1.0)
    assert chance[:2].tolist() == [[0.0], [0.0]]
    assert chance[2].item() == pytest.approx(0.1587, abs=1e-3)
    labels = torch.tensor([[0], [1], [1]])
    kept = expected_right(reference, labels, theory_of(TIED), chance)
    assert kept.flatten().tolist() == pytest.approx([1.0, 1.0, 1 - 0.1587], abs=1e-3)


def test_runs_at_random_may_take_either_of_two_that_are_one():
    reference = torch.tensor(TIED).unsqueeze(1)
    runs = torch.tensor([[[1], [2], [2]], [[0], [1], [-1]]])
    said = theory_of(TIED, noisy_classes=runs)
    labels = torch.tensor([[0], [1], [1]])
    kept = expected_right(reference, labels, said, torch.zeros(3, 1))
    assert kept.flatten().tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("precision", ["16-true", "16-mixed"])
def test_embeddings_of_equal_inputs_are_forecast_as_the_ties_they_are(precision):
    torch.manual_seed(0)
    x = torch.randn(60, 16)
    x[::6] = 0.5  # blank images
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 8)).eval()
    subject = Evaluation(model=model, data=[x], labelled=False, task="embedding")
    report = check(subject, precision=precision)
    assert report.verdict == report.forecast.verdict == "equivalent", str(report)


def test_rounding_errors_of_theory_s_size_leave_exact_zeros_alone():
    values = [[0.0, 3.0, 0.0, -1.0]] * 500
    seen = noisy(theory_of(values, 0.25), Task("regression"), 3).squeeze(1)
    assert not seen[:, ::2].any()
    assert seen[:, 1].std() == pytest.approx(0.25, rel=0.1)
    ran = torch.rand(500, 1, 4)
    assert noisy(theory_of(values, noisy_logits=ran), Task("regression"), 3) is ran


class Suppressed(nn.Module):
    """Scores of what is kept; all else is zero in every run. A sort has no derivative."""

    def forward(self, x):
        scores = x.sigmoid()
        kept = torch.zeros_like(scores)
        best = scores.argsort(dim=-1, descending=True)[:, :3]
        return kept.scatter(1, best, scores.gather(1, best))


@pytest.mark.parametrize("precision", ["16-true", "bf16-mixed"])
def test_a_metric_that_asks_what_is_more_than_zero_is_foreseen(precision):
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))

    def kept(outputs, labels):
        return ((outputs > 0) == (labels > 0)).float().mean(-1)

    subject = Evaluation(
        model=Suppressed(), data=[(x, Suppressed()(x))], metric=kept, task="regression"
    )
    report = check(subject, precision=precision)
    assert report.equivalent
    assert report.forecast.verdict == "equivalent", report.forecast.reason
