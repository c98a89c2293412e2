"""Near a decision means: a change within the error could change its outcome, and beyond it not."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pytest_fp16.engine.tracing.decisions import (
    DECISION_SIGMAS,
    DECISION_ULPS,
    near_decision,
    predicted_error,
)
from pytest_fp16.theory.rounding import BFLOAT16, FLOAT16

ERROR = 0.01  # so that "near" is within 0.06


def near(name, *args, fmt=FLOAT16, error=ERROR, **kwargs):
    found = near_decision(name, args, kwargs, fmt, error)
    return None if found is None else found.tolist()


values = st.lists(
    st.integers(-400, 400).map(lambda i: i / 40), min_size=2, max_size=7, unique=True
)  # steps of 0.025


@pytest.mark.parametrize("name", ["gt", "lt", "ge", "le", "eq", "ne"])
def test_a_comparison_is_near_where_its_sides_are(name):
    x = torch.tensor([0.0, 0.95, 1.05, 2.0])
    assert near(name, x, torch.ones(4)) == [False, True, True, False]
    assert near(name, x, 1.0) == [False, True, True, False]
    assert near(name, x, other=torch.tensor(1.0)) == [False, True, True, False]


@pytest.mark.parametrize("name", ["eq", "ne", "ge"])
def test_a_value_is_no_decision_beside_itself(name):
    x = torch.tensor([0.0, torch.nan])
    assert near(name, x, x) is None
    assert near(name, x, x.clone()) == [True, False]


@pytest.mark.parametrize("fmt", [FLOAT16, BFLOAT16])
def test_without_a_predicted_error_near_is_a_few_ulps(fmt):
    ulps = 2 * fmt.unit_roundoff  # of one
    x = 1 + torch.tensor([0.5, 2.0]) * DECISION_ULPS * ulps
    assert near("gt", x, 1.0, fmt=fmt, error=None) == [True, False]


def test_a_decision_in_float64_is_as_near_as_it_would_be_in_float32():
    x = torch.tensor([1.0, 1.25], dtype=torch.float64)
    assert near("gt", x, 1.0, error=None) == [True, False]
    assert near("lt", torch.tensor(1.0, dtype=torch.float64), torch.inf, error=None) is False


def test_values_without_error_leave_nothing_open_not_even_ties():
    assert near("gt", torch.tensor([1.0, 1 + 1e-6]), 1.0, error=0.0) == [False, False]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("floor", [True, False, False]),
        ("ceil", [True, False, False]),
        ("trunc", [True, False, False]),
        ("_to_copy", [True, False, False]),
        ("round", [False, True, False]),
        ("sign", [False, False, False]),
    ],
)
def test_integer_parts_change_at_integers_and_rounding_between(name, expected):
    assert near(name, torch.tensor([1.98, 1.52, 1.25])) == expected


@pytest.mark.parametrize(
    ("name", "rest", "kwargs", "expected"),
    [
        ("frac", (), {}, [False, False, True, False]),
        ("fmod", (1.0,), {}, [False, False, True, False]),
        ("remainder", (1.0,), {}, [True, False, True, False]),
        ("remainder", (torch.tensor([1.0, 0.5, 0.7, 1.25]),), {}, [True, True, False, True]),
        ("floor_divide", (0.5,), {}, [True, True, True, False]),
        ("div", (0.5,), {"rounding_mode": "floor"}, [True, True, True, False]),
        ("div", (0.5,), {"rounding_mode": "trunc"}, [False, True, True, False]),
        ("trunc", (), {}, [False, False, True, False]),
        ("_to_copy", (), {"dtype": torch.int64}, [False, False, True, False]),
        ("_to_copy", (), {"dtype": torch.bool}, [True, False, False, False]),
        ("signbit", (), {}, [True, False, False, False]),
        ("hardshrink", (1.2,), {}, [False, False, False, True]),
        ("threshold", (0.5, 0.0), {}, [False, True, False, False]),
    ],
)
def test_a_staircase_or_saw_changes_at_its_steps(name, rest, kwargs, expected):
    x = torch.tensor([0.05, 0.55, 1.98, 1.25])
    assert near(name, x, *rest, error=0.012, **kwargs) == expected


def test_digits_that_are_rounded_away_have_steps_of_their_own():
    x = torch.tensor([0.05, 0.55, 1.98, 1.25])
    assert near("round", x, error=0.002, decimals=1) == [True, True, False, True]


def test_a_threshold_that_meets_its_value_is_none():
    assert near("threshold", torch.tensor([0.01, 0.0]), 0.0, 0.0) is None


def test_a_sign_that_is_copied_is_that_of_the_other_operand():
    sizes, signs = torch.tensor([1.0, 1.0, 0.02, 0.0]), torch.tensor([0.05, -2.0, 0.02, 0.01])
    assert near("copysign", sizes, signs) == [True, False, False, False]


def test_what_is_called_close_or_equal_changes_at_its_tolerance():
    x = torch.tensor([1.0, 1.4, 1.45, 1.55, 1.7, 1.0])
    close = near("allclose", x, torch.ones(6), 0.2, atol=0.3)
    assert close == [False, False, True, True, False, False]
    assert near("allclose", torch.tensor([1.0, 1.1]), torch.ones(2)) == [True, False]
    assert near("equal", x, torch.ones(6)) == [True, False, False, False, False, True]
    assert near("equal", x, torch.ones(5)) is None


def test_signs_change_at_zero():
    for name in ("sign", "sgn"):
        assert near(name, torch.tensor([-0.05, 0.05, 0.5])) == [True, True, False]
    assert near("heaviside", torch.tensor([0.05, 0.5]), torch.zeros(2)) == [True, False]


def test_buckets_change_at_their_boundaries():
    boundaries, x = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([[0.5, 1.02], [5.0, 1.98]])
    expected = [[False, True], [False, True]]
    assert near("bucketize", x, boundaries) == expected
    assert near("searchsorted", boundaries, x) == expected
    assert near("bucketize", torch.tensor(1), boundaries) is None


def as_row(x):
    return torch.tensor(x, dtype=torch.float32)


@given(values)
def test_the_largest_is_near_where_the_second_is(x):
    first, second = sorted(x, reverse=True)[:2]
    expected = first - second <= DECISION_SIGMAS * ERROR + 1e-6
    for name in ("argmax", "max"):
        assert near(name, as_row(x), -1) == [expected]
        assert near(name, -as_row(x).unsqueeze(0), 1) == [[sorted(x)[1] - sorted(x)[0] < 0.0601]]
        assert near(name, as_row(x).reshape(1, -1)) == [expected]  # without a dimension: over all
    for name in ("argmin", "min"):
        assert near(name, -as_row(x), dim=-1) == [expected]


@given(values, st.data(), st.booleans())
def test_a_top_k_is_near_where_the_last_taken_and_the_first_left_are(x, data, largest):
    k = data.draw(st.integers(1, len(x)))
    found = near("topk", as_row(x), k, -1, largest)
    if k == len(x):
        assert found is None  # all are taken
        return
    ranked = sorted(x, reverse=largest)
    assert found == [abs(ranked[k - 1] - ranked[k]) <= DECISION_SIGMAS * ERROR + 1e-6]
    assert near("topk", as_row(x), k=k, dim=-1, largest=largest) == found


@given(values)
def test_an_order_is_near_where_any_neighbours_are(x):
    ranked = sorted(x)
    expected = [b - a <= DECISION_SIGMAS * ERROR + 1e-6 for a, b in pairwise(ranked)]
    for name in ("sort", "argsort", "kthvalue", "median", "mode"):
        rest = (1, -1) if name == "kthvalue" else (-1,)
        assert near(name, as_row(x), *rest) == expected


def test_the_dimension_that_is_searched_comes_last():
    x = torch.tensor([[0.0, 5.0], [1.0, 5.02], [3.0, 0.0]])
    assert near("max", x, 0) == [[False], [True]]
    assert near("max", x, dim=0) == [[False], [True]]


def test_where_there_is_nothing_to_decide():
    x = torch.ones(3)
    assert near("mul", x, x) is None
    assert near("gt", torch.arange(3), 1) is None
    assert near("gt", torch.ones(0), 1.0) is None
    assert near("max", torch.ones(1), 0) is None  # one value has no rival
    assert near("gt", 1.0, x) is None


def test_an_error_is_taken_for_the_decision_it_was_measured_at_alone():
    known = [(("a", "gt"), 0.5), (("b", "topk"), 0.25)]
    assert predicted_error(known, 0, ("a", "gt")) == 0.5
    assert predicted_error(known, 1, ("b", "topk")) == 0.25
    assert predicted_error(known, 1, ("a", "gt")) is None  # the program went elsewhere
    assert predicted_error(known, 2, ("b", "topk")) is None
    assert predicted_error([], 0, ("a", "gt")) is None
