"""When a quantity that falls arrives at a threshold."""

import math

import pytest
import torch

from pytest_fp16.theory.decline import arrives, comes_down, falls_below, returns


def decline(steps, rate=0.1, noise=0.0):
    random = torch.Generator().manual_seed(0)
    jitter = noise * torch.randn(steps, generator=random)
    return [math.exp(-rate * step + float(j)) for step, j in enumerate(jitter)]


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_an_exponential_decline_is_extrapolated(noise):
    assert arrives(decline(40, noise=noise), 1e-8, 1000) == pytest.approx(184, rel=0.05)
    assert arrives(decline(40, noise=noise), 1e-8, 100) is None


def test_what_jumps_about_is_no_decline():
    assert arrives(decline(40, rate=0.02, noise=0.5), 1e-8, 10**6) is None


@pytest.mark.parametrize(
    "values",
    [
        *([1.0] * 40, decline(40, rate=-0.1), [], [0.0] * 40, [math.nan] * 40, decline(6)),
        decline(30) + [math.inf] * 10,  # a loss that float32 loses, too
    ],
)
def test_what_does_not_fall_never_arrives(values):
    assert arrives(values, 1e-8, 10**6) is None


def test_steps_without_a_value_are_left_out():
    values = [v if step % 3 else math.nan for step, v in enumerate(decline(60))]
    assert arrives(values, 1e-8, 1000) == pytest.approx(184, abs=2)


def test_the_first_half_is_not_asked():
    values = [1.0] * 30 + decline(30)
    assert arrives(values, 1e-8, 1000) == pytest.approx(30 + 184, abs=2)


@pytest.mark.parametrize(
    ("bound", "total", "comes_back"), [(50.0, 200, True), (50.0, 60, False), (99.0, 200, False)]
)
def test_what_is_above_a_bound_returns_below_it_or_does_not(bound, total, comes_back):
    """It has fallen from 100 by a hundredth a step, and will be at 50 after 69."""
    assert returns([100 * 0.99**step for step in range(20)], bound, total) is comes_back


@pytest.mark.parametrize(
    ("measured", "reached", "total", "below"),
    [
        ([(0, 3.0), (10, 2.0), (20, 1.0)], 4.0, 30, True),  # one more halving, and four are two
        ([(0, 3.0), (10, 2.0), (20, 1.0)], 4.0, 29, False),
        ([(0, 3.0), (10, 2.0), (20, 1.0)], 5.4, 40, True),
        ([(0, 3.0), (10, 2.0), (20, 1.0)], 5.5, 10**6, False),  # more than e times as far
        ([(0, 3.0), (10, 3.0)], 4.0, 10**6, False),
        ([(0, 3.0)], 4.0, 10**6, False),
        ([(5, 3.0), (5, 2.0)], 4.0, 10**6, False),
        ([(0, 3.0), (10, 0.0)], 4.0, 10**6, False),
        ([(0, 3.0), (10, 2.0)], math.inf, 10**6, False),
        ([(0, 2.0), (10, 1.0)], 4.0, 5, False),
    ],
)
def test_what_is_measured_again_is_followed_down(measured, reached, total, below):
    assert falls_below(measured, reached, 2.0, total) is below


@pytest.mark.parametrize(
    ("values", "down"),
    [
        ([0.0, 2.0, *decline(20, noise=0.3)], True),  # jumps up, and comes down again
        (decline(40, rate=-0.1, noise=0.5), False),
        ([0.0, *decline(60, rate=0.0, noise=0.5)], False),  # stays where it jumped to
        ([3.0, 2.0, 1.0], False),  # too few to tell
        ([1.0] * 40, False),
        ([], False),
    ],
)
def test_what_falls_behind_its_largest_value_comes_down(values, down):
    assert comes_down(values) is down


def test_noise_without_a_trend_comes_down_one_time_in_twenty_at_most():
    random = torch.Generator().manual_seed(1)
    series = torch.randn(2000, 50, generator=random).tolist()
    rate = sum(map(comes_down, series)) / len(series)
    assert 0 < rate < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)
