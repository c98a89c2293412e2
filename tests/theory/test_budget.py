"""The default budget, and the comparison with it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_fp16.theory.budget import within


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
