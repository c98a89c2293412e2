"""First order is checked once: where it does not hold, runs rounded at random say more."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, Settings
from pytest_fp16.conformance import examine

SAID = "a run rounded at random errs"


class Threshold(nn.Module):
    """Features that are flat where they are, and steep not far from there."""

    def __init__(self, steep):
        super().__init__()
        self.first, self.last, self.steep = nn.Linear(12, 24), nn.Linear(24, 4), steep

    def forward(self, x):
        near = (self.first(x).clamp(-1, 1) + 900) - 900  # bfloat16 is off by up to two there
        return self.last(torch.sigmoid(self.steep * (near - 1.5))) + 0.1 * self.last.bias


def forecasts(steep, *precisions, size=120):
    torch.manual_seed(2)
    model, x = Threshold(steep).eval(), torch.randn(120, 12)
    with torch.no_grad():
        data = [(part, model(part)) for part in x.split(size)]
    subject = Evaluation(model=model, data=data, task="regression")
    return [report.forecast for report in examine(subject, Settings(precisions=precisions))]


@pytest.mark.parametrize("size", [120, 1])
def test_a_step_that_rounding_crosses_is_told_by_runs_rounded_at_random(size):
    (said,) = forecasts(20.0, "bf16-true", size=size)
    assert said.method == "random rounding"
    assert any(SAID in note for note in said.notes)
    assert said.verdict == "not equivalent"


@pytest.mark.parametrize(("steep", "precision"), [(0.02, "bf16-true"), (8.0, "16-mixed")])
def test_errors_that_are_small_beside_it_are_left_to_the_gradient(steep, precision):
    (said,) = forecasts(steep, precision)
    assert said.method == "adjoint"


def test_a_follower_with_larger_errors_is_looked_at_itself():
    leader, follower = forecasts(8.0, "16-true", "bf16-true")
    assert leader.method == "adjoint"
    assert any(SAID in note for note in follower.notes)


class Apart(nn.Module):
    """Squares of how far two layers are apart, summed: what they err is squared, too."""

    def __init__(self, far):
        super().__init__()
        self.first, self.second = nn.Linear(12, 24), nn.Linear(12, 24)
        with torch.no_grad():
            self.second.weight.mul_(far).add_(self.first.weight)
            self.second.bias.mul_(far).add_(self.first.bias)

    def forward(self, x):
        return (8 * self.first(x) - 8 * self.second(x)).square().sum(1)


@pytest.mark.parametrize(("far", "method"), [(0.01, "adjoint"), (0.0003, "random rounding")])
def test_values_are_told_by_the_gradient_as_far_as_it_tells_what_is_lost(far, method):
    torch.manual_seed(2)
    model, x = Apart(far).eval(), torch.randn(120, 12)
    with torch.no_grad():
        data = [(x, model(x))]
    subject = Evaluation(model=model, data=data, task="regression")
    (report,) = examine(subject, Settings(precisions=("16-true",)))
    assert report.forecast.method == method
    assert 0.5 < report.forecast.metric_loss / report.metric.loss < 2


class Turning(nn.Module):
    """What is small may be either way round: for one input, where a layer gives `at`."""

    def __init__(self, x, steep):
        super().__init__()
        self.first, self.second, self.steep = nn.Linear(12, 24), nn.Linear(24, 1), steep
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(parameter.half())  # nothing is lost as it is stored
            self.register_buffer("at", self.second(self.first(x).tanh())[:1])

    def forward(self, x):
        x = self.second(self.first(x).tanh()).float()
        return x + 0.02 * torch.tanh(self.steep * (x - self.at))


@pytest.mark.parametrize("steep", [10.0, 1e5])
def test_one_input_whose_slope_holds_for_no_such_step_is_rounded_at_random(steep):
    """Its error is predicted to be five times as large as what there is to turn."""
    torch.manual_seed(2)
    x = torch.randn(240, 12).half().float()
    model = Turning(x[200], steep).eval()
    with torch.no_grad():
        data = [(part, model(part) + 0.02 * torch.randn(len(part), 1)) for part in x.split(120)]
    subject = Evaluation(model=model, data=data, task="regression")
    (report,) = examine(subject, Settings(precisions=("16-mixed",)))
    assert report.forecast.method == "adjoint"
    assert report.forecast.verdict == report.verdict == "equivalent"
    turned = 0.02**2 / sum(float(y.var(correction=0)) * len(y) for _, y in data)
    assert -turned < report.forecast.metric_loss < turned  # without it five times as much


class Root(nn.Module):
    """A root of what is next to nothing: its slope is thousands, and what it gives is small."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(12, 24), nn.Linear(24, 4)

    def forward(self, x):
        near = 1 - (self.first(x) * 8).sigmoid() * 1e-6  # one, in float16
        left = torch.ones_like(near, dtype=torch.float32) - near.float()
        return self.last(self.first(x).tanh()) + self.last(left.abs().sqrt().to(x.dtype))


def test_a_slope_that_no_error_follows_is_told_by_runs_rounded_at_random():
    torch.manual_seed(2)
    model, x = Root().eval(), torch.randn(120, 12)
    with torch.no_grad():
        labels = model(x).argmax(1)
    (report,) = examine(Evaluation(model, [(x, labels)]), Settings(precisions=("16-true",)))
    said = report.forecast
    assert said.method == "random rounding"
    assert any(SAID in note for note in said.notes)
    assert said.verdict == report.verdict == "equivalent"


class Spread(nn.Module):
    """A spread by two sums, far from zero: no slope tells that rounding makes it negative."""

    def __init__(self, offset):
        super().__init__()
        self.first, self.last, self.offset = nn.Linear(12, 24), nn.Linear(24, 4), offset

    def forward(self, x):
        h = 0.2 * self.first(x) + self.offset
        variance = h.square().mean(-1, keepdim=True) - h.mean(-1, keepdim=True).square()
        return self.last((h - self.offset) / (variance + 1e-5).sqrt())


@pytest.mark.parametrize(("offset", "method"), [(30.0, "random rounding"), (0.1, "adjoint")])
def test_outputs_that_rounding_makes_nan_are_lost_in_runs_rounded_at_random(offset, method):
    torch.manual_seed(2)
    model, x = Spread(offset).eval(), torch.randn(120, 12)
    with torch.no_grad():
        data = [(x, model(x).argmax(-1))]
    (report,) = examine(Evaluation(model, data), Settings(precisions=("16-true",)))
    said = report.forecast
    assert said.method == method
    assert said.verdict == report.verdict
    lost = "a run rounded at random loses outputs"
    assert any(lost in note for note in said.notes) == (offset == 30.0)
