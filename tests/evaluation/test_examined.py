"""An examination gives a report per precision, diagnosed where it failed."""

import torch
from torch import nn

from pytest_fp16 import Evaluation
from pytest_fp16.evaluation.examined import examine_evaluation
from pytest_fp16.settings import Settings


class Squares(nn.Module):
    def forward(self, x):
        return (x * x).sqrt()


def test_what_fails_is_diagnosed_and_what_passes_is_not():
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)) * 1e3
    data = [(x, x.abs().argmax(-1))]
    settings = Settings(precisions=("16-true", "16-mixed"))
    failed, passed = examine_evaluation(Evaluation(Squares(), data), settings)
    assert (failed.precision, failed.verdict) == ("16-true", "not equivalent")
    assert (failed.culprit.operation, failed.culprit.mechanism) == ("mul", "overflow")
    assert passed.verdict == "equivalent"
    assert passed.culprit is None
