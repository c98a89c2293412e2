"""Whether it matters that a model is in training mode."""

from functools import wraps

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.modes import acts_in_training


class Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.training_data = "the name of an attribute is no mode"

    def forward(self, x):
        return self.inner(x)


class Reads(nn.Linear):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, training=self.training)


def twice(function):
    @wraps(function)
    def run(self, x):
        return function(self, function(self, x))

    return run


class ReadsWithin(nn.Module):
    @twice
    def forward(self, x):
        return next(x * 2 if self.training else x for _ in range(1))


class AsksElsewhere(nn.Module):
    @property
    def factor(self):
        return 2 if self.training else 1

    def forward(self, x):
        return self.factor * x


@pytest.mark.parametrize(
    ("module", "acts"),
    [
        (nn.Linear(4, 4), False),
        (nn.Dropout(0.1), True),
        (nn.Dropout(0.0), False),
        (nn.BatchNorm1d(4), True),
        (nn.BatchNorm1d(4, track_running_stats=False), False),
        (nn.InstanceNorm1d(4), False),
        (nn.InstanceNorm1d(4, track_running_stats=True), True),
        (nn.LayerNorm(4), False),
        (nn.RReLU(), True),
        (nn.ReLU(), False),
        (nn.LSTM(4, 4), False),
        (nn.GRU(4, 4, 2, dropout=0.1), True),
        (nn.MultiheadAttention(4, 1), False),
        (nn.MultiheadAttention(4, 1, dropout=0.1), True),
        (nn.TransformerEncoderLayer(4, 1, 4, dropout=0.0), False),
        (nn.TransformerEncoderLayer(4, 1, 4), True),
        (nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), True),
        (Reads(4, 4), True),
        (ReadsWithin(), True),
        (AsksElsewhere(), True),
        (torch.fx.symbolic_trace(nn.Linear(4, 4)), False),
    ],
)
def test_a_mode_matters_where_it_changes_what_a_module_does(module, acts):
    for made in (module, nn.Sequential(module), Wrapper(module)):
        assert acts_in_training(made.train()) is acts
        assert not acts_in_training(made.eval())
        assert not acts_in_training(Wrapper(made)), "a wrapper around what is in eval mode"


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize(("inner", "acts"), [(nn.Dropout(0.5), True), (nn.Tanh(), False)])
def test_a_scripted_module_tells_by_its_code(inner, acts):
    assert acts_in_training(torch.jit.script(nn.Sequential(nn.Linear(4, 4), inner))) is acts


@pytest.mark.parametrize(("inner", "said"), [(nn.Dropout(0.5), True), (nn.Identity(), False)])
def test_only_a_mode_that_matters_is_told(inner, said):
    model = nn.Sequential(nn.Linear(4, 3), inner)
    report = check(Evaluation(model, [torch.randn(8, 4)], labelled=False), precision="bf16-true")
    assert any("training mode" in w for w in report.warnings) is said
