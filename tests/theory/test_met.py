"""How many steps will have outputs that meet their targets, against draws."""

import pytest
import torch

from pytest_fp16.theory.met import expected_met
from pytest_fp16.theory.rounding import BFLOAT16, FLOAT16


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
