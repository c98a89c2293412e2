"""A precision that follows another's backward pass says what it would say alone."""

from collections import Counter

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, Settings
from pytest_fp16.conformance import examine
from pytest_fp16.engine.prediction import reverse
from pytest_fp16.engine.prediction.reverse import NotDifferentiableError
from pytest_fp16.engine.prediction.rivals import Rivals
from pytest_fp16.theory.rounding import FORMATS

ALL = ("16-true", "16-mixed", "bf16-true", "bf16-mixed")


class Scaled(nn.Module):
    """A classifier whose features pass through a division by very small numbers."""

    def __init__(self, unit):
        super().__init__()
        self.first, self.last, self.unit = nn.Linear(12, 24), nn.Linear(24, 5), unit

    def forward(self, x):
        y = torch.relu(self.first(x)) * self.unit
        return self.last(y / (y.abs().amax(-1, keepdim=True) + self.unit))


class TinyVariance(nn.Module):
    """A classifier whose running variance float16 holds as nearly twice what it is."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(12, 24), nn.BatchNorm1d(24, eps=1e-12)
        self.norm.running_var.fill_(3.0e-8)
        self.last = nn.Linear(24, 5)

    def forward(self, x):
        return self.last(self.norm(self.first(x) * 2e-4))


def subject(unit):
    torch.manual_seed(3)
    model = (TinyVariance() if unit is None else Scaled(unit)).eval()
    x = torch.randn(90, 12)
    with torch.no_grad():
        return Evaluation(model=model, data=[(x, model(x).argmax(-1))])


@pytest.mark.parametrize("unit", [1.0, 1e-8, None])
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
    passes, reverse_pass = [], reverse._reverse

    def counted(trace, *rest):
        name = "bf16" if trace.recorder.formats[0] is FORMATS[torch.bfloat16] else "16"
        passes.append(f"{name}-mixed" if trace.mixed else f"{name}-true")
        return reverse_pass(trace, *rest)

    monkeypatch.setattr(reverse, "_reverse", counted)
    examine(subject(unit), Settings(precisions=ALL))
    return Counter(passes)


def test_one_precision_runs_backward_for_all(monkeypatch):
    passes = count_reverse_passes(monkeypatch, 1.0)

    assert passes.pop("16-true") > 1
    assert passes == dict.fromkeys(("16-mixed", "bf16-true", "bf16-mixed"), 1)


def test_values_that_underflow_in_one_format_are_not_shared_with_another(monkeypatch):
    assert count_reverse_passes(monkeypatch, 1e-8)["bf16-true"] > 1


def test_derivatives_that_storage_has_moved_are_not_shared(monkeypatch):
    passes = count_reverse_passes(monkeypatch, None)

    assert passes["16-mixed"] > 1  # its normalisation keeps float32 parameters
    assert passes["bf16-true"] == passes["bf16-mixed"] == 1


def test_certificates_that_were_not_settled_are_not_handed_on(theory_of, monkeypatch):
    def refuse(*_):
        raise NotDifferentiableError("these few do not run by themselves")

    torch.manual_seed(3)
    model, x = Scaled(1.0).eval(), torch.randn(90, 12)
    leader, reference = theory_of(model, x, "16-true")
    follower, _ = theory_of(model, x, "bf16-true")
    leader.followers = [follower]
    monkeypatch.setattr(Rivals, "ask", refuse)
    leader.run(x, 90, reference, 0)

    assert leader.method == "random rounding"
    assert follower.pending is None
