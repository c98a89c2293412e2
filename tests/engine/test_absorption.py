"""Rounding that is certain: applied to the values, not left to a σ."""

import pytest
import torch

from pytest_fp16.engine.absorption import crowded
from pytest_fp16.theory.rounding import BFLOAT16, FLOAT16, round_to

FORMATS = (FLOAT16, BFLOAT16)


@pytest.mark.parametrize("fmt", FORMATS)
def test_where_a_function_is_flat_values_fall_to_one_side(fmt):
    """e⁻ˢ for small s: most of it rounds to one."""
    small = (
        torch.rand(3000, generator=torch.Generator().manual_seed(0)) ** 4 * 2 * fmt.unit_roundoff
    )
    y = torch.exp(-small).requires_grad_()
    moved = crowded(y, fmt)
    assert torch.equal(moved, round_to(y, fmt))
    (gradient,) = torch.autograd.grad(moved.sum(), y)
    assert torch.equal(gradient, torch.ones_like(y))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(
    "values",
    [
        lambda g: torch.randn(5000, generator=g),
        lambda g: torch.rand(5000, generator=g) + 1,
        lambda g: torch.randn(5000, generator=g).sigmoid(),
        lambda g: torch.full((5000,), 0.3),  # one value is no crowd
        lambda g: torch.rand(40, generator=g) * 1e-5 + 1,  # too few to tell chance from bias
        lambda g: torch.randn(8, 600, generator=g).softmax(-1),
        lambda g: torch.full((5000,), torch.inf),
        lambda g: torch.tensor([torch.nan] * 5000),
    ],
)
def test_ordinary_values_are_left_alone(fmt, values):
    y = values(torch.Generator().manual_seed(1))
    assert crowded(y, fmt) is y


@pytest.mark.parametrize("fmt", FORMATS)
def test_errors_to_both_sides_are_left_to_chance(fmt):
    """Few numbers of the format, but as many values above each as below it."""
    steps = torch.rand(6000, generator=torch.Generator().manual_seed(2)) - 0.5
    y = 1 + fmt.unit_roundoff * (9 + 16 * steps)
    assert crowded(y, fmt) is y
