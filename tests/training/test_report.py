"""A training's report says what its pairs of runs say, each figure where the schema has it."""

from __future__ import annotations

import json
import math

import pytest
import torch

from pytest_fp16.engine.gradients.check import GradientFindings
from pytest_fp16.precision import PRECISIONS
from pytest_fp16.theory.seeds_ahead import MOST
from pytest_fp16.training.pairs import Pairs
from pytest_fp16.training.report import how_it_ended

CPU = torch.device("cpu")


def check(said, name):
    return next(c for c in said.checks if c.name == name)


def test_pairs_that_agree(made, runs):
    said = made.report(runs(), made.settled(made.pair(0.95, 0.94), made.pair(0.93, 0.94, seed=1)))
    assert (said.verdict, said.kind, said.task) == ("equivalent", "training", "classification")
    assert all(c.passed for c in said.checks)
    assert said.metric.reference == pytest.approx(0.94)
    assert said.metric.loss == pytest.approx(0.0)
    assert (said.metric.budget, said.metric.budget_origin) == (0.03, "default")
    assert (said.loss_reference, said.loss_candidate) == (0.5, 0.5)
    assert said.inputs == 600
    assert said.training["losses"] == pytest.approx([0.01, -0.01])
    assert said.training["seeds"] == [0, 1]
    assert not said.warnings
    assert type(said).model_validate_json(said.model_dump_json()) == said


@pytest.mark.parametrize(
    ("dtypes", "passed"), [({"float16": 40, "float32": 10}, True), ({"float32": 50}, False)]
)
def test_the_proof_that_16_bit_ran(made, runs, dtypes, passed):
    ran = check(made.report(runs(), made.settled(made.pair(dtypes=dtypes))), "16 bit ran")
    assert ran.passed is passed
    assert f"{dtypes.get('float16', 0)} of 50" in ran.detail
    assert "parameters float16, optimizer state none" in ran.detail


@pytest.mark.parametrize(
    ("given", "budget", "origin"),
    [(None, 0.01, "default"), (0.2, 0.2, "absolute"), ("2%", 0.019, "relative")],
)
def test_a_run_that_broke_is_the_verdict(made, runs, given, budget, origin):
    pairs = Pairs(PRECISIONS["16-true"], [made.pair(seed=0)])
    pairs.broke = made.pair(0.95, 0.1, seed=1, ended="nan", failed_at=(2, 6), error="loss is nan")
    said = made.report(runs(budget=given), pairs)
    assert said.verdict == "not equivalent"
    finite = check(said, "finite")
    assert not finite.passed
    assert "seed 1 ended in NaN or infinity in epoch 3, step 7 (loss is nan)" in finite.detail
    assert (said.metric.reference, said.metric.candidate) == (0.95, 0.1)
    assert (said.metric.budget, said.metric.budget_origin) == (pytest.approx(budget), origin)
    assert said.error == "loss is nan"
    # NaN would be a number in JSON, and is a word here
    assert json.loads(said.model_dump_json())["training"]["ended"] == ["finished", "not finite"]


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        ("diverged", "diverged"),
        ("collapsed scale", "step after step was skipped"),
        ("raised", "raised"),
    ],
)
def test_how_it_ended_in_words(made, ended, words):
    said = how_it_ended(made.result(ended=ended, seed=4))
    assert said.startswith("the 16-true run of seed 4 ")
    assert words in said
    assert said.endswith("its 32-bit twin did not")


def test_what_more_seeds_would_settle(made, runs):
    pairs = made.settled(made.pair(), outcome="undecided", lower=-math.inf, upper=math.inf)
    pairs.missing = 3
    said = made.report(runs(), pairs)
    assert said.verdict == "inconclusive"
    seeds = check(said, "same over seeds")
    assert not seeds.passed
    assert "no limits yet" in seeds.detail
    assert "about 3 more seed(s)" in seeds.detail
    assert said.training["seeds_missing"] == 3


@pytest.mark.parametrize(
    ("missing", "grain", "words"),
    [
        (82, 0.1, "one decision of eval_data alone is 10 points: evaluate on more data"),
        (82, 0.01, "about 82 more seed(s) would settle it: seeds=83; a wider budget= takes fewer"),
        (12, 0.01, "about 12 more seed(s) would settle it: seeds=13"),
        (MOST, 0.0, "no number of seeds settles"),
    ],
)
def test_what_no_number_of_seeds_would_settle(made, runs, missing, grain, words):
    pairs = made.settled(made.pair(), outcome="undecided", grain=grain)
    pairs.missing = missing
    detail = check(made.report(runs(), pairs), "same over seeds").detail
    assert words in detail
    assert ("a wider budget=" in detail) is ("a wider budget=" in words)
    assert ("more seed(s)" in detail) is ("more seed(s)" in words)


def test_a_run_that_could_not_be_made(made, runs):
    pairs = Pairs(PRECISIONS["16-true"], unmade="16-true, seed 0: out of memory")
    said = made.report(runs(), pairs)
    assert said.verdict == "inconclusive"
    assert check(said, "same over seeds").detail == "16-true, seed 0: out of memory"
    assert said.metric is None
    assert said.inputs == 0


def test_the_papers_figures_come_from_the_trained_pairs(made, runs):
    moved = [[2.0, 1.0, 0.0], [0.0, 1.0, 1.5]]  # the second answer changes
    said = made.report(runs(), made.settled(made.pair(score=made.score(0.9, moved))))
    one, two = (torch.tensor(r).softmax(-1) for r in (made.rows, moved))
    delta = (one - two).abs().amax(-1)
    top = one.sort(-1, descending=True).values
    gamma = top[:, 0] - top[:, 1]
    assert said.delta_max == pytest.approx(float(delta.max()), rel=1e-5)
    assert said.gamma_median == pytest.approx(float(gamma.median()), rel=1e-5)
    assert said.certified.measured == pytest.approx(float((gamma > 2 * delta).float().mean()))


def test_predictions_that_cannot_be_compared_give_no_figures(made, runs):
    said = made.report(runs(), made.settled(made.pair(score=made.score(0.9, [[1.0, 0.0]]))))
    assert said.delta_max is None
    assert said.certified.measured is None


def test_the_gradient_check_is_the_forecast_and_a_false_alarm_a_warning(made, runs):
    alarm = GradientFindings("not equivalent", "weights stand still", figures={"rho": 2.0})
    said = made.report(runs(), made.settled(made.pair()), alarm)
    assert (said.forecast.verdict, said.forecast.method) == ("not equivalent", "gradient check")
    assert said.training["gradient_check"] == {"rho": 2.0}
    assert (
        "expected a failure that no run over seeds showed: weights stand still" in said.warnings[0]
    )
    points = {"points": [{"step": 0}, {"step": 12}], "total_steps": 300}
    silent = GradientFindings("equivalent", "nothing found", figures=points)
    assert not made.report(runs(), made.settled(made.pair()), silent).warnings


def test_further_runs_are_told(made, runs):
    pairs = made.settled(made.pair(), runs=3)
    pairs.further = [made.result(0.94, 8, "32-true"), made.result(0.96, 9, "32-true")]
    said = made.report(runs(), pairs)
    assert check(said, "same over seeds").detail.endswith(
        "budget 0.03 (the spread of 3 32-bit runs)"
    )
    assert said.training["further_reference_metrics"] == [0.94, 0.96]
    resolved = made.settled(made.pair(), runs=3, resolution=0.03)
    resolved.further = pairs.further
    assert check(made.report(runs(), resolved), "same over seeds").detail.endswith("budget 0.03")
    assert said.training["seeds"] == [0]


@pytest.mark.parametrize(("budget", "told"), [(0.8, True), (0.09, False), (None, False)])
def test_a_budget_many_times_the_default_is_told(made, runs, budget, told):
    pairs = made.settled(made.pair(), budget=budget or 0.8, resolution=0.01)
    said = made.report(runs(budget=budget), pairs).warnings
    assert any("80 points, 80 times the default one here" in w for w in said) is told
