"""Programs that branch by torch.cond."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, Settings
from pytest_fp16.conformance import examine
from pytest_fp16.engine.branches import branches_as_python


class Branching(nn.Module):
    def __init__(self, factor=1.0):
        super().__init__()
        self.first, self.head, self.factor = nn.Linear(20, 16), nn.Linear(16, 4), factor

    def forward(self, x):
        x = self.first(x)
        x = torch.cond(x.mean() > -1, lambda x: x.relu() * self.factor, torch.sin, (x,))
        return self.head(x / self.factor)


def examined(factor):
    torch.manual_seed(0)
    model, x = Branching(factor).eval(), torch.randn(200, 20)
    with branches_as_python():
        labels = model(x).argmax(-1)
    data = list(zip(x.split(50), labels.split(50), strict=True))
    settings = Settings(precisions=("16-true", "16-mixed", "bf16-true"), budget=0.05)
    return examine(Evaluation(model=model, data=data), settings)


def test_a_sound_model_is_followed():
    for report in examined(1.0):
        assert (report.verdict, report.forecast.verdict) == ("equivalent", "equivalent")
        assert report.forecast.method == "adjoint"


def test_what_overflows_in_a_branch_is_found():
    half, mixed, brain = examined(1e5)
    assert brain.verdict == "equivalent"
    for report in (half, mixed):
        assert (report.verdict, report.forecast.verdict) == ("not equivalent", "not equivalent")


def test_a_predicate_per_example_and_other_errors_are_torchs_own():
    def halved(x):
        return torch.cond(x.sum() > 0, lambda x: x / 2, lambda x: x * 2, (x,))

    rows = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    with branches_as_python():
        assert torch.equal(torch.vmap(halved)(rows), torch.tensor([[0.5, 0.5], [-2.0, -2.0]]))
        with pytest.raises(RuntimeError, match="ambiguous"):
            torch.cond(rows > 0, torch.sin, torch.cos, (rows,))


def test_torchs_own_is_put_back_however_nested():
    own = torch.cond
    with branches_as_python():
        with branches_as_python():
            assert torch.cond is not own
        assert torch.cond is not own
    assert torch.cond is own
