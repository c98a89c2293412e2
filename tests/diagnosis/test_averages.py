"""Averages of weights that stay in float32."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16 import Training, check
from pytest_fp16.diagnosis.averages import copies_of_trained
from pytest_fp16.diagnosis.training_cures import proposals
from pytest_fp16.precision import precision


class Averaged(nn.Module):
    """Evaluates an average of its weights, which moves by a small part of the difference."""

    def __init__(self, decay=0.998):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        self.average = copy.deepcopy(self.net).requires_grad_(False)
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.decay = decay

    def forward(self, x):
        return self.average(x)

    def step(self, batch):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        with torch.no_grad():
            for own, new in zip(self.average.parameters(), self.net.parameters(), strict=True):
                own.sub_((1 - self.decay) * (own - new))
        return loss


def test_copies_are_told_by_their_shapes():
    model = Averaged()
    assert copies_of_trained(model) == ["average"]
    assert copies_of_trained(model.net) == []
    assert copies_of_trained(nn.ModuleList([model, nn.Linear(3, 3)])) == ["0.average"]


@pytest.mark.parametrize(("name", "offered"), [("bf16-true", 1), ("bf16-mixed", 0)])
def test_a_mixed_precision_keeps_them_anyway(name, offered):
    model = Averaged()
    subject = training(model)
    found = proposals(subject, model, precision(name), None, None)
    assert [cure.modules for cure in found if cure.kind == "keep_in_float32"] == [
        ["average"]
    ] * offered


def training(model):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(40, 16, 8, generator=random)
    data = [(rows, rows[:, :3].argmax(1)) for rows in x]
    return Training(
        model=model,
        train_data=data[:32],
        eval_data=data[32:],
        loss=None,
        optimizer=lambda model: torch.optim.SGD(model.net.parameters(), 0.1),
        training_step=lambda model, batch: model.step(batch),
        epochs=20,
    )


def test_an_average_that_stands_still_is_named():
    report = check(training(Averaged), precision="bf16-true", seeds=3, budget="3pt")
    assert report.verdict == "not equivalent", str(report)
    assert (report.culprit.module, report.culprit.mechanism) == ("average", "absorption")
    assert (report.cure.kind, report.cure.modules) == ("keep_in_float32", ["average"])
    assert report.cure.verified
