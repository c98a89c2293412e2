import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_fp16.theory.flips import LEVEL, FlipCount, distribution, flip_probability

probability = st.floats(0, 1) | st.floats(0, 1e-8)


def flips_allowed(p, *level):
    count = FlipCount()
    count.add(p)
    return count.allowed(*level)


def enumerated(p):
    pmf = np.zeros(len(p) + 1)
    for outcome in itertools.product((0, 1), repeat=len(p)):
        pmf[sum(outcome)] += math.prod(q if o else 1 - q for q, o in zip(p, outcome, strict=True))
    return pmf


@given(p=st.lists(probability, max_size=9))
def test_distribution_is_the_sum_over_all_outcomes(p):
    pmf, expected = distribution(np.array(p)), enumerated(p)
    size = max(len(pmf), len(expected))

    np.testing.assert_allclose(
        np.pad(pmf, (0, size - len(pmf))), np.pad(expected, (0, size - len(expected))), atol=1e-9
    )


@pytest.mark.parametrize("n", [65, 300, 5000])
def test_many_decisions_have_the_mean_and_variance_of_their_sum(n):
    p = np.random.default_rng(n).uniform(0, 0.2, n)
    pmf = distribution(p)
    k = np.arange(len(pmf))
    mean = (k * pmf).sum()

    assert pmf.sum() == pytest.approx(1)
    assert mean == pytest.approx(p.sum(), rel=1e-6)
    assert ((k - mean) ** 2 * pmf).sum() == pytest.approx((p * (1 - p)).sum(), rel=1e-6)


@given(p=st.lists(probability, max_size=9), level=st.floats(0.5, 0.9999))
def test_flips_allowed_is_the_smallest_number_that_covers_the_level(p, level):
    cumulative = np.cumsum(enumerated(p))
    k = flips_allowed(np.array(p), level)

    assert cumulative[min(k, len(p))] >= level - 1e-9
    assert k == 0 or cumulative[k - 1] < level + 1e-9


def test_flips_allowed_of_decisions_that_cannot_or_must_flip():
    assert flips_allowed(np.zeros(100)) == 0
    assert flips_allowed(np.ones(3)) == 3
    assert flips_allowed(np.zeros(0)) == 0


def test_flips_allowed_covers_simulated_healthy_models():
    rng = np.random.default_rng(0)
    p = rng.uniform(0, 0.05, 400)
    flips = (rng.random((20000, 400)) < p).sum(1)
    beyond = (flips > flips_allowed(p)).mean()

    assert beyond <= (1 - LEVEL) * 2
    assert (flips > flips_allowed(p) - 1).mean() > (1 - LEVEL) / 2


def test_flip_probability_is_the_normal_tail():
    p = flip_probability(np.array([0.0, 1.0, -1.0, 3.0]), np.ones(4))

    np.testing.assert_allclose(p, [0.5, 0.158655, 0.841345, 0.0013499], rtol=1e-4)


@pytest.mark.parametrize(
    ("margin", "sigma", "expected"),
    [
        (1.0, 0.0, 0.0),
        (-1.0, 0.0, 1.0),
        (0.0, 0.0, 0.5),
        (np.inf, 1.0, 0.0),
        (np.inf, 0.0, 0.0),
        (np.nan, 1.0, 1.0),
        (1.0, np.nan, 1.0),
        (1.0, np.inf, 1.0),
        (np.inf, np.inf, 1.0),
        (-np.inf, 1.0, 1.0),
    ],
)
def test_flip_probability_without_a_finite_error(margin, sigma, expected):
    assert flip_probability(np.array([margin]), np.array([sigma])).item() == expected
