"""Random rounding errors: as large as those of a rounding, and never where none can be."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pytest_fp16.engine.tracing.noise import FEW_STEPS, rounded_at_random
from pytest_fp16.theory.rounding import BFLOAT16, FLOAT16, round_to, ulp

FORMATS = pytest.mark.parametrize("fmt", [FLOAT16, BFLOAT16])


def noisy(y, fmt, seed=0, **options):
    return rounded_at_random(y, fmt, torch.Generator().manual_seed(seed), **options)


def spread(size, n=4000):
    """Values of both signs, evenly over an octave from `size` on; its ends left out."""
    values = size * torch.linspace(1.0, 2.0, n + 2)[1:-1]
    return torch.cat([values, -values])


@FORMATS
@pytest.mark.parametrize("size", [2.0**-13, 2.0**-3, 64.0, 2.0**14])
def test_errors_are_even_over_one_step_of_the_format(fmt, size):
    y = spread(size)
    error = ((noisy(y, fmt) - y) / ulp(y, fmt)).double()
    assert float(error.abs().max()) <= 0.5
    assert float(error.std()) == pytest.approx(12**-0.5, rel=0.03)
    assert abs(float(error.mean())) < 0.02
    assert abs(float((error * y.sign()).mean())) < 0.02


def test_below_the_normal_range_the_step_stays():
    y = spread(2.0**-19)
    error = ((noisy(y, FLOAT16) - y) / FLOAT16.smallest_subnormal).double()
    assert float(error.abs().max()) <= 0.5 + 1e-6
    assert float(error.std()) == pytest.approx(12**-0.5, rel=0.03)


@FORMATS
def test_a_few_steps_above_zero_values_round_as_they_are(fmt):
    y = torch.linspace(-FEW_STEPS, FEW_STEPS, 501) * fmt.smallest_subnormal
    assert torch.equal(noisy(y, fmt), round_to(y, fmt))
    beside = torch.cat([y, torch.full((1,), 3.0)])
    assert torch.equal(noisy(beside, fmt)[:-1], round_to(y, fmt))


@FORMATS
def test_what_rounds_to_one_is_one(fmt):
    u = fmt.unit_roundoff
    y = torch.tensor([1 - u / 2, 1 - u / 3, 1.0, 1 + u / 2, 1 + u, -1 - u / 2, -1 + u / 4])
    for seed in range(20):
        assert noisy(y, fmt, seed).tolist() == [1.0] * 5 + [-1.0] * 2


@FORMATS
@given(
    values=st.lists(st.floats(-6e4, 6e4, width=32), min_size=1, max_size=20),
    seed=st.integers(0, 2**32),
)
def test_no_value_leaves_its_octave_or_its_sign(fmt, values, seed):
    y = torch.tensor(values, dtype=torch.float32)
    moved = noisy(y, fmt, seed)
    off = (moved - y).abs()
    assert bool((off <= ulp(y, fmt) / 2 * (1 + 1e-6)).all())
    assert bool((moved * y >= 0).all())
    for before, after in zip(y.abs().tolist(), moved.abs().tolist(), strict=True):
        if before >= fmt.smallest_normal:
            power = 2.0 ** (math.frexp(before)[1] - 1)
            assert power <= after <= 2 * power


@FORMATS
@pytest.mark.parametrize("steps", [1.0, 9.0])
def test_powers_of_two_infinities_and_nan_stay(fmt, steps):
    y = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 3.1])
    moved = noisy(y, fmt, steps=steps, finite=False)
    assert torch.equal(moved[:4], y[:4])
    assert bool(moved[4].isnan())
    powers = torch.tensor([0.25, -1.0, 8.0])
    assert steps > 1 or torch.equal(noisy(powers, fmt), powers)


def test_nan_stays_whatever_its_bits():
    bits = torch.tensor([0x7F800001, 0x7FFFFFFF, 0x7FC00000, -1], dtype=torch.int32)
    for seed in range(20):
        assert bool(noisy(bits.view(torch.float32), BFLOAT16, seed, finite=False).isnan().all())


@FORMATS
@pytest.mark.parametrize("steps", [1.0, 9.0])
def test_what_has_its_error_already_gets_no_other(fmt, steps):
    y, fixed = spread(0.3), torch.arange(8000).remainder(2).float()
    moved = noisy(y, fmt, fixed=fixed, steps=steps)
    assert torch.equal(moved[fixed == 1], y[fixed == 1])
    assert float((moved == y)[fixed == 0].double().mean()) < 0.01
    small = spread(2.0**-19)
    moved = noisy(small, FLOAT16, fixed=fixed, steps=steps)
    assert torch.equal(moved[fixed == 1], small[fixed == 1])


@FORMATS
def test_several_roundings_err_as_the_root_of_their_number(fmt):
    y = spread(0.3)
    error = ((noisy(y, fmt, steps=25.0) - y) / ulp(y, fmt)).double()
    assert float(error.std()) == pytest.approx(5 * 12**-0.5, rel=0.03)
    near = torch.full((5000,), 3e-6).cumsum(0)  # some of them less than an error from zero
    assert bool((noisy(near, FLOAT16, steps=1e4) >= 0).all())


@pytest.mark.parametrize(
    "shape",
    [(), (1,), (5,), (2, 3, 4, 4)],
)
def test_any_shape_keeps_its_place_in_memory(shape):
    y = torch.full(shape, 0.3)
    moved = noisy(y, FLOAT16)
    assert moved.shape == y.shape
    if y.dim() == 4:
        last = y.to(memory_format=torch.channels_last)
        assert noisy(last, FLOAT16).stride() == last.stride()
        assert noisy(y.expand(2, 2, 3, 4, 4), FLOAT16).shape == (2, 2, 3, 4, 4)


def test_errors_are_those_of_the_generator():
    y = spread(0.3)
    assert torch.equal(noisy(y, FLOAT16, 3), noisy(y, FLOAT16, 3))
    assert not torch.equal(noisy(y, FLOAT16, 3), noisy(y, FLOAT16, 4))
    neighbours = (noisy(y, FLOAT16) - y).double()
    for apart in (1, 2, 4):  # one draw serves several
        a, b = neighbours[:-apart], neighbours[apart:]
        assert abs(float((a * b).mean() / (a.std() * b.std()))) < 0.05
