"""Rounding that is certain: applied to the values, not left to a σ."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.tracing.absorption import (
    absorbed,
    certain_errors,
    stepped,
)
from pytest_fp16.engine.tracing.recorder import Recorder
from pytest_fp16.theory.rounding import BFLOAT16, FLOAT16, round_to

FORMATS = (FLOAT16, BFLOAT16)


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("constant", [-3e4, -1e9])  # float32 loses the scores beside the second
def test_scores_beside_a_large_mask_are_lost_for_certain(fmt, constant):
    if constant < -fmt.largest:
        return
    mask = round_to(torch.tensor([0.0, constant, constant, 0.0]).repeat(250), fmt)
    scores = drawn(1000)
    y = (scores + mask).requires_grad_()
    moved, fixed = absorbed(y, [scores, mask], fmt)
    hidden = mask < 0
    assert torch.equal(moved[hidden], mask[hidden])
    assert torch.equal(moved[~hidden], y[~hidden])
    assert fixed[hidden].all()
    (gradient,) = torch.autograd.grad(moved.sum(), y)
    assert torch.equal(gradient, torch.ones_like(y))


@pytest.mark.parametrize("fmt", FORMATS)
def test_adding_zeros_is_no_absorption(fmt):
    """As a residual connection does after a ReLU: half a tensor would be settled for nothing."""
    x, zeros = drawn(1000), torch.zeros(1000)
    y = x + zeros
    moved, fixed = absorbed(y, [x, zeros], fmt)
    assert moved is y
    assert fixed is None


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_broadcast_operand_is_fallen_back_onto_as_well(fmt):
    """A score per tag of a chain, and transitions from each tag to each: they are lost."""
    score = round_to(100 + 20 * torch.rand(50, 7, 1), fmt)
    transitions = (torch.rand(7, 7) - 0.5) * 100 * fmt.unit_roundoff
    moved, fixed = certain_errors(
        score + transitions, [score, transitions], fmt, False, False, False
    )
    assert torch.equal(moved, score.expand(50, 7, 7))
    assert bool(fixed.all())


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_few_steps_from_an_operand_the_difference_alone_is_rounded(fmt):
    random = torch.Generator().manual_seed(3)
    a = round_to(1 + torch.rand(5000, generator=random), fmt)
    d = 16 * (torch.rand(5000, generator=random) - 0.5) * 2 * fmt.unit_roundoff
    y = a + d
    moved = stepped(y, [a, d], fmt, None)[0]
    same = ((a + d).log2().floor() == 0) & (d.abs() < 16 * fmt.unit_roundoff)
    assert same.float().mean() > 0.9
    wrong = moved[same] != round_to(y, fmt)[same]
    assert wrong.float().mean() < 0.01  # float32's own last bit
    off_the_grid = stepped(y + 0.3 * fmt.unit_roundoff, [a + 0.3 * fmt.unit_roundoff], fmt, None)[0]
    shifted = (off_the_grid - moved)[same] / fmt.unit_roundoff
    assert (shifted - 0.3).abs().le(0.01).float().mean() > 0.98  # whatever the operand is
    assert stepped(y, [d], fmt, None)[0] is y  # far from it
    settled = torch.ones_like(y)
    assert stepped(y, [a], fmt, settled)[0] is y


@pytest.mark.parametrize("fmt", FORMATS)
def test_what_lies_half_way_goes_to_an_even_number(fmt):
    """A half that is added to whole numbers, as they are rounded by hand; a one beyond the last."""
    last = 2.0 ** (fmt.significand - 1)
    whole = last + torch.arange(100.0).repeat(3)
    halves = round_to(whole + 0.5, fmt)
    assert float((halves == whole).float().mean()) == 0.5
    assert torch.equal(absorbed(whole + 0.5, [whole], fmt)[0][::2], whole[::2])
    assert torch.equal(absorbed(whole + 0.5, [whole], fmt)[0][1::2], whole[1::2] + 0.5)
    for addend in (0.5, 1.5, -2.5):
        moved = stepped(whole + 20 + addend, [whole + 20], fmt, None)[0]
        assert torch.equal(moved, round_to(whole + 20 + addend, fmt))


@pytest.mark.parametrize("fmt", FORMATS)
def test_below_a_power_of_two_steps_are_half_as_wide(fmt):
    one = torch.ones(64)
    for part in (0.4, 0.6, 0.9):
        y = one - part * fmt.unit_roundoff
        falls = absorbed(y, [one], fmt)[1]
        assert bool((round_to(y, fmt) == one).all()) == (falls is not None)


class Loop(nn.Module):
    """Adds the same, or nearly the same, again and again."""

    def __init__(self, times, step):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.times, self.step = nn.Linear(4, 4), times, step

    def forward(self, x):
        y = self.body(x)
        for _ in range(self.times):
            y = y + self.step * torch.tanh(self.body(y))
        return y


@pytest.mark.parametrize("name", ["16-true", "bf16-true"])
def test_errors_that_repeat_in_a_loop_add_up_in_the_forecast(name):
    x = drawn(400, 4)
    subject = Evaluation(Loop(60, 1 / 60).eval(), [x], labelled=False, task="regression")
    report = check(subject, precision=name, target="cuda")
    assert report.standardised.spread < 1.6
    loss = report.metric.reference - report.metric.candidate
    forecast = report.forecast.metric_loss
    assert 0.6 < forecast / loss < 1.6


def test_of_few_runs_nothing_is_known_to_repeat():
    recorder = Recorder(2, torch.device("cpu"), where=lambda: "here", totals={})
    for time in range(6):
        assert recorder.repeats("add") == (time >= 4)
        recorder.site(drawn(2, 3), FLOAT16, "add")
    assert not recorder.repeats("mul")


def test_what_vanishes_is_not_lifted_by_a_random_error():
    noise = torch.Generator().manual_seed(0)
    recorder = Recorder(2, torch.device("cpu"), where=str, totals={}, noise=noise)
    y = torch.tensor([1e-10, -2e-8, 5e-8, 3e-7, 0.5]).expand(2, 5).clone()
    assert torch.equal(recorder.site(y, FLOAT16, "mul")[:, :4], y.half().float()[:, :4])


@pytest.mark.parametrize("fmt", FORMATS)
def test_what_float32_has_lost_beside_an_operand_is_settled_too(fmt):
    """Scores beside a mask of a power of two: nothing is left of them to take away."""
    mask = torch.full((1000,), -(2.0**15))
    y = (1e-4 * drawn(1000)) + mask
    assert torch.equal(y, mask)
    moved, fixed = certain_errors(y, [1e-4 * drawn(1000), mask], fmt, False, False, False)
    assert moved is y
    assert bool(fixed.all())
