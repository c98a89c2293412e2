"""A training's report says what its pairs of runs say, each figure where the schema has it."""

from __future__ import annotations

import json
import math

import pytest
import torch

from pytest_fp16 import Settings
from pytest_fp16.engine.canary import CanaryFindings
from pytest_fp16.engine.gradients.check import GradientFindings
from pytest_fp16.engine.randomness import preserved_state
from pytest_fp16.engine.training.input import sound
from pytest_fp16.engine.training.runs import Runs
from pytest_fp16.engine.training.score import Score
from pytest_fp16.engine.training.train import RunResult
from pytest_fp16.precision import PRECISIONS
from pytest_fp16.theory.seeds import Look
from pytest_fp16.training.pairs import Pairs
from pytest_fp16.training.report import LARGE_DIFFERENCE, how_it_ended, report_of

CPU = torch.device("cpu")
ROWS = [[3.0, 1.0, 0.0], [0.0, 2.0, 1.5]]


@pytest.fixture
def runs(digits_training):
    """Makes the runs of a training, none of them made, with a canary that is known."""

    def make(canary=None, **settings):
        with preserved_state():
            given = Settings().with_(device="cpu", precisions=("16-true",), **settings)
            made = Runs(sound(digits_training(), CPU), given, CPU)
        made.canary = lambda precision: canary
        return made

    return make


def score(value, rows=ROWS):
    predictions = torch.tensor(rows).unsqueeze(1)
    return Score("accuracy", value, 0.01, 600, True, predictions, 1 / 600, 0.1)


def result(value=0.9, seed=0, precision="16-true", **changes):
    given = {
        "score": score(value),
        "losses": [1.0, 0.5 + seed / 10],
        "dtypes": {"float16": 40, "float32": 10},
        "state_dtypes": {"parameters": ["float16"], "optimizer": []},
        **changes,
    }
    return RunResult(precision, seed, **given)


def pair(reference=0.95, candidate=0.94, seed=0, **changes):
    return result(reference, seed, "32-true"), result(candidate, seed, **changes)


def settled(*found, outcome="equivalent", **look):
    known = {"n": len(found), "mean": 0.01, "lower": -0.01, "upper": 0.02, "budget": 0.03}
    pairs = Pairs(PRECISIONS["16-true"], list(found))
    pairs.look = Look(outcome=outcome, **{**known, **look})
    return pairs


def report(runs, pairs, forecast=None):
    return report_of(runs, pairs, forecast, None, None)


def check(said, name):
    return next(c for c in said.checks if c.name == name)


def test_pairs_that_agree(runs):
    said = report(runs(), settled(pair(0.95, 0.94), pair(0.93, 0.94, seed=1)))
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
def test_the_proof_that_16_bit_ran(runs, dtypes, passed):
    ran = check(report(runs(), settled(pair(dtypes=dtypes))), "16 bit ran")
    assert ran.passed is passed
    assert f"{dtypes.get('float16', 0)} of 50" in ran.detail
    assert "parameters float16, optimizer state none" in ran.detail


@pytest.mark.parametrize(
    ("given", "budget", "origin"),
    [(None, 0.01, "default"), (0.2, 0.2, "absolute"), ("2%", 0.019, "relative")],
)
def test_a_run_that_broke_is_the_verdict(runs, given, budget, origin):
    pairs = Pairs(PRECISIONS["16-true"], [pair(seed=0)])
    pairs.broke = pair(0.95, 0.1, seed=1, ended="nan", failed_at=(2, 6), error="loss is nan")
    said = report(runs(budget=given), pairs)
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
def test_how_it_ended_in_words(ended, words):
    said = how_it_ended(result(ended=ended, seed=4))
    assert said.startswith("the 16-true run of seed 4 ")
    assert words in said
    assert said.endswith("its 32-bit twin did not")


def test_what_more_seeds_would_settle(runs):
    pairs = settled(pair(), outcome="undecided", lower=-math.inf, upper=math.inf)
    pairs.missing = 3
    said = report(runs(), pairs)
    assert said.verdict == "inconclusive"
    seeds = check(said, "same over seeds")
    assert not seeds.passed
    assert "no limits yet" in seeds.detail
    assert "about 3 more seed(s)" in seeds.detail
    assert said.training["seeds_missing"] == 3


def test_a_run_that_could_not_be_made(runs):
    pairs = Pairs(PRECISIONS["16-true"], unmade="16-true, seed 0: out of memory")
    said = report(runs(), pairs)
    assert said.verdict == "inconclusive"
    assert check(said, "same over seeds").detail == "16-true, seed 0: out of memory"
    assert said.metric is None
    assert said.inputs == 0


def test_the_papers_figures_come_from_the_trained_pairs(runs):
    moved = [[2.0, 1.0, 0.0], [0.0, 1.0, 1.5]]  # the second answer changes
    said = report(runs(), settled(pair(score=score(0.9, moved))))
    one, two = (torch.tensor(r).softmax(-1) for r in (ROWS, moved))
    delta = (one - two).abs().amax(-1)
    top = one.sort(-1, descending=True).values
    gamma = top[:, 0] - top[:, 1]
    assert said.delta_max == pytest.approx(float(delta.max()), rel=1e-5)
    assert said.gamma_median == pytest.approx(float(gamma.median()), rel=1e-5)
    assert said.certified.measured == pytest.approx(float((gamma > 2 * delta).float().mean()))


def test_predictions_that_cannot_be_compared_give_no_figures(runs):
    said = report(runs(), settled(pair(score=score(0.9, [[1.0, 0.0]]))))
    assert said.delta_max is None
    assert said.certified.measured is None


def test_the_gradient_check_is_the_forecast_and_a_false_alarm_a_warning(runs):
    alarm = GradientFindings("not equivalent", "weights stand still", figures={"rho": 2.0})
    said = report(runs(), settled(pair()), alarm)
    assert (said.forecast.verdict, said.forecast.method) == ("not equivalent", "gradient check")
    assert said.training["gradient_check"] == {"rho": 2.0}
    assert (
        "expected a failure that no run over seeds showed: weights stand still" in said.warnings[0]
    )
    points = {"points": [{"step": 0}, {"step": 12}], "total_steps": 300}
    silent = GradientFindings("equivalent", "nothing found", figures=points)
    assert not report(runs(), settled(pair()), silent).warnings


@pytest.mark.parametrize(("mean", "told"), [(-0.02, False), (-0.05, True), (0.05, False)])
def test_a_gain_beyond_the_budget_is_no_merit_of_16_bits(runs, mean, told):
    said = report(runs(), settled(pair(), mean=mean)).warnings
    assert any("score higher by 0.05, more than the budget" in w for w in said) is told


def test_a_failure_that_was_not_foreseen_is_explained(runs):
    silent = GradientFindings(
        "equivalent", "nothing found", figures={"points": [{"step": 12}], "total_steps": 300}
    )
    (said,) = report(runs(), settled(pair(), outcome="not equivalent"), silent).warnings
    assert "did not foresee this: it followed 12 of 300 steps" in said


def found(text="the canary on cpu", **known):
    return CanaryFindings(text, **known)


@pytest.mark.parametrize(
    ("canary", "words"),
    [
        (None, None),
        (found(difference=LARGE_DIFFERENCE / 2), None),
        (found(difference=2 * LARGE_DIFFERENCE), "own kernels part"),
        (found(error=ValueError("a"), unsupported=True), "the verdict speaks for cuda"),
        (found(error=ValueError("a"), emulation_error=ValueError("a")), None),
    ],
)
def test_what_the_canary_says(runs, canary, words):
    said = report(runs(canary), settled(pair()))
    assert len(said.warnings) == (words is not None)
    assert words is None or words in said.warnings[0]
    assert said.run.canary == ("" if canary is None else canary.text)
    assert bool(said.run.unsupported) == bool(canary and canary.unsupported)


def test_steps_that_were_skipped_and_seeds_that_vary_nothing(runs):
    pairs = settled(
        (result(precision="32-true"), result(skipped=3)),
        (result(precision="32-true", seed=0), result(skipped=2)),
    )
    skipped, alike = report(runs(), pairs).warnings
    assert "skipped 5 step(s)" in skipped
    assert "seeds vary nothing here" in alike


def test_steps_that_were_skipped_for_their_batches_sought_no_scale(runs):
    pairs = settled(pair(skipped=5, lost=3), pair(seed=1, skipped=2, lost=2))
    sought, lost = report(runs(), pairs).warnings
    assert sought == "the gradient scaler skipped 2 step(s) while it sought its scale"
    assert "skipped 5 step(s) after it had found its scale" in lost


def test_seeds_that_were_left_out_are_told(runs):
    pairs = settled(pair())
    pairs.notes.append("seed 1 was left out")
    assert report(runs(), pairs).warnings == ["seed 1 was left out"]
