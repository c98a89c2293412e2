"""What a program assigns to ``.data`` of a parameter goes on, and the parameter is left alone."""

import pytest
import torch
from torch import Tensor, nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.emulation.assignments import assigned
from pytest_fp16.engine.emulation.interception import Carrier


class ByFirstBatch(nn.Module):
    """Scales by what its first batch tells, as the activation norm of a flow does."""

    def __init__(self):
        super().__init__()
        self.body, self.shift = nn.Linear(6, 4), nn.Parameter(torch.zeros(4))
        self.scale = nn.Parameter(torch.zeros(4))
        self.register_buffer("done", torch.tensor(0.0))

    def forward(self, x):
        z = self.body(x)
        if not self.done > 0:
            self.scale.data = -torch.log(z.std(0) + 1e-6).data
            self.shift.data = (-z.mean(0) * torch.exp(self.scale)).data
            self.done = torch.tensor(1.0)
        return z * torch.exp(self.scale) + self.shift


class UnitLength(nn.Module):
    """Keeps the weights of its classes at unit length."""

    def __init__(self):
        super().__init__()
        self.body, self.classes = nn.Linear(6, 8), nn.Parameter(torch.randn(4, 8))

    def forward(self, x):
        self.classes.data = nn.functional.normalize(self.classes.data)
        return self.body(x) @ self.classes.T


class Borrowed(nn.Module):
    """Lends its layer other weights for a while, and gives it back those it keeps."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 6)
        self.register_buffer("own", self.body.weight.detach().clone())

    def forward(self, x):
        self.body.weight.data = 3 * self.own
        y = self.body(x)
        self.body.weight.data = self.own
        return y + self.body(y.tanh())


@pytest.mark.parametrize("precision", ["16-true", "bf16-mixed"])
@pytest.mark.parametrize("make", [ByFirstBatch, UnitLength, Borrowed])
def test_a_model_that_assigns_is_followed(make, precision):
    torch.manual_seed(0)
    subject = Evaluation(make().eval(), [torch.randn(64, 6)], labelled=False, task="regression")
    report = check(subject, precision=precision, budget=1.0)
    assert report.forecast.method != "unavailable", report.forecast.reason
    assert report.verdict == report.forecast.verdict == "equivalent"
    assert 0.5 < report.standardised.spread < 1.6


def test_a_failure_of_what_was_assigned_is_explained():
    torch.manual_seed(0)
    model = ByFirstBatch().eval()
    with torch.no_grad():
        model.body.weight *= 1e-5
        model.body.bias *= 0
    subject = Evaluation(model, [torch.randn(64, 6)], labelled=False, task="regression")
    report = check(subject, precision="16-true")
    assert report.verdict == report.forecast.verdict == "not equivalent"
    assert (report.culprit.operation, report.culprit.mechanism) == ("exp", "overflow"), str(report)
    assert "test_assignments.py" in report.culprit.source


def test_torch_is_as_it_was():
    own, plain = Tensor.data, nn.Parameter(torch.zeros(2))
    with assigned(Carrier, {}), assigned(Carrier, {}):
        plain.data = torch.ones(2)
        assert torch.equal(plain.data, torch.ones(2))
    assert Tensor.data is own
    assert "data" not in vars(Tensor)
