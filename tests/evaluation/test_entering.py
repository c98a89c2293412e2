"""Inputs that leave the range as they are cast are told of, whatever else is wrong."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.evaluation.entering import Entering
from pytest_fp16.theory.rounding import BFLOAT16, FLOAT16


def test_values_are_counted_over_batches_and_by_input():
    seen = Entering()
    for _ in range(2):
        seen.add({"x": torch.tensor([1.0, 7e4, 8e4]), "n": torch.tensor([10**6])}, FLOAT16, ())
        seen.add({"x": torch.ones(4), "t": torch.tensor([9e4])}, FLOAT16, ("t",))
    (said,) = seen.warnings(FLOAT16)
    assert said == (
        "cast to float16, the inputs have 4 of 14 values that are infinite (largest 8e+04, "
        "float16 holds 65504)"
    )
    seen.add({"t": torch.tensor([9e4, 1.0])}, FLOAT16, ())
    assert [w.split(" has")[0] for w in seen.warnings(FLOAT16)] == [
        "cast to float16, input 'x'",
        "cast to float16, input 't'",
    ]


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 65504.0],
        [torch.inf, torch.nan],
        [0.0, -1e9, -1e9],  # a mask
    ],
)
def test_what_fits_or_is_meant_is_not_told(values):
    seen = Entering()
    seen.add(torch.tensor(values), FLOAT16, ())
    assert seen.warnings(FLOAT16) == []


@pytest.mark.parametrize(("precision", "told"), [("16-true", 1), ("16-mixed", 0), ("bf16-true", 0)])
def test_a_report_tells_of_them(precision, told):
    class Bounded(nn.Module):
        def forward(self, x):
            return x.clamp(max=100)

    x = torch.rand(50, 4) * 100
    x[3, 2] = 123456.0
    report = check(
        Evaluation(model=Bounded(), data=[x], labelled=False, task="regression"),
        precision=precision,
    )
    said = [w for w in report.warnings if "are infinite" in w]
    assert len(said) == told
    assert not told or "1 of 200 values" in said[0]
    seen = Entering()
    seen.add(x, BFLOAT16, ())
    assert seen.warnings(BFLOAT16) == []
