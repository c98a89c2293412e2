import numpy as np
import pytest

from pytest_fp16.theory.standardised import (
    GRANTED_BIAS,
    GRANTED_SPREAD,
    LEVEL,
    ErrorTotals,
    mean_allowed,
    spread_allowed,
)

SIZES = pytest.mark.parametrize("n", [5, 60, 1000])
TRIALS = 20000


def spread(errors):
    totals = ErrorTotals()
    totals.add(errors, 0, len(errors))
    return totals.spread


def simulated(n, scale, shift=0.0):
    rng = np.random.default_rng(n)
    return rng.normal(shift, scale, (TRIALS, n)) if n < 500 else rng.normal(shift, scale, (2000, n))


@SIZES
def test_spread_allowed_is_exceeded_as_rarely_as_the_level_says(n):
    errors = simulated(n, GRANTED_SPREAD)
    rms = np.sqrt((errors**2).mean(1))
    expected = 1 - LEVEL
    noise = 5 * np.sqrt(expected / len(errors))

    assert (rms > spread_allowed(n)).mean() == pytest.approx(expected, abs=noise)


@SIZES
@pytest.mark.parametrize("sign", [-1, 1])
def test_mean_allowed_holds_at_the_largest_granted_bias(n, sign):
    means = simulated(n, GRANTED_SPREAD, sign * GRANTED_BIAS).mean(1)
    one_sided = (1 - LEVEL) / 2

    assert (np.abs(means) > mean_allowed(n)).mean() <= one_sided + 5 * np.sqrt(
        one_sided / len(means)
    )


def test_a_defect_of_the_size_seen_is_caught_with_a_few_dozen_inputs():
    truncating = np.random.default_rng(0).normal(-1.6, 1.0, 100)
    sound = np.random.default_rng(1).normal(0.02, 1.0, 100)

    assert abs(truncating.mean()) > mean_allowed(100)
    assert abs(sound.mean()) < mean_allowed(100)
    assert spread(sound) < spread_allowed(100)
    assert spread(2.2 * sound) > spread_allowed(100)


def test_limits_shrink_to_what_is_granted_as_inputs_grow():
    assert spread_allowed(10) > spread_allowed(100) > spread_allowed(10**6) > GRANTED_SPREAD
    assert mean_allowed(10) > mean_allowed(100) > mean_allowed(10**6) > GRANTED_BIAS
    assert spread_allowed(10**6) == pytest.approx(GRANTED_SPREAD, rel=0.01)


def test_spread_is_the_root_mean_square():
    assert spread(np.array([3.0, -4.0])) == pytest.approx(np.sqrt(12.5))
