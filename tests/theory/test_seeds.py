"""The sequential paired test: published figures, brute force, its error rates and bad input."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pytest_fp16.theory.limits import ALPHA
from pytest_fp16.theory.seeds import sequential
from pytest_fp16.theory.seeds_ahead import further_runs

STEADY = 0.01 * np.array([-1.26, -0.63, 0.0, 0.63, 1.26])  # a spread of 0.01
FLOATS = st.floats(-0.5, 0.5, allow_nan=False, width=32)


def test_one_look_with_a_known_budget_is_student_t():
    losses = np.array([0.010, 0.012, 0.007])
    look = sequential(losses, [0.9, 0.9, 0.9], 0.001, 3, 0.02, grain=1e-6)
    expected = losses.mean() + stats.t.isf(0.05, 2) * losses.std(ddof=1) / math.sqrt(3)
    assert look.upper == pytest.approx(expected, abs=2e-4)  # the level is simulated
    assert look.lower == pytest.approx(2 * losses.mean() - expected, abs=2e-4)


@pytest.mark.parametrize(
    ("correlation", "resolution", "known"),
    [(0.0, 0.5, False), (0.99, 0.5, False), (0.5, 2.0, False), (0.5, 0.5, True)],
)
def test_each_wrong_verdict_at_the_budget_is_at_most_five_percent(
    settled, correlation, resolution, known
):
    random, runs, wrong = np.random.default_rng(3), 1500, {"equivalent": 0, "not equivalent": 0}
    budget = max(resolution, 2.0)
    for _ in range(runs):
        reference, own = random.standard_normal(24), random.standard_normal(8)
        candidate = correlation * reference[:8] + math.sqrt(1 - correlation**2) * own - budget
        args = (reference[:8] - candidate, reference, resolution, 8, budget if known else None)
        outcome = settled(*args).outcome
        wrong[outcome] = wrong.get(outcome, 0) + 1
    allowed = stats.binom.ppf(0.9995, runs, ALPHA)
    assert wrong["equivalent"] <= allowed
    assert wrong["not equivalent"] <= allowed


def test_no_loss_and_ruin_are_told_apart_before_the_allowance_is_spent(settled):
    random = np.random.default_rng(0)
    reference = 0.9 + 0.003 * random.standard_normal(8)
    same = settled(
        reference - (reference + 0.0005 * random.standard_normal(8)), reference, 0.003, 8
    )
    ruin = settled(reference - 0.1, reference, 0.003, 8)
    assert (same.outcome, ruin.outcome) == ("equivalent", "not equivalent")
    assert same.n < 8
    assert ruin.n < 8


def test_identical_losses_are_not_certain_at_once():
    """No spread was seen, but a metric has a grain: two equal pairs prove nothing."""
    metrics = [0.9] * 8
    looks = [sequential([0.0] * n, metrics[:n], 0.003, 8, None) for n in range(1, 9)]
    assert [look.outcome for look in looks[:2]] == ["undecided"] * 2
    assert looks[-1].outcome == "equivalent"


def test_coarse_metric_keeps_its_error_rate(settled):
    """Fifty test inputs: every loss is a multiple of two points, and most are the same."""
    random, wrong = np.random.default_rng(1), 0
    for _ in range(1000):
        losses = 0.02 * random.binomial(1, 0.75, 8)  # 1.5 points on average
        wrong += settled(losses, np.full(8, 0.9), 0.01, 8, 0.015).outcome == "equivalent"
    assert wrong <= stats.binom.ppf(0.9995, 1000, ALPHA)


@given(st.lists(FLOATS, min_size=1, max_size=8), st.floats(-0.2, 0.2), st.data())
@settings(max_examples=60, deadline=None)
def test_limits_enclose_the_mean_and_order_does_not_matter(losses, level, data):
    metrics = [0.5 + level * (i % 3) for i in range(len(losses))]
    budget = data.draw(st.sampled_from([None, 0.01, 0.2]))
    look = sequential(losses, metrics, 0.01, 8, budget)
    assert look.lower <= look.mean + (0 if budget is not None else look.budget)
    if budget is not None:
        assert look.lower <= look.mean <= look.upper
    order = data.draw(st.permutations(range(len(losses))))
    again = sequential([losses[i] for i in order], [metrics[i] for i in order], 0.01, 8, budget)
    assert again.outcome == look.outcome
    assert again.mean == pytest.approx(look.mean, abs=1e-12)


@given(st.lists(FLOATS, min_size=3, max_size=8), st.floats(0.0, 0.3))
@settings(max_examples=60, deadline=None)
def test_a_larger_loss_never_looks_better(losses, extra):
    order = {"equivalent": 0, "undecided": 1, "not equivalent": 2}
    metrics = np.linspace(0.88, 0.92, len(losses))
    before = sequential(losses, metrics, 0.01, 8, 0.05)
    after = sequential([loss + extra for loss in losses], metrics, 0.01, 8, 0.05)
    assert order[after.outcome] >= order[before.outcome]


def test_default_budget_is_the_larger_of_resolution_and_two_spreads():
    metrics = [0.90, 0.92, 0.94]
    look = sequential([0.0, 0.01, 0.0], metrics, 0.003, 8, None)
    assert look.budget == pytest.approx(2 * np.std(metrics, ddof=1))
    assert sequential([0.0, 0.01, 0.0], metrics, 0.1, 8, None).budget == 0.1


def test_further_reference_runs_sharpen_the_budget():
    metrics = 0.9 + np.concatenate([STEADY, STEADY, STEADY])
    losses = [0.044, 0.045, 0.046, 0.045, 0.0455]
    few = sequential(losses, metrics[:5], 0.001, 5, None)
    assert (few.outcome, few.runs, few.further) == ("undecided", 5, 0)
    assert further_runs(few, losses, 5) == 5
    more = sequential(losses, metrics[:10], 0.001, 5, None, further=1)
    assert more.lower > few.lower
    assert more.reference_spread == pytest.approx(few.reference_spread)
    most = sequential(losses, metrics, 0.001, 5, None, further=2)
    assert (most.outcome, most.runs, most.further) == ("not equivalent", 15, 2)
    assert further_runs(most, losses, 5) == 0


def test_further_runs_never_call_a_loss_equivalent():
    """What may be spent on that, the pairs have spent."""
    metrics = 0.9 + np.concatenate([STEADY, 3 * STEADY, 3 * STEADY])  # the budget was too small
    losses = [0.010, 0.020, 0.016, 0.012, 0.022]
    few = sequential(losses, metrics[:5], 0.001, 5, None)
    more = sequential(losses, metrics, 0.001, 5, None, further=2)
    assert (few.outcome, more.outcome) == ("undecided", "undecided")
    assert more.budget > few.budget
    assert more.upper - more.budget == pytest.approx(few.upper - few.budget)


def test_a_loss_above_the_spread_but_not_the_resolution_is_no_failure():
    """Both questions have to be answered: above the resolution, and above two spreads."""
    metrics = [0.900, 0.901, 0.902, 0.901, 0.900]
    losses = [0.0100, 0.0101, 0.0102, 0.0099, 0.0098]
    assert sequential(losses, metrics, 0.001, 5, None).outcome == "not equivalent"
    assert sequential(losses, metrics, 0.010, 5, None).outcome == "undecided"
    assert sequential(losses, metrics, 0.020, 5, None).outcome == "equivalent"


def test_further_runs_find_what_eight_pairs_cannot(settled):
    """The best single look that knows how spreads relate: a noncentral t of d̄ over the spread."""
    random, runs, found = np.random.default_rng(4), 300, 0
    for _ in range(runs):
        reference, own = random.standard_normal(24), random.standard_normal(8)
        losses = reference[:8] - own + 4  # uncorrelated, twice the budget of two spreads
        found += settled(losses, reference, 0.1, 8).outcome == "not equivalent"
    scale = math.sqrt(8 / 2)  # √n over the spread of a loss
    of_eight, of_all = (
        stats.nct.sf(stats.nct.isf(ALPHA, freedom, 2 * scale), freedom, 4 * scale)
        for freedom in (7, 23)
    )
    assert of_eight < 0.65
    assert of_all - 0.18 < found / runs < of_all + 0.05


@pytest.mark.parametrize(
    "arguments",
    [
        ([], [], 0.01, 8, None),
        ([0.0, 0.0], [0.9, 0.9], 0.01, 1, None),
        ([0.0, 0.0], [0.9], 0.01, 8, None),
        ([math.nan], [0.9], 0.01, 8, None),
        ([0.0], [math.inf], 0.01, 8, None),
        ([0.0], [0.9], -0.01, 8, None),
    ],
)
def test_bad_input_is_refused(arguments):
    with pytest.raises(ValueError, match=r"losses|metrics|finite"):
        sequential(*arguments)
