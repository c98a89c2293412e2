"""What a rounding site records, on values whose rounding is known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pytest_fp16.engine.tracing.recorder import Recorder, largest_magnitude
from pytest_fp16.theory.rounding import BFLOAT16, FLOAT16, ulp

BATCH = 3


def recorder(**options):
    options = {"totals": {}, "where": lambda: "here"} | options
    return Recorder(batch=BATCH, device=torch.device("cpu"), **options)


def values(*shape):
    return torch.rand(BATCH, *shape, generator=torch.Generator().manual_seed(0)) + 0.3


@pytest.mark.parametrize("fmt", [FLOAT16, BFLOAT16])
@pytest.mark.parametrize("steps", [1.0, 16.0])
def test_the_gradient_at_a_site_gives_what_its_rounding_would_do(fmt, steps):
    told, y = recorder(formats=(fmt,)), values(4)
    weights = torch.tensor([1.0, -2.0, 0.0, 5.0])
    with torch.enable_grad():
        told.site(y, fmt, "mul", steps).mul(weights).sum().backward()
    sums = told.contributions.sums[fmt]
    single = weights.abs() * ulp(y, fmt) * steps**0.5
    torch.testing.assert_close(sums.square, single.square().sum(1))
    torch.testing.assert_close(sums.absolute, single.sum(1))
    assert list(sums.by_site) == [("here", "mul")]


def test_values_are_not_changed_where_gradients_are_recorded():
    told, y = recorder(), values(4)
    with torch.enable_grad():
        assert torch.equal(told.site(y, FLOAT16, "mul").detach(), y)
    assert not told.bent
    assert told.values == y.numel()
    assert [(key, tuple(shape)) for key, shape in told.signature] == [(("here", "mul"), (3, 4))]


@pytest.mark.parametrize("fmt", [FLOAT16, BFLOAT16])
def test_noise_is_a_rounding_error(fmt):
    y = values(5000)
    noisy = recorder(noise=torch.Generator().manual_seed(0)).site(y, fmt, "mul")
    error = (noisy - y) / ulp(y, fmt)
    assert float(error.abs().max()) <= 0.5 + 1e-3
    assert float(error.std()) == pytest.approx(12**-0.5, rel=0.05)
    many = recorder(noise=torch.Generator().manual_seed(0)).site(y, fmt, "index_add", 16.0)
    assert float(((many - y) / ulp(y, fmt)).std()) == pytest.approx(4 * 12**-0.5, rel=0.05)


@pytest.mark.parametrize("fmt", [FLOAT16, BFLOAT16])
def test_what_a_clamp_has_made_the_end_rounds_as_it_is(fmt):
    """A half that is added to the last index of a table is the next one, where steps are of one."""
    last = 2.0**fmt.significand - 1
    y = (values(5000) * last).clamp(-last, last) + 0.5
    noisy = recorder(noise=torch.Generator().manual_seed(0)).site(y, fmt, "add")
    ends = y == last + 0.5
    assert int(ends.sum()) > 100
    assert bool((noisy[ends] == last + 1).all())
    assert not bool((noisy[~ends] == y[~ends]).all())


def test_a_value_that_has_its_error_already_gets_no_other():
    y, fixed = values(4), torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(BATCH, 4)
    told = recorder()
    with torch.enable_grad():
        told.site(y, FLOAT16, "add", 1.0, fixed).sum().backward()
    chance = (ulp(y, FLOAT16) * (1 - fixed)).square().sum(1)
    torch.testing.assert_close(told.contributions.sums[FLOAT16].square, chance)

    noisy = recorder(noise=torch.Generator().manual_seed(0)).site(y, FLOAT16, "add", 1.0, fixed)
    assert torch.equal(noisy == y, fixed == 1)


def test_what_rounds_to_zero_is_zero_and_nothing_of_it_is_chance():
    y = torch.tensor([1e-10, -1e-9, 0.0, 1e-3]).expand(BATCH, 4)
    told = recorder()
    with torch.enable_grad():
        rounded = told.site(y, FLOAT16, "mul")
        rounded.sum().backward()
    assert rounded.tolist() == [pytest.approx([0.0, 0.0, 0.0, 1e-3])] * BATCH
    assert told.bent
    chance = ulp(y[:, 3], FLOAT16).square()
    torch.testing.assert_close(told.contributions.sums[FLOAT16].square, chance)
    wide = recorder(formats=(BFLOAT16,))  # it holds them
    with torch.enable_grad():
        assert torch.equal(wide.site(y, BFLOAT16, "mul").detach(), y)


@pytest.mark.parametrize("sign", [1, -1])
def test_noise_leads_nothing_past_zero(sign):
    """A sum of squares below the smallest number of float16 has a root, however it is rounded."""
    y = sign * values(500).pow(8) * 1e-7
    noisy = recorder(noise=torch.Generator().manual_seed(1)).site(y, FLOAT16, "sum")
    assert bool((noisy * sign >= 0).all())
    assert bool((noisy == 0).any())


@pytest.mark.parametrize("fmt", [FLOAT16, BFLOAT16])
def test_noise_leads_nothing_past_one(fmt):
    """So one less an exponential that is at most one has a root; and what rounds to one is one."""
    y = torch.linspace(0.9, 1, 501).expand(BATCH, 501)
    noisy = recorder(noise=torch.Generator().manual_seed(1)).site(y, fmt, "exp")
    assert bool((noisy <= 1).all())
    told = y.to(fmt.dtype) == 1
    assert torch.equal((noisy == 1)[told], torch.ones_like(told)[told])
    above = 2 - y  # and the other way round
    noisy = recorder(noise=torch.Generator().manual_seed(1)).site(above, fmt, "cosh")
    assert bool((noisy >= 1).all())


def test_a_power_of_two_among_other_numbers_stays_it():
    y = values(64)
    y[:, ::2] = 0.25
    noisy = recorder(noise=torch.Generator().manual_seed(1)).site(y, FLOAT16, "mul")
    assert bool((noisy[:, ::2] == 0.25).all())
    assert float((noisy == y)[:, 1::2].double().mean()) < 0.02  # an error may be zero


def test_neither_noise_nor_gradients_leaves_the_values():
    y = values(4)
    assert torch.equal(recorder(adjoint=False).site(y, FLOAT16, "mul"), y)


@pytest.mark.parametrize("noise", [False, True])
def test_numbers_of_the_format_do_not_round(noise):
    """Counts and masks; but one value off the grid makes the tensor a site."""
    y = torch.arange(BATCH * 200.0).reshape(BATCH, 200)
    for kept in (y, torch.where(y == 77.0, 77.3, y)):
        options = {"noise": torch.Generator().manual_seed(0)} if noise else {}
        told = recorder(**options)
        with torch.enable_grad():
            made = told.site(kept, FLOAT16, "add")
        rounds = (made.detach() != kept).any() if noise else bool(told.leaves)
        assert bool(rounds) == (kept is not y)


def test_a_format_that_shares_the_gradients_keeps_a_site_of_its_own():
    y = torch.arange(BATCH * 200.0).reshape(BATCH, 200)  # beyond bfloat16's 256
    alone, shared = recorder(), recorder(formats=(FLOAT16, BFLOAT16))
    with torch.enable_grad():
        for told in (alone, shared):
            told.site(y, FLOAT16, "add")
    assert not alone.leaves
    assert shared.leaves


def test_what_leaves_the_range_is_infinite_and_its_inputs_are_marked():
    told, y = recorder(adjoint=False), torch.ones(BATCH, 4)
    y[1, 2], y[2, 3] = 70000.0, -torch.inf
    made = told.site(y, FLOAT16, "mul")
    assert made[1, 2] == torch.inf
    assert made[2, 3] == -torch.inf
    assert told.overflowed.tolist() == [False, True, False]  # the third was infinite before
    assert told.totals["here", "mul"].largest == 70000.0
    assert told.bent
    inside = recorder(adjoint=False)
    inside.site(y.clamp(-7e4, 7e4), BFLOAT16, "mul")
    assert not inside.overflowed.any()


def test_the_largest_value_is_kept_over_all_chunks():
    totals = {}
    for size in (3.0, 9.0, 5.0):
        recorder(totals=totals, adjoint=False).site(torch.full((BATCH, 2), -size), FLOAT16, "mul")
    assert totals["here", "mul"].largest == 9.0
    assert len(totals) == 1


def test_sites_are_kept_in_the_order_of_the_program():
    told = recorder(adjoint=False)
    for operation in ("mul", "add", "mul"):
        told.site(values(2), FLOAT16, operation)
    assert [operation for _, operation in told.totals] == ["mul", "add"]


def test_small_values_and_lines_are_noted_where_asked():
    y = torch.tensor([[1.0, 1e-5, 1e-9, 0.0]]).expand(BATCH, 4).contiguous()
    plain, detailed = recorder(adjoint=False), recorder(adjoint=False, detailed=True)
    for told in (plain, detailed):
        told.site(y, FLOAT16, "mul")
    totals = detailed.totals["here", "mul"]
    assert (totals.subnormal, totals.zeroed, totals.values) == (2 * BATCH, BATCH, 4 * BATCH)
    assert plain.totals["here", "mul"].values == 0
    assert not plain.totals["here", "mul"].lines
    assert "test_recorder.py" in totals.source


def test_an_empty_tensor_is_no_site():
    told = recorder()
    assert told.site(torch.empty(0, 4), FLOAT16, "mul").numel() == 0
    assert not told.totals
    assert not told.signature


def test_a_flag_belongs_to_the_input_it_came_from():
    flags = torch.zeros(BATCH * 2, 4, dtype=torch.bool)
    flags[3, 1] = True  # rows of two per input
    assert recorder().any_row(flags).tolist() == [False, True, False]


@given(st.lists(st.floats(-1.0, 1.0, width=32), max_size=9))
def test_the_largest_magnitude(numbers):
    found = largest_magnitude(torch.tensor(numbers))
    assert found == max(map(abs, numbers), default=0.0)


def test_the_largest_magnitude_of_nan_is_nan():
    assert math.isnan(largest_magnitude(torch.tensor([1.0, torch.nan])))
    assert largest_magnitude(torch.tensor([1.0, -torch.inf])) == math.inf
