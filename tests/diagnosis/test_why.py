"""A mechanism with its evidence."""

import torch
from torch import nn

from pytest_fp16 import Evaluation, check
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


def test_of_what_worked_in_float32_the_programs_own_format_is_told():
    wide = Measure(torch.ones(2), torch.ones(2), torch.float32)
    assert format_of(Finding(results=[wide], asked=torch.bfloat16)) is FORMATS[torch.bfloat16]


class Ids(nn.Module):
    """Rows by numbers that are made float32 too late."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Embedding(6000, 4)

    def forward(self, x):
        return self.rows(x.float()[:, 0].long())


def test_a_format_that_did_not_run_is_not_named():
    torch.manual_seed(0)
    data = [torch.randint(0, 5980, (200, 1)).float()]
    made = Evaluation(model=Ids().eval(), data=data, labelled=False)
    report = check(made, precision="bf16-true")
    assert "bfloat16" in str(report)
    assert "float16" not in str(report).replace("bfloat16", "")
