"""Limits of a mean beside an estimated budget: their parts, against simulation and by hand."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from pytest_fp16.theory.limits import (
    Levels,
    Sample,
    freedom_of,
    levels_at,
    lower_limit,
    spread_of_losses,
    spread_of_runs,
    upper_limit,
)

LEVELS = Levels(0.05, 0.05, 0.05)


def test_the_spread_of_further_runs_is_about_their_own_mean():
    """About a common one it would grow with the mean of the first, with which the pairs err."""
    one = np.array([0.90, 0.92, 0.91, 0.93])
    assert spread_of_runs(one, 4) == pytest.approx(one.std(ddof=1))
    both = np.concatenate([one, one - 0.2])
    assert spread_of_runs(both, 4) == pytest.approx(math.sqrt(2 * one.var() * 4 / 6))
    assert [freedom_of(one, 4), freedom_of(both, 4)] == [3, 6]
    assert math.isnan(spread_of_runs(one[:1], 1))


def test_that_spread_says_nothing_of_the_mean_of_the_pairs():
    z = np.random.default_rng(0).standard_normal((4000, 12))
    far = np.abs(z[:, :4].mean(1)) > 0.7
    ours, plain = (
        np.array([f(row) for row in z])
        for f in (lambda r: spread_of_runs(r, 4), lambda r: r.std(ddof=1))
    )
    assert ours[far].mean() == pytest.approx(ours[~far].mean(), rel=0.02)
    assert plain[far].mean() > 1.04 * plain[~far].mean()


def test_a_given_budget_leaves_student_t():
    sample = Sample(0.01, 0.004, 5, None, 4)
    half = stats.t.isf(0.05, 4) * 0.004 / math.sqrt(5)
    assert upper_limit(sample, 0.02, 0.001, LEVELS) == pytest.approx(0.01 + half)
    assert lower_limit(sample, 0.02, 0.001, LEVELS) == pytest.approx(0.01 - half)


@pytest.mark.parametrize("freedom", [4, 14, 400])
def test_a_mean_that_is_known_is_held_against_the_spread_alone(freedom):
    """Zou and Donner's limit of a multiple of a spread is then the exact one, by χ²."""
    sample = Sample(0.05, 0.0, 5, 0.01, freedom)
    high = 0.02 * math.sqrt(freedom / stats.chi2.ppf(0.05, freedom))
    found = lower_limit(sample, 0.02, 0.0, LEVELS)
    assert found == pytest.approx(0.02 + 0.05 - high)


def test_equal_losses_have_the_spread_of_a_grain():
    same, metrics = np.array([0.01, 0.01, 0.01]), np.array([0.90, 0.91, 0.92])
    assert spread_of_losses(same, metrics, 0.0, 0.02) == pytest.approx(0.02 / math.sqrt(12))
    assert spread_of_losses(same, metrics, 0.0, 0.0) == pytest.approx(0.01 / math.sqrt(12))
    assert math.isnan(spread_of_losses(same[:1], metrics, 0.0, 0.0))


def test_levels_grow_to_the_last_look_and_need_three_pairs():
    assert levels_at(2, 8, 0, known=False) is None
    assert levels_at(1, 1, 0, known=True) is None
    looks = [levels_at(n, 8, 0, known=False) for n in range(3, 9)]
    looks += [levels_at(8, 8, further, known=False) for further in (1, 2)]
    assert [a.above < b.above for a, b in pairwise(looks)] == [True] * 7
    assert [a.spread < b.spread for a, b in pairwise(looks)] == [True] * 5 + [False] * 2
    assert looks[-1][:2] == looks[5][:2]  # pairs have spent everything below
    assert math.isnan(levels_at(8, 8, 0, known=True).spread)
