"""From what an evaluation has shown to its report."""

import math

import pytest

from pytest_fp16.evaluation.report import needs_diagnosis
from pytest_fp16.report.model import Metric, Report


def a_report(verdict, loss=None, budget=0.01):
    metric = None
    if loss is not None:
        metric = Metric(
            name="accuracy", reference=0.9, candidate=0.9 - loss, loss=loss, budget=budget,
            budget_origin="absolute", labelled=True,
        )  # fmt: skip
    return Report(
        name="t", kind="evaluation", task="classification", precision="16-true", checks=[],
        verdict=verdict, metric=metric,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("verdict", "loss", "due"),
    [
        ("not equivalent", None, True),
        ("not equivalent", 0.0, True),
        ("equivalent", 0.006, True),
        ("equivalent", 0.004, False),
        ("equivalent", 1 - 0.995, False),  # 0.5 points of 1.0, but for the last bit of float64
        ("equivalent", -0.5, False),
        ("equivalent", None, False),
        ("inconclusive", None, False),
        ("inconclusive", math.inf, False),
    ],
)
def test_a_failure_and_a_narrow_pass_are_looked_into(verdict, loss, due):
    assert needs_diagnosis(a_report(verdict, loss)) is due


@pytest.mark.parametrize(
    ("verdict", "due"),
    [("equivalent", True), ("not equivalent", True), ("inconclusive", False)],
)
def test_what_passes_by_luck_is_looked_into(verdict, due):
    report = a_report(verdict, 0.0).model_copy(update={"luck": "they survived by luck"})
    assert needs_diagnosis(report) is due
