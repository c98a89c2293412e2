"""A cure that was not tried says why."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.diagnosis import cures
from pytest_fp16.diagnosis.remedy import Remedy
from pytest_fp16.diagnosis.trials import Recheck, Trials
from pytest_fp16.diagnosis.untried import untried
from pytest_fp16.errors import FP16Error
from pytest_fp16.report.model import Culprit


@pytest.fixture
def trials():
    return Trials(nn.Identity(), "16-true", lambda _: None, lambda *_: None, lambda _: None)


def culprit(source="net.py:3"):
    known = {"module": "", "operation": "mm", "mechanism": "precision-loss", "evidence": ""}
    return Culprit(**known, source=source)


def fell_short(verdict, detail):
    checks = [
        SimpleNamespace(passed=True, detail="?"),
        SimpleNamespace(passed=False, detail=detail),
    ]
    return Recheck(SimpleNamespace(verdict=verdict, checks=checks))


def test_what_was_tried_in_its_place_and_cannot_be_told_from_chance(trials):
    trials.short[Remedy("bf16-true")] = fell_short("not equivalent", "a loss")
    trials.short[Remedy("16-mixed")] = fell_short("inconclusive", "the reference is near chance")
    said = untried(trials, culprit(), "upcast")
    assert said == "what was tried in its place is inconclusive: the reference is near chance"


def test_a_change_of_code(trials):
    trials.error = RuntimeError("of another cure")
    assert untried(trials, culprit(), "rescale").startswith("it is a change of the code, which")


def test_no_line_to_change(trials):
    assert untried(trials, culprit(None), "upcast").startswith("no line of the program's own")


def test_what_does_not_run(trials):
    trials.error = RuntimeError("a view of other strides")
    assert untried(trials, culprit(), "upcast").endswith(
        "run: RuntimeError: a view of other strides"
    )


def test_the_allowance_is_spent(trials):
    trials.budget = 0
    assert untried(trials, culprit(), "upcast").startswith("as many cures were tried in full as")


def test_the_report_says_so():
    torch.manual_seed(0)
    subject = Evaluation(
        nn.Sequential(nn.Linear(16, 10)).eval(), [torch.randn(3000, 16)], labelled=False
    )
    report = check(subject, precision="bf16-mixed", emulate="always", budget=0.0)
    assert (report.cure.verified, report.cure.verdict) == (False, None)
    assert "; not tried: no line of the program's own computes it, which" in str(report)


def test_the_error_of_a_line_is_kept(trials):
    def rerun(*_):
        raise RuntimeError("it does not run so")

    def judge(_):
        raise FP16Error

    trials.rerun, trials.judge = rerun, judge
    cure, _ = cures.find_cure(trials, culprit(), None)
    assert cure.untried.endswith("the model does not run: RuntimeError: it does not run so")
