"""A precision that follows another's backward pass says what it would say alone."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, Settings
from pytest_fp16.conformance import examine
from pytest_fp16.engine.theory_pass import TheoryPass

ALL = ("16-true", "16-mixed", "bf16-true", "bf16-mixed")


class Scaled(nn.Module):
    """A classifier whose features pass through a division by very small numbers."""

    def __init__(self, unit):
        super().__init__()
        self.first, self.last, self.unit = nn.Linear(12, 24), nn.Linear(24, 5), unit

    def forward(self, x):
        y = torch.relu(self.first(x)) * self.unit
        return self.last(y / (y.abs().amax(-1, keepdim=True) + self.unit))


def subject(unit):
    torch.manual_seed(3)
    model = Scaled(unit).eval()
    x = torch.randn(90, 12)
    with torch.no_grad():
        return Evaluation(model=model, data=[(x, model(x).argmax(-1))])


@pytest.mark.parametrize("unit", [1.0, 1e-8])
def test_together_as_alone(unit):
    together = examine(subject(unit), Settings(precisions=ALL))
    for shared in together:
        (alone,) = examine(subject(unit), Settings(precisions=(shared.precision,)))
        assert shared.verdict == alone.verdict
        assert shared.forecast.verdict == alone.forecast.verdict
        sigmas = [r.forecast.sigma_median for r in (shared, alone)]
        assert sigmas == [None, None] or sigmas[0] == pytest.approx(sigmas[1], rel=0.02)
        assert shared.forecast.flips_expected == pytest.approx(
            alone.forecast.flips_expected, rel=0.05, abs=0.02
        )


def count_reverse_passes(monkeypatch, unit):
    passes = []
    reverse = TheoryPass._reverse

    def counted(self, *arguments):
        passes.append(self.precision.name)
        return reverse(self, *arguments)

    monkeypatch.setattr(TheoryPass, "_reverse", counted)
    examine(subject(unit), Settings(precisions=ALL))
    return set(passes)


def test_one_precision_runs_backward_for_all(monkeypatch):
    assert count_reverse_passes(monkeypatch, 1.0) == {"16-true"}


def test_values_that_underflow_in_one_format_are_not_shared_with_another(monkeypatch):
    assert "bf16-true" in count_reverse_passes(monkeypatch, 1e-8)
