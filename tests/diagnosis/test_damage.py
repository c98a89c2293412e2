"""How much of a failure a run shows, on outputs whose damage is known."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pytest_fp16.diagnosis.damage import Damage
from pytest_fp16.task import Task
from pytest_fp16.theory.rounding import FORMATS


def damage(failing, wanted=None, kind="classification"):
    wanted = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0]]) if wanted is None else wanted
    return Damage(Task(kind), wanted, failing), wanted


def test_the_failing_run_shows_all_of_it_and_the_reference_none():
    failing = torch.tensor([[2.0, 1.5, 0.0], [1.0, 2.0, 0.5]])
    found, wanted = damage(failing)
    assert found.shown
    assert found.of(failing) == pytest.approx(1.0)
    assert found.of(wanted) == 0.0


@given(st.floats(0, 1))
def test_half_of_the_error_is_half_of_the_damage(share):
    found, wanted = damage(torch.tensor([[2.0, 1.5, 0.0], [1.0, 2.0, 0.5]]))
    step = torch.tensor([[-1.0, 0.5, 0.0], [1.0, 0.0, -0.5]])
    assert found.of(wanted + share * step) == pytest.approx(share, abs=1e-5)


def test_more_than_all_cannot_be_lost():
    found, wanted = damage(torch.tensor([[2.0, 1.5, 0.0], [1.0, 2.0, 0.5]]))
    assert found.of(wanted * 1000) == pytest.approx(1.0)
    assert found.of(wanted * torch.nan) == pytest.approx(1.0)
    assert found.of(torch.ones(2, 5)) == 1.0


def test_beyond_the_spread_of_the_outputs_nothing_is_left_to_lose():
    wanted = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    huge, _ = damage(1e6 * torch.tensor([[0.0, 1.0], [1.0, 0.0]]), wanted)
    assert huge.of(1e3 * torch.tensor([[0.0, 1.0], [1.0, 0.0]])) == pytest.approx(1.0)
    assert huge.relative > 1e5


def test_a_shift_common_to_all_classes_is_no_damage_to_a_decision():
    _, wanted = damage(torch.zeros(2, 3))
    shifted, _ = damage(wanted + 5.0)
    assert float(shifted.full.max()) < 1e-12
    values, _ = damage(wanted + 5.0, kind="regression")
    assert values.shown


def test_where_outputs_were_lost_only_the_lost_count():
    failing = torch.tensor([[torch.nan, 1.0, 0.0], [9.0, 2.0, 1.0]])
    found, wanted = damage(failing)
    assert found.of(failing) == 1.0
    other = wanted.clone()
    other[1] = torch.inf  # another input, which the failing run had kept
    assert found.of(other) == 0.0
    assert found.of(wanted + 1.0) == 0.0


def test_lost_outputs_may_count_as_any_others():
    wanted = torch.randn(6, 3, generator=torch.Generator().manual_seed(3))
    failing = wanted.clone()
    failing[:2], failing[2:4] = torch.nan, 1e3
    apart = Damage(Task("regression"), wanted, failing)
    alike = Damage(Task("regression"), wanted, failing, apart=False)
    assert apart.lost.sum() == 2
    assert not alike.lost.any()
    partly = wanted.clone()
    partly[2:4] = 1e3
    assert apart.of(partly) == 0.0
    assert 0.0 < alike.of(partly) < alike.of(failing) == 1.0
    assert 0.0 < Damage(Task("regression"), wanted, partly).part < alike.part < 1.0


def test_inputs_that_are_alike_have_more_to_lose_than_their_spread():
    wanted = torch.tensor([[2.0, -2.0], [2.001, -2.001]])
    found, _ = damage(wanted * 1.01, wanted)
    assert found.error.max() == pytest.approx(found.spread)  # all that tells them apart is lost
    assert found.part == pytest.approx(0.01, rel=0.01)
    assert damage(-wanted, wanted)[0].part == pytest.approx(1.0)
    values, _ = damage(wanted * 1.01, wanted, "regression")
    assert values.part == pytest.approx(1.0)


def test_a_masked_class_is_infinite_on_purpose_and_counts_for_nothing():
    wanted = torch.tensor([[-torch.inf, 1.0, 0.0], [0.0, 2.0, 1.0]])
    unhurt, _ = damage(wanted.clone(), wanted)
    assert not unhurt.shown
    failing = torch.tensor([[-torch.inf, 0.5, 0.0], [0.0, 2.0, 1.0]])
    found, _ = damage(failing, wanted)
    assert found.error.tolist() == pytest.approx([(2 * 0.25**2 / 3) ** 0.5, 0.0])
    assert found.of(wanted) == 0.0
    assert found.of(failing) == pytest.approx(1.0)


def test_decisions_between_outputs_that_are_one_number_count_whatever_their_error():
    """Next to one float16 has steps of 0.0005: the layer before errs a hundred times as far."""
    wanted = torch.tensor([[0.9999, 0.9998, 0.1], [0.9, 0.2, 0.1]])
    failing = torch.tensor([[1.0, 1.0, 0.15], [0.9, 0.2, 0.15]])
    found = Damage(Task("classification"), wanted, failing, fmt=FORMATS[torch.float16])
    assert found.merged.tolist() == [[True], [False]]
    assert found.of(failing) == 1.0
    before = torch.tensor([[0.9999, 0.9998, 0.15], [0.9, 0.2, 0.15]])
    assert found.of(before) == 0.0
    flipped = torch.tensor([[0.9998, 0.9999, 0.1], [0.9, 0.2, 0.1]])
    assert found.of(flipped) == 1.0
    by_size, _ = damage(failing, wanted)
    assert by_size.merged is None
    assert by_size.of(before) > 0.9


def test_few_decisions_between_equal_numbers_leave_damage_to_the_size_of_errors():
    near, sure = [0.9999, 0.9998, 0.1], [0.9, 0.2, 0.1]
    wanted = torch.tensor([near, sure, sure])
    failing = torch.tensor([[1.0, 1.0, 0.1], [0.2, 0.9, 0.1], [0.1, 0.2, 0.9]])
    for values in (failing, failing[:, :2] * torch.nan):
        found = Damage(Task("classification"), wanted, values, fmt=FORMATS[torch.float16])
        assert found.merged is None
    values = Damage(Task("regression"), wanted, failing, fmt=FORMATS[torch.float16])
    assert values.merged is None


@pytest.mark.parametrize("mask", [-1e4, -1e8])
def test_what_rounding_makes_of_a_mask_is_no_damage(mask):
    wanted = torch.tensor([[3.0, 1.0, mask], [0.0, mask, 1.0]])
    failing = torch.tensor([[2.0, 1.5, mask], [1.0, mask, 0.5]])
    found, _ = damage(torch.where(wanted == mask, mask * 1.002, failing), wanted)
    assert found.of(torch.where(wanted == mask, mask * 1.002, wanted)) == 0.0
    assert found.of(failing) == pytest.approx(1.0)
