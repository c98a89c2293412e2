"""What a loop does again and again is named, and not the step at which enough has come together."""

import linecache
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.diagnosis.findings import Finding
from pytest_fp16.diagnosis.loops import _worst
from pytest_fp16.diagnosis.measure import Measure
from pytest_fp16.diagnosis.twin_run import Operation


class Returns(nn.Module):
    """Discounted sums, backwards; the discount is a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("gamma", torch.tensor(0.997))

    def forward(self, rewards):
        last, out = torch.zeros_like(rewards[:, 0]), []
        for t in reversed(range(rewards.shape[1])):
            last = rewards[:, t] + self.gamma * last  # the discount
            out.append(last)
        return torch.stack(out[-4:], -1)


class Decay(nn.Module):
    """A state that decays by a factor computed anew from a rate."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.0057))

    def forward(self, x):
        state = x[:, :4] + 2
        for _ in range(160):
            factor = torch.exp(-self.rate)  # what rounds
            state = state * factor
        return state


class Angles(nn.Module):
    """A phase that turns by a step too fine for its size."""

    def __init__(self):
        super().__init__()
        self.step = nn.Parameter(torch.full((4,), 0.0625))

    def forward(self, x):
        phase = 64.0 + x[:, :4].sigmoid()
        for _ in range(40):
            phase = phase + self.step * x[:, :4].tanh().abs()  # what is lost
        return phase - 64.0


CASES = {
    Returns: ("the discount", "mul", "precision-loss"),
    Decay: ("what rounds", "exp", "precision-loss"),
    Angles: ("what is lost", "add", "absorption"),
}


@pytest.mark.parametrize("part", CASES)
def test_the_step_of_a_loop_that_does_it_is_named(part):
    marked, operation, mechanism = CASES[part]
    torch.manual_seed(0)
    model = nn.Sequential(part()).eval()
    x = 0.02 * torch.rand(64, 300) + 0.01 if part is Returns else torch.randn(64, 8)
    with torch.no_grad():
        data = [(x, model(x) + 1e-3 * torch.randn(64, 4))]
    culprit = check(Evaluation(model, data, task="regression"), precision="bf16-true").culprit
    assert f"# {marked}" in linecache.getline(__file__, int(culprit.source.rpartition(":")[2]))
    assert (culprit.operation, culprit.mechanism) == (operation, mechanism)


def test_what_is_handed_on_exactly_is_not_named():
    """A state that is set to zero by a product with zero or one, beside the sum that rounds."""
    state = torch.tensor([0.5, 0.7])
    exact = Measure(state.bfloat16(), state.bfloat16().float(), torch.bfloat16)
    rounded = Measure(state.bfloat16(), state, torch.bfloat16)
    program = [
        Operation(i, name, "m", finding=Finding(own=[own], results=[own]))
        for i, (name, own) in enumerate([("add", rounded), ("mul", exact)] * 10)
    ]
    watched = SimpleNamespace(side_by_side=lambda watch: program)
    adds, muls = list(range(0, 20, 2)), list(range(1, 20, 2))
    most, group, _ = _worst(watched, [(0.9, adds), (0.98, muls)])
    assert (most, group) == (0.9, adds)
    assert _worst(watched, [(0.1, adds), (0.98, muls)])[0] == 0.0
