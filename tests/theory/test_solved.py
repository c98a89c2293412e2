"""How many batches will be wholly right."""

import pytest
import torch

from pytest_fp16.theory.solved import expected_solved, share


def test_a_share_of_none_is_not_zero():
    assert share(0, 98) == pytest.approx(0.01)
    assert share(50, 98) == pytest.approx(0.51)


def test_a_share_that_stays_gives_a_plain_expectation():
    assert expected_solved([(10, 0.25)], 110, 4) == pytest.approx(100 * 0.75**4)
    assert expected_solved([(5, 0.1), (10, 0.25)], 110, 4) == pytest.approx(100 * 0.75**4)


def test_a_share_that_falls_follows_its_power_law():
    """Simulated: decisions are wrong independently, with probability 4 / step."""
    random = torch.Generator().manual_seed(0)
    steps = torch.arange(40, 400)
    wrong = torch.rand(400, len(steps), 16, generator=random) < (4 / steps)[None, :, None]
    counted = float((~wrong).all(-1).float().sum(1).mean())
    assert expected_solved([(20, 0.2), (40, 0.1)], 400, 16) == pytest.approx(counted, rel=0.02)


def test_larger_batches_are_rarely_solved():
    assert expected_solved([(10, 0.4), (20, 0.3)], 200, 512) < 1e-3
