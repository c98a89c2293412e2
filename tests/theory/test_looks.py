"""Levels of repeated looks: what they spend, on samples they have not seen."""

import math

import numpy as np
import pytest
from scipy import stats

from pytest_fp16.theory.looks import nominal_levels

ALPHA = 0.05


def test_first_level_is_what_the_spending_function_spends():
    for allowance in (3, 8, 16):
        levels = nominal_levels(allowance, ALPHA)
        assert list(levels) == list(range(3, allowance + 1))
        # at the first look nothing has been spent before, so the level is the spending itself
        assert levels[3] == pytest.approx(ALPHA * (3 / allowance) ** 3, rel=0.15)
        assert sum(levels.values()) >= ALPHA - 1e-3  # Bonferroni: no less can be spent


def test_levels_spend_five_percent_on_fresh_samples():
    levels = nominal_levels(8, ALPHA)
    z = np.random.default_rng(7).standard_normal((40_000, 8))
    crossed = np.zeros(len(z), bool)
    for n, level in levels.items():
        t = z[:, :n].mean(1) / z[:, :n].std(1, ddof=1) * math.sqrt(n)
        crossed |= t > stats.t.isf(level, n - 1)
    assert crossed.mean() == pytest.approx(ALPHA, abs=0.004)


def test_levels_hold_for_small_spreads_too():
    levels = nominal_levels(8, ALPHA, small_spread=True)
    z = np.random.default_rng(8).standard_normal((40_000, 8))
    crossed = np.zeros(len(z), bool)
    for n, level in levels.items():
        squares = z[:, :n].var(1, ddof=1) * (n - 1)
        crossed |= stats.chi2.cdf(squares, n - 1) < level
    assert crossed.mean() == pytest.approx(ALPHA, abs=0.004)
    assert all(levels[n] < known for n, known in nominal_levels(8, ALPHA).items())


def test_one_pair_has_no_look():
    assert nominal_levels(1, ALPHA) == {}


def test_looks_at_further_runs_spend_what_was_kept_for_them():
    """Further runs leave the mean as it is, and tell the spread: no more than 5 % are crossed."""
    levels = nominal_levels(8, ALPHA, small_spread=True, kept=0.5)
    assert list(levels) == [3, 4, 5, 6, 7, 8, 16, 24]
    z = np.random.default_rng(9).standard_normal((40_000, 24))
    pairs, spreads, crossed_at_8 = (np.zeros(len(z), bool) for _ in range(3))
    for n, level in levels.items():
        seen = z[:, : min(n, 8)]
        t = seen.mean(1) / seen.std(1, ddof=1) * math.sqrt(seen.shape[1])
        pairs |= t > stats.t.isf(level, seen.shape[1] - 1)
        squares = z[:, :n].var(1, ddof=1) * (n - 1)
        spreads |= stats.chi2.cdf(squares, n - 1) < level
        if n == 8:
            crossed_at_8 = spreads.copy()
    assert crossed_at_8.mean() == pytest.approx(ALPHA / 2, abs=0.004)
    assert spreads.mean() == pytest.approx(ALPHA, abs=0.004)
    assert pairs.mean() < ALPHA
