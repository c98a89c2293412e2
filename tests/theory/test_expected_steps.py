"""How many batches will be wholly right, at a bound or meet their targets, against draws."""

import pytest
import torch

from pytest_fp16.theory.expected_steps import (
    expected_at_bound,
    expected_met,
    expected_solved,
    share,
)
from pytest_fp16.theory.rounding import BFLOAT16, FLOAT16


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


def drawn(whole, dims, spread=0.05, rows=64, steps=2000):
    """How many of so many steps have a row that meets its targets in bfloat16."""
    random = torch.Generator().manual_seed(0)
    targets = (1 + torch.rand(rows, dims, generator=random)).bfloat16().float()
    errors = spread * torch.randn(steps, rows, dims, generator=random)
    met = (targets + errors).bfloat16().float() == targets
    hits = met.all(-1) if whole else met.any(-1)
    return targets, errors[0], int(hits.any(-1).sum())


@pytest.mark.parametrize(("whole", "dims"), [(True, 1), (True, 2), (False, 2)])
def test_it_is_what_draws_give(whole, dims):
    targets, errors, hits = drawn(whole, dims)
    # As many steps behind as ahead: errors shrink by a root of two at most.
    expected = expected_met(targets, errors, BFLOAT16, (100000, 102000), 64, whole=whole)
    assert expected == pytest.approx(hits, rel=0.5)


def test_there_are_more_where_outputs_may_miss_and_fewer_in_a_finer_format():
    targets, errors, _ = drawn(True, 2)
    plain = expected_met(targets, errors, BFLOAT16, (50, 100), 4)
    assert expected_met(targets, errors, BFLOAT16, (50, 100), 4, reach=1) > 3 * plain
    assert expected_met(targets, errors, FLOAT16, (50, 100), 4) < plain / 30


def test_errors_fall_as_the_root_of_the_number_of_steps():
    targets, errors, _ = drawn(True, 2)
    late = expected_met(targets, errors, FLOAT16, (900, 1000), 1)
    early = expected_met(targets, errors, FLOAT16, (100, 1000), 1)
    assert early / 900 > 4 * late / 100


def test_what_never_misses_is_met_in_every_step():
    targets = torch.ones(8, 2)
    assert expected_met(targets, torch.zeros(8, 2), FLOAT16, (10, 30), 8) == 20
    assert expected_met(targets, torch.zeros(8, 2), FLOAT16, (30, 30), 8) == 0
