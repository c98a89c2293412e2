"""Figures of a measure against the formulas they stand for."""

import math

import pytest
import torch

from pytest_fp16.diagnosis.measure import (
    Measure,
    all_finite,
    largest_magnitude,
    root_mean_square,
)

LOW = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", [*LOW, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_seen(dtype, bad):
    values = torch.linspace(-3, 3, 100).to(dtype)
    assert all_finite(values)
    assert all_finite(values[:0])
    values[57] = bad
    assert not all_finite(values)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_sizes_of_any_magnitude(size):
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * size
    assert root_mean_square(values) == pytest.approx(float(values.double().square().mean().sqrt()))
    assert largest_magnitude(values) == float(values.abs().max())
    assert (root_mean_square(values * 0), largest_magnitude(values[:0])) == (0.0, 0.0)


@pytest.mark.parametrize("dtype", LOW)
def test_what_a_rounding_does(dtype):
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randn(20000, generator=generator).clamp(min=0)
    measure = Measure(wanted.to(dtype), wanted, dtype)
    error = wanted.to(dtype).double() - wanted.double()
    assert measure.error == pytest.approx(float(error.square().mean().sqrt()), rel=1e-5)
    assert measure.relative == pytest.approx(measure.error / measure.value)
    assert 0.2 < measure.steps < 0.35  # √(1/12) within a binade
    assert (measure.lost, measure.infinite, measure.ruined) == (0, 0, 0.0)
    assert measure.exact_zeros == int((wanted == 0).sum())
    assert (measure.binary, measure.whole) == (False, False)


def test_what_leaves_the_range():
    wanted = torch.tensor([1.0, 1e5, 1e5, 1e-9, math.inf, -2.0])
    actual = torch.tensor([1.0, math.inf, math.inf, 0.0, math.inf, math.nan]).half()
    measure = Measure(actual, wanted, torch.float16)
    assert (measure.lost, measure.infinite, measure.constant) == (3, 2, 1e5)
    assert (measure.zeroed, measure.small, measure.largest) == (1, 1, 1e5)
    assert measure.small_error == pytest.approx(1.0)  # where both are finite, nothing else differs
    assert measure.error == pytest.approx(1e-9 / math.sqrt(6))


def test_whole_and_binary_values():
    counts = torch.tensor([0.0, 1.0, 2049.0])
    assert Measure(counts.half(), counts, torch.float16).whole
    assert not Measure(counts.half(), counts, torch.float16).binary
    assert Measure(counts[:2].half(), counts[:2], torch.float16).binary


def test_numbers_that_become_one():
    exact = torch.tensor([256.0, 257.0, 300.0])
    assert Measure(exact.bfloat16(), exact, torch.bfloat16).merged
    assert not Measure(exact.half(), exact, torch.float16).merged
    apart = torch.tensor([1013.0, 290.0])
    assert not Measure(apart.bfloat16(), apart, torch.bfloat16).merged
