"""A mechanism with its evidence."""

import torch

from pytest_fp16.diagnosis.findings import Finding
from pytest_fp16.diagnosis.measure import Measure
from pytest_fp16.diagnosis.twin_run import Operation
from pytest_fp16.diagnosis.why import Why, format_of, low_format
from pytest_fp16.theory.rounding import FORMATS


def test_a_culprit_says_what_was_seen():
    culprit = Why("overflow", Operation(3, "pow", "block.norm"), "9e4").culprit()
    assert (culprit.module, culprit.operation) == ("block.norm", "pow")
    assert (culprit.mechanism, culprit.evidence, culprit.source) == ("overflow", "9e4", None)


def test_the_format_is_that_of_a_16_bit_result_else_of_an_operand():
    wide, low = (Measure(torch.ones(1), torch.ones(1), d) for d in (torch.float32, torch.bfloat16))
    assert format_of(Finding(results=[wide], operands=[wide, low])) is FORMATS[torch.bfloat16]
    assert low_format(Finding(results=[wide], operands=[wide])) is None
