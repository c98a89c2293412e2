"""The forecast, from 32-bit arithmetic alone; whole evaluations are in test_evaluation."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.evaluation.foreseen import MAY_BE_LOST, by_chance


class Logits(torch.nn.Module):
    """log(p / (1 − p)) of several tags, which is infinite where p rounds to one."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        p = torch.sigmoid(x * self.scale)
        return torch.log(p / (torch.ones_like(p) - p))


@pytest.mark.parametrize(("scale", "said"), [(9.0, "not equivalent"), (4.0, "equivalent")])
def test_outputs_that_only_rounding_loses_are_forecast(scale, said):
    x = torch.linspace(-1, 1, 600).reshape(100, 6)
    subject = Evaluation(Logits(scale), [(x, (x > 0).float())], task="multilabel")
    report = check(subject, precision="16-true")
    assert report.forecast.verdict == report.verdict == said, str(report)
    assert ("NaN or infinite" in report.forecast.reason) == (said == "not equivalent")


class Tags(nn.Module):
    """Evidence of a rare class, on an offset that takes its digits."""

    def __init__(self, offset):
        super().__init__()
        self.offset = offset

    def forward(self, x):
        return torch.stack([torch.zeros_like(x), x], 1) + self.offset


@pytest.mark.parametrize(("offset", "said"), [(2400.0, "not equivalent"), (0.0, "equivalent")])
def test_a_class_that_is_lost_is_forecast(offset, said):
    x = torch.where(torch.arange(4000) % 200 == 0, 0.3, -0.3).reshape(40, 100)
    report = check(Evaluation(Tags(offset), [(x, (x > 0).long())]), precision="bf16-true")
    assert report.verdict == report.forecast.verdict == said
    lost = "expected to be lost: class 1: 0 right answers of 20 are left"
    assert (report.forecast.reason == lost) == (said == "not equivalent")


class Left(nn.Module):
    """How much is left below a bound, which rounding may reach."""

    def __init__(self, gap):
        super().__init__()
        self.gap = gap

    def forward(self, x):
        most = x.amax(1, keepdim=True)
        return torch.sqrt(most * self.gap + most * 3.0 - x * 0.9 * 1.7 * 1.3 * (3 / 1.989))


def test_a_pass_that_was_not_foretold_says_so():
    x = torch.rand(60, 4, generator=torch.Generator().manual_seed(0)).half().float()
    told = {}
    for gap in (0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.5):
        model = Left(gap)
        report = check(Evaluation(model, [(x, model(x).argmax(-1))]), precision="16-true")
        told[gap] = report.verdict, [w for w in report.warnings if "foretold" in w]
    assert told[0.001] == ("not equivalent", [])
    assert told[0.5] == ("equivalent", [])
    said = [(verdict, w[0]) for verdict, w in told.values() if w]
    assert said
    for verdict, warning in said:
        assert verdict == "equivalent"
        assert warning.startswith(
            "32-bit arithmetic foretold otherwise: rounding makes outputs NaN"
        )


@pytest.mark.parametrize(
    ("verdict", "kept", "told"),
    [
        ("not equivalent", 1.0, "the reason"),
        ("equivalent", MAY_BE_LOST - 0.05, "with a probability of 10%"),
        ("equivalent", MAY_BE_LOST, None),
        ("inconclusive", 0.1, None),
    ],
)
def test_a_pass_is_held_against_what_was_foretold(verdict, kept, told):
    run = SimpleNamespace(prediction=SimpleNamespace(kept_finite=kept))
    said = by_chance(run, SimpleNamespace(verdict=verdict, reason="the reason"))
    assert len(said) == (told is not None)
    assert told is None or told in said[0]
    assert by_chance(run, None) == []
