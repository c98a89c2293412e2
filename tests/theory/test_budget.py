"""The default budget, and the comparison with it."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from pytest_fp16.theory.budget import (
    accuracy_error,
    allowed_loss,
    allows_a_class,
    beyond_gain,
    clamp,
    guessed,
    jackknife,
    mean_error,
    within,
)


@given(
    n=st.integers(2, 10**6), budget=st.integers(0, 10**6), right=st.integers(0, 10**6),
    lost=st.integers(0, 10**6),
)  # fmt: skip
def test_within_compares_as_whole_numbers_would(n, budget, right, lost):
    budget, right, lost = budget % (n + 1), right % (n + 1), lost % (n + 1)
    reference, candidate = right / n, (right - lost) / n
    assert within(reference - candidate, budget / n, reference) == (lost <= budget)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_no_number_is_within(loss):
    assert not within(loss, 1.0, 0.9)


def test_a_gain_is_within_no_budget_at_all():
    assert within(-0.1, 0.0, 0.5)
    assert not within(1e-9, 0.0, 0.5)


def test_the_error_of_an_accuracy_is_never_zero():
    # n = 96: ã = (96 + 2) / 100, by hand
    assert accuracy_error(96, 96, 96) == pytest.approx(math.sqrt(0.98 * 0.02 / 96), rel=1e-12)
    assert accuracy_error(0, 0, 96) == pytest.approx(accuracy_error(96, 96, 96), rel=1e-12)


@given(n=st.integers(1, 10**6), right=st.integers(0, 10**6))
def test_one_decision_per_input_has_the_error_of_agresti_and_coull(n, right):
    right %= n + 1
    shrunk = (right + 2) / (n + 4)
    expected = math.sqrt(shrunk * (1 - shrunk) / n)
    assert accuracy_error(right, right, n) == pytest.approx(expected, rel=1e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_the_error_of_shares_is_that_of_the_statistics_module(shares):
    whole = [*shares, 1.0, 1.0, 0.0, 0.0]
    got = accuracy_error(math.fsum(shares), math.fsum(x * x for x in shares), len(shares))
    assert got == pytest.approx(statistics.pstdev(whole) / math.sqrt(len(shares)), rel=1e-9)


def test_without_inputs_the_error_is_not_known():
    assert accuracy_error(0.0, 0.0, 0) == math.inf


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=50))
def test_the_error_of_a_mean_is_that_of_the_statistics_module(scores):
    expected = statistics.stdev(scores) / math.sqrt(len(scores))
    got = mean_error(math.fsum(scores), math.fsum(x * x for x in scores), len(scores))
    assert got == pytest.approx(expected, rel=1e-6, abs=1e-5)  # sums of squares up to 5e5


@pytest.mark.parametrize("n", [0, 1])
def test_one_score_has_no_known_error(n):
    assert mean_error(1.0, 1.0, n) == math.inf


@pytest.mark.parametrize(
    ("error", "scale", "expected"),
    [(0.0, 1, 0.001), (0.005, 1, 0.005), (math.inf, 1, 0.01), (0.005, 100, 0.1)],
)
def test_the_default_is_clamped_to_the_scale_of_the_metric(error, scale, expected):
    usual = clamp(error, scale)
    assert usual == pytest.approx(expected)
    assert allowed_loss(None, 0.9, usual) == (usual, "default")


@pytest.mark.parametrize("right", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("n", [20, 80, 120, 10_000])
def test_one_decision_of_a_few_may_be_lost_if_the_data_cannot_resolve_it(n, right):
    error = accuracy_error(right * n, right * n, n)
    budget = clamp(error, grain=1 / n)
    assert 1 / n <= budget < max(2 / n, 0.01 + 1e-9)
    assert budget <= max(error, 0.001)
    if n > 150:
        assert budget == clamp(error)


def test_a_budget_that_is_given_is_taken_as_it_is():
    assert allowed_loss(0.25, 0.9, 0.005) == (0.25, "absolute")
    assert allowed_loss("0.5%", -40.0, 0.005) == (pytest.approx(0.2), "relative")


@given(st.integers(2, 1000), st.integers(1, 10_000))
def test_guesses_reach_chance_and_two_deviations_of_their_count(classes, n):
    over = n * (guessed(classes, n) - 1 / classes)
    assert over == pytest.approx(2 * binom.std(n, 1 / classes), rel=1e-6)


@pytest.mark.parametrize(
    ("gain", "budget", "usual", "error", "beyond"),
    [
        (0.11, 0.01, 0.001, 0.0, True),
        (0.10, 0.01, 0.001, 0.0, False),
        (0.01, 0.0, 0.001, 0.0, False),  # of no budget at all, ten are gained by anything
        (0.02, 0.0, 0.001, 0.0, True),
        (0.02, 0.0, 0.001, 0.05, False),
        (0.02, 0.0, 0.001, math.inf, True),  # of a single input
        (-0.5, 0.01, 0.001, 0.0, False),
        (math.inf, 0.01, 0.001, 0.0, True),
        (math.nan, 0.01, 0.001, 0.0, False),
    ],
)
def test_a_gain_that_rounding_cannot_explain(gain, budget, usual, error, beyond):
    assert beyond_gain(gain, budget, usual, error) is beyond


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=50))
def test_a_mean_with_one_left_out_in_turn_has_the_error_of_the_mean(scores):
    without = [(math.fsum(scores) - x) / (len(scores) - 1) for x in scores]
    squares = math.fsum(x * x for x in scores)
    wanted = mean_error(math.fsum(scores), squares, len(scores))
    assert jackknife(without) == pytest.approx(wanted, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("without", [[], [1.0], [1.0, math.nan, 2.0], [math.inf, 1.0]])
def test_a_jackknife_of_no_numbers_knows_no_error(without):
    assert jackknife(without) == math.inf


@pytest.mark.parametrize(
    ("budget", "asked", "allows"), [(0.02, True, True), (0.01, True, False), (0.02, False, False)]
)
def test_a_wide_budget_of_the_users_alone_allows_a_class_to_be_lost(budget, asked, allows):
    assert allows_a_class(budget, asked) == allows
