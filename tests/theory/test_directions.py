"""Directions of rows of values, against what their mean squares must be."""

import pytest
import torch

from pytest_fp16.theory.directions import directions

ROWS = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 200])
def test_directions_are_of_length_one_and_the_same_whenever_they_are_asked(size):
    rows = torch.randn(500, 1, size, generator=ROWS)
    found = directions(rows)
    assert torch.equal(found, directions(rows.clone()))
    assert torch.equal(found[3:9], directions(rows[3:9]))
    assert torch.allclose(found.abs(), torch.tensor(size**-0.5))


@pytest.mark.parametrize("step", [1e-30, 1 / 8])
@pytest.mark.parametrize("alike", [[1.0, 1.0], [1.0, -1.0], [1.0, 0.5, 1.0, -2.0]])
def test_errors_that_are_alike_are_as_large_as_they_are(alike, step):
    """In one direction for all rows, those of two values add up or cancel in every row.

    Of pairs in eighths some 800 differ: four standard deviations of a mean of that many.
    """
    rows = (torch.randn(4000, 1, len(alike), generator=ROWS) / step).round() * step
    error = torch.tensor(alike).expand_as(rows)
    seen = (error * directions(rows)).sum(-1).square().mean()
    assert float(seen) == pytest.approx(float(error.square().mean()), rel=0.15)


@pytest.mark.parametrize("size", [1, 2, 30])
def test_what_all_values_share_keeps_its_sign(size):
    """A bias of all values is seen as one: it does not average out over rows."""
    rows = torch.randn(1000, size, generator=ROWS)
    assert bool((directions(rows).sum(-1) > -1e-6).all())
    if size == 1:
        assert bool((directions(rows) == 1).all())
