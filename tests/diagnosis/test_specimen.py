"""The few inputs of a diagnosis, and how much of a failure a run of them shows."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pytest_fp16.diagnosis.specimen import FEW, Damage, fewer
from pytest_fp16.task import Task

X = torch.arange(20.0).unsqueeze(1)


@given(st.sets(st.integers(0, 19)), st.integers(1, 25))
def test_inputs_that_went_wrong_come_first(wrong, most):
    sample = fewer(X, 20, 7, sorted(wrong), most)
    rows = set(sample.inputs[:, 0].int().tolist())
    assert sample.n == len(rows) == min(most, 20)
    assert sample.seed == 7
    assert len(rows & wrong) == min(most, len(wrong))


def test_a_few_are_few():
    assert fewer(X, 20, 0, []).n == FEW


def damage(failing, wanted=None, kind="classification"):
    wanted = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0]]) if wanted is None else wanted
    specimen = SimpleNamespace(task=Task(kind), wanted=wanted)
    return Damage(specimen, failing), wanted


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


def test_a_masked_class_is_infinite_on_purpose_and_counts_for_nothing():
    wanted = torch.tensor([[-torch.inf, 1.0, 0.0], [0.0, 2.0, 1.0]])
    unhurt, _ = damage(wanted.clone(), wanted)
    assert not unhurt.shown
    failing = torch.tensor([[-torch.inf, 0.5, 0.0], [0.0, 2.0, 1.0]])
    found, _ = damage(failing, wanted)
    assert found.error.tolist() == pytest.approx([(2 * 0.25**2 / 3) ** 0.5, 0.0])
    assert found.of(wanted) == 0.0
    assert found.of(failing) == pytest.approx(1.0)


def test_what_is_wanted_is_the_reference_on_inputs_of_its_own(make_net, specimen):
    class Writes(nn.Module):
        def forward(self, x):
            return x.mul_(0.5)

    found = specimen(make_net(Writes(), steps=0))
    before = found.sample.inputs.clone()
    first = found.record()
    assert torch.equal(found.sample.inputs, before)
    torch.testing.assert_close(found.record(), first, rtol=0, atol=0)


@pytest.mark.parametrize("tied", [False, True])
def test_without_rounding_a_candidate_is_its_reference(specimen, tied):
    """Its weights are the reference's, tied ones and buffers too, and not its own 16-bit ones."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
            self.register_buffer("shift", torch.full((64,), 0.1))
            if tied:
                self.two.weight = self.one.weight

        def forward(self, x):
            return (self.two(self.one(x.flatten(1)).tanh()) + self.shift)[:, :10]

    torch.manual_seed(0)
    found = specimen(Net().eval(), "bf16-true")
    torch.testing.assert_close(found.run(0), found.wanted, rtol=1e-5, atol=1e-5)
    found.record()
    torch.testing.assert_close(found.healed(0), found.wanted, rtol=1e-5, atol=1e-5)
    assert float((found.run() - found.wanted).abs().max()) > 1e-3
