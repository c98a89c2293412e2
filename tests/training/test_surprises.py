"""What is said where the gradient check and the runs do not say the same."""

from types import SimpleNamespace

import pytest

from pytest_fp16.engine.gradients.check import GradientFindings
from pytest_fp16.report.model import Culprit
from pytest_fp16.training.surprises import surprises

WHERE = Culprit(
    module="", operation="sub", mechanism="cancellation", evidence="", source="model.py:7"
)
ALARM = GradientFindings("not equivalent", "the gradient is bent", culprit=WHERE)
SILENT = GradientFindings("equivalent", "nothing found")


def said(verdict, forecast):
    return surprises(SimpleNamespace(verdict=verdict), forecast)


@pytest.mark.parametrize(
    ("verdict", "forecast", "words"),
    [
        ("equivalent", ALARM, "no run over seeds showed: the gradient is bent"),
        ("not equivalent", SILENT, "did not foresee this: it followed 0 of 0 steps"),
        ("inconclusive", ALARM, "expects a failure, for sub in the model itself (model.py:7)"),
    ],
)
def test_what_is_said(verdict, forecast, words):
    assert words in said(verdict, forecast)[0]


@pytest.mark.parametrize(
    ("verdict", "forecast"),
    [
        ("equivalent", SILENT),
        ("not equivalent", ALARM),
        ("inconclusive", SILENT),
        ("inconclusive", None),
    ],
)
def test_where_they_do_not_part_nothing_is(verdict, forecast):
    assert said(verdict, forecast) == []
