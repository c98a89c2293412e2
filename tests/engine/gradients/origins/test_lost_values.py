"""What exact arithmetic makes of an operation whose values were lost."""

import pytest
import torch

from pytest_fp16.engine.gradients.origins.lost_values import (
    finite,
    has_nan,
    in_float64,
    losing_part,
    mechanism_of_loss,
    zero_where,
)


def half(*values):
    return torch.tensor(values, dtype=torch.float16)


def sparse(*values):
    at = torch.arange(len(values))[None]
    return torch.sparse_coo_tensor(at, half(*values), (9,), check_invariants=True)


@pytest.mark.parametrize(
    ("value", "sound"),
    [(half(1.0), True), (half(torch.inf), False), (sparse(1.0), True), (sparse(torch.nan), False)],
)
def test_numbers_are_looked_at_whatever_the_layout(value, sound):
    assert finite(value) is sound
    assert finite("a word")
    assert finite(torch.tensor([1]))
    assert has_nan([value]) is bool(value.to_dense().isnan().any())


def test_a_zero_counts_where_the_value_was_lost():
    assert zero_where(half(torch.inf, 1.0), half(0.0, 3.0))
    assert not zero_where(half(torch.inf, 1.0), half(3.0, 0.0))
    assert not zero_where(half(torch.inf, 1.0), half(0.0, 0.0, 0.0))  # of another shape


@pytest.mark.parametrize("made", [half, sparse])
def test_float64_says_what_would_have_been(made):
    args = (made(2.0, 1.0), 60000.0)
    (exact,) = in_float64(torch.ops.aten.mul.Tensor, args, {}, [made(torch.inf, 1.0)])
    assert exact.tolist() == [120000.0]
    assert mechanism_of_loss("mul", [half(torch.inf)], [exact], False) == "overflow"


def test_of_an_operation_that_is_one_kernel_there_is_no_part():
    assert losing_part(torch.ops.aten.exp.default, (half(12.0),), {}) is None


def test_the_first_part_that_loses_a_value_is_found():
    args = half(12.0, 0.0), half(-1.0, 1.0)
    part = losing_part(torch.ops.aten.soft_margin_loss.default, args, {})
    assert (part.name("soft_margin_loss"), part.name("exp")) == ("exp", "")
    assert part.args[0].tolist() == [12.0, 0.0]
