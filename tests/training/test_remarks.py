"""What a training's report says beside the verdict: of runs, canary, forecast and seeds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pytest_fp16.engine.canary import CanaryFindings
from pytest_fp16.engine.gradients.check import GradientFindings
from pytest_fp16.engine.training.canary import LARGE_DIFFERENCE
from pytest_fp16.report.model import Culprit
from pytest_fp16.training.remarks import surprises

WHERE = Culprit(
    module="", operation="sub", mechanism="cancellation", evidence="", source="model.py:7"
)
ALARM = GradientFindings("not equivalent", "the gradient is bent", culprit=WHERE)
SILENT = GradientFindings("equivalent", "nothing found")


@pytest.mark.parametrize(("mean", "told"), [(-0.02, False), (-0.05, True), (0.05, False)])
def test_a_gain_beyond_the_budget_is_no_merit_of_16_bits(made, runs, mean, told):
    said = made.report(runs(), made.settled(made.pair(), mean=mean)).warnings
    assert any("score higher by 0.05, more than the budget" in w for w in said) is told


@pytest.mark.parametrize(("gain", "told"), [(30.04, True), (1.02, False)])
def test_steps_that_lead_further_are_told_of_beside_a_gain(made, runs, gain, told):
    """As where a second moment is zero: a training of another speed, whatever it scores."""
    seen = GradientFindings("equivalent", "nothing found", figures={"weights_gain": gain})
    said = made.report(runs(), made.settled(made.pair(), mean=-0.05), seen).warnings
    assert any("(the first ones lead 30 times as far)" in w for w in said) is told


def test_a_failure_that_was_not_foreseen_is_explained(made, runs):
    silent = GradientFindings(
        "equivalent", "nothing found", figures={"points": [{"step": 12}], "total_steps": 300}
    )
    (said,) = made.report(
        runs(), made.settled(made.pair(), outcome="not equivalent"), silent
    ).warnings
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
def test_what_the_canary_says(made, runs, canary, words):
    said = made.report(runs(canary), made.settled(made.pair()))
    assert len(said.warnings) == (words is not None)
    assert words is None or words in said.warnings[0]
    assert said.run.canary == ("" if canary is None else canary.text)
    assert bool(said.run.unsupported) == bool(canary and canary.unsupported)


def test_steps_that_were_skipped_and_seeds_that_vary_nothing(made, runs):
    pairs = made.settled(
        (made.result(precision="32-true"), made.result(skipped=3)),
        (made.result(precision="32-true", seed=0), made.result(skipped=2)),
    )
    skipped, alike = made.report(runs(), pairs).warnings
    assert "skipped 5 step(s)" in skipped
    assert "seeds vary nothing here" in alike


def test_steps_that_were_skipped_for_their_batches_sought_no_scale(made, runs):
    pairs = made.settled(made.pair(skipped=5, lost=3), made.pair(seed=1, skipped=2, lost=2))
    sought, lost = made.report(runs(), pairs).warnings
    assert sought == "the gradient scaler skipped 2 step(s) while it sought its scale"
    assert "skipped 5 step(s) after it had found its scale" in lost


@pytest.mark.parametrize(("seeds", "told"), [(1, True), (2, False)])
def test_one_seed_shows_no_equivalence(made, runs, seeds, told):
    said = made.report(runs(seeds=seeds), made.settled(made.pair(), outcome="undecided")).warnings
    assert any("seeds=1 can show that a training breaks, never" in w for w in said) is told


def test_seeds_that_were_left_out_are_told(made, runs):
    pairs = made.settled(made.pair())
    pairs.notes.append("seed 1 was left out")
    assert made.report(runs(), pairs).warnings == ["seed 1 was left out"]


def surprised(verdict, forecast):
    return surprises(SimpleNamespace(verdict=verdict), forecast)


@pytest.mark.parametrize(
    ("verdict", "forecast", "words"),
    [
        ("equivalent", ALARM, "no run over seeds showed: the gradient is bent"),
        ("not equivalent", SILENT, "did not foresee this: it followed 0 of 0 steps"),
        ("inconclusive", ALARM, "expects a failure, for sub in the model itself (model.py:7)"),
    ],
)
def test_what_is_said(verdict, forecast, words):
    assert words in surprised(verdict, forecast)[0]


@pytest.mark.parametrize(
    ("verdict", "forecast"),
    [
        ("equivalent", SILENT),
        ("not equivalent", ALARM),
        ("inconclusive", SILENT),
        ("inconclusive", None),
    ],
)
def test_where_they_do_not_part_nothing_is(verdict, forecast):
    assert surprised(verdict, forecast) == []
