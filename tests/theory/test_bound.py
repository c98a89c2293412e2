"""How often outputs that cannot grow are at their bound."""

import pytest
import torch

from pytest_fp16.theory.bound import expected_at_bound


def test_what_is_there_already_is_there_in_every_step():
    assert expected_at_bound([(50, [1e-6] * 8)], 1e-3, 300) == pytest.approx(250, rel=1e-3)


def test_what_stays_far_away_is_hardly_ever_there():
    far = [0.10, 0.12, 0.09, 0.11]
    assert expected_at_bound([(50, far)], 1e-3, 300) < 0.1
    assert expected_at_bound([(20, far), (50, far)], 1e-3, 300) < 0.1  # and does not come nearer


def test_gaps_go_on_falling_as_they_did():
    """By the steps made: a tenth of the gap after ten times as many."""
    gaps = [0.0110, 0.0105, 0.0110, 0.0107]
    before = [10 * g for g in gaps]
    root = expected_at_bound([(100, gaps)], 1e-3, 1000)
    assert expected_at_bound([(10, before), (100, gaps)], 1e-3, 1000) < 20
    assert root < 1
    assert expected_at_bound([(10, before), (100, gaps)], 1e-3, 2000) > 500
    steeper = [(10, [100 * g for g in gaps]), (100, gaps)]  # a start: no faster than that
    known = [(10, before), (100, gaps)]
    known = expected_at_bound(known, 1e-3, 1000)
    assert expected_at_bound(steeper, 1e-3, 1000) == pytest.approx(known)


def test_as_often_as_log_normal_gaps_are_drawn_there():
    random = torch.Generator().manual_seed(0)
    drawn = torch.exp(0.6 * torch.randn(20_000, generator=random, dtype=torch.float64))
    gaps = (0.004 * drawn).tolist()
    share = sum(g < 2e-3 for g in gaps) / len(gaps)
    known = [(100, gaps), (200, gaps)]  # as large as they were
    assert expected_at_bound(known, 2e-3, 220) == pytest.approx(20 * share, rel=0.05)


def test_of_one_batch_nothing_is_known():
    assert expected_at_bound([(50, [0.1])], 1e-3, 300) == pytest.approx(125)
