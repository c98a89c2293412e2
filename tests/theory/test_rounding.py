import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pytest_fp16.theory.rounding import (
    BFLOAT16,
    FLOAT16,
    FORMATS,
    binade,
    flush_to_one,
    flush_underflow,
    overflow,
    round_to,
    ulp,
    ulp_at,
)

BOTH = pytest.mark.parametrize("fmt", [FLOAT16, BFLOAT16], ids=lambda f: f.name)
any_float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def grid_around(x, fmt):
    """The two neighbours of the exact value x on the grid, by exact arithmetic in float64."""
    exponent = max(math.frexp(x)[1] - 1, fmt.min_exponent) if x else fmt.min_exponent
    step = 2.0 ** (exponent - fmt.significand + 1)
    return math.floor(x / step) * step, math.ceil(x / step) * step, step


@BOTH
def test_constants_are_torchs_own(fmt):
    info = torch.finfo(fmt.dtype)

    assert fmt.largest == info.max
    assert fmt.smallest_normal == info.tiny
    assert fmt.unit_roundoff == info.eps / 2
    assert fmt.smallest_subnormal == info.smallest_normal * info.eps
    assert FORMATS[fmt.dtype] is fmt


@given(x=st.floats(width=16, allow_nan=False, allow_infinity=False))
def test_ulp_of_float16_is_numpys_spacing(x):
    expected = float(np.spacing(np.float16(abs(x)))) if abs(x) < 65504 else 32.0

    assert ulp(torch.tensor([x]), FLOAT16).item() == expected


@BOTH
@given(x=any_float32)
def test_ulp_is_the_distance_of_the_neighbours(fmt, x):
    _, _, step = grid_around(x, fmt)

    assert ulp(torch.tensor([x]), fmt).item() == step


@BOTH
@given(x=st.one_of(any_float32, st.sampled_from([0.0, math.inf, -math.inf, math.nan])))
def test_ulp_of_a_number_is_that_of_a_tensor(fmt, x):
    assert ulp_at(x, fmt) == ulp(torch.tensor([x]), fmt).item()


@BOTH
@given(x=any_float32)
def test_rounding_goes_to_the_nearest_and_ties_to_even(fmt, x):
    low, high, step = grid_around(x, fmt)
    if abs(x) >= fmt.overflow_threshold:
        expected = math.copysign(math.inf, x)
    elif x - low == high - x:
        expected = low if (low / step) % 2 == 0 else high
    else:
        expected = low if x - low < high - x else high

    assert round_to(torch.tensor([x]), fmt).item() == expected


@BOTH
@given(x=any_float32)
def test_rounding_errs_by_half_an_ulp_at_most(fmt, x):
    t = torch.tensor([x])
    rounded = round_to(t, fmt)

    if rounded.isfinite().all():
        assert (rounded.double() - t.double()).abs() <= ulp(t, fmt).double() / 2


@BOTH
def test_overflow_begins_at_the_threshold_exactly(fmt):
    below = torch.tensor(fmt.overflow_threshold).nextafter(torch.tensor(0.0))
    x = torch.stack(
        [below, torch.tensor(fmt.overflow_threshold), -torch.tensor(fmt.overflow_threshold)]
    )

    assert torch.equal(round_to(x, fmt).isinf(), torch.tensor([False, True, True]))
    assert torch.equal(overflow(x, fmt).isinf(), torch.tensor([False, True, True]))
    assert overflow(x, fmt)[2] == -math.inf
    assert overflow(x, fmt)[0] == below


@BOTH
@given(x=any_float32)
def test_flushing_touches_only_what_lies_below_the_normal_range(fmt, x):
    t = torch.tensor([x])
    expected = round_to(t, fmt) if abs(x) < fmt.smallest_normal else t

    assert torch.equal(flush_underflow(t, fmt), expected)


def test_half_the_smallest_subnormal_is_lost():
    half = FLOAT16.smallest_subnormal / 2
    x = torch.tensor([half, half * 1.0001])

    assert flush_underflow(x, FLOAT16).tolist() == [0.0, FLOAT16.smallest_subnormal]


def test_ulp_is_infinite_where_the_value_is_not_finite():
    x = torch.tensor([math.inf, -math.inf, math.nan])

    assert ulp(x, FLOAT16).isinf().all()


def test_ulp_of_a_strided_tensor_leaves_its_argument_alone():
    x = torch.randn(4, 6).t()
    before = x.clone()

    assert torch.equal(ulp(x, FLOAT16), ulp(x.contiguous(), FLOAT16))
    assert torch.equal(x, before)


def test_what_a_format_cannot_tell_from_one_is_one():
    x = torch.tensor([1 - 2.0**-13, 1 - 2.0**-9, -1 + 2.0**-13, 0.3], requires_grad=True)
    assert flush_to_one(x, FLOAT16).tolist() == [1.0, x[1].item(), -1.0, x[3].item()]
    flush_to_one(x, FLOAT16).sum().backward()
    assert x.grad.tolist() == [1.0] * 4


def test_a_binade_begins_with_a_power_of_two():
    x = torch.tensor([1.0, -1.5, 0.3, 65504.0, 0.0, 1e-40, torch.inf, torch.nan])
    expected = [1.0, 1.0, 0.25, 32768.0, 0.0, 0.0, torch.inf, torch.inf]
    assert binade(x).tolist() == expected
    assert x[1] == -1.5
