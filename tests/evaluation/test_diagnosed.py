"""After an evaluation: who is diagnosed, what a remedy is, and how it is judged."""

from typing import ClassVar

import pytest
import torch
from torch import nn

import pytest_fp16.evaluation.diagnosed as after
from pytest_fp16 import Evaluation, check
from pytest_fp16.conformance import examine
from pytest_fp16.diagnosis.remedy import Remedy
from pytest_fp16.errors import ModelError
from pytest_fp16.evaluation.run import EvaluationRun
from pytest_fp16.report.model import Metric
from pytest_fp16.settings import Settings


def batches(digits, size=200):
    _, (x, y) = digits
    return list(zip(x.split(size), y.split(size), strict=True))


def test_a_passing_test_pays_nothing(make_net, digits, monkeypatch):
    monkeypatch.setattr(after, "diagnosed", lambda *_: pytest.fail("diagnosed a healthy model"))
    report = check(Evaluation(model=make_net(nn.GELU()), data=batches(digits)))
    assert report.equivalent
    assert report.culprit is None
    assert report.cure is None
    assert 0 < len(report.least_robust) <= 8


def test_a_diagnosis_that_fails_is_a_warning(make_net, digits, monkeypatch):
    def broken(request):
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr(after, "diagnose", broken)
    model = make_net(nn.Hardtanh(max_val=1e9), gain=1e7)
    report = check(Evaluation(model=model, data=batches(digits)))
    assert report.verdict == "not equivalent"
    assert report.culprit is None
    assert any("a bug of ours" in w for w in report.warnings)


def test_siblings_that_were_examined_are_not_judged_again(make_net, digits, monkeypatch):
    judged = []
    really = after._judged

    def watched(run, remedy, planned):
        judged.append(remedy)
        return really(run, remedy, planned)

    monkeypatch.setattr(after, "_judged", watched)

    class Large(nn.Module):
        def forward(self, x):
            return x * 1e7

    model = make_net(nn.Sequential(Large(), nn.Identity()))
    model.head = nn.Sequential(nn.LayerNorm(32), model.head)
    settings = Settings(precisions=("16-true", "bf16-true"), target="cuda")
    subject = Evaluation(model=model, data=batches(digits))
    first, second = examine(subject, settings)
    assert first.culprit.mechanism == "overflow"
    assert second.equivalent
    assert first.cure.verified
    assert Remedy("bf16-true") not in judged


class Large(nn.Module):
    seen: ClassVar[list] = []

    def forward(self, x):
        self.seen.append(x.dtype)
        return (x * 1e7).clamp(-1e7, 1e7) / 1e7


def executed(model, data, *precisions):
    settings = Settings(precisions=precisions or ("16-true",), device="cpu")
    run = EvaluationRun(Evaluation(model=model, data=data), settings, None, {})
    run.execute()
    return run


def test_a_remedy_is_a_fresh_candidate(make_net, digits):
    run = executed(make_net(Large()), batches(digits), "16-true")
    kept = after.remedied(run, Remedy("bf16-true", ("core.part",)))
    assert kept.precision.name == "bf16-true"
    assert kept.model is not run.runs[0].candidate.model
    Large.seen.clear()
    kept.outputs(torch.ones(2, 1, 8, 8), 0)
    assert Large.seen == [torch.float32]


def test_a_remedy_that_cannot_be_applied_says_so(make_net, digits):
    run = executed(make_net(Large()), batches(digits))
    with pytest.raises(ModelError, match="nowhere"):
        after.remedied(run, Remedy("16-true", ("nowhere",)))


def test_a_cure_is_judged_on_all_of_the_data(make_net, digits):
    run = executed(make_net(Large()), batches(digits, size=60))
    sick = after._judged(run, Remedy("16-true"), {})
    cured = after._judged(run, Remedy("16-true", ("core.part",)), {})
    assert (sick.report.verdict, cured.report.verdict) == ("not equivalent", "equivalent")
    assert cured.report.inputs == len(digits[1][1])
    assert sick.kept.n > 0
    # what a plan keeps comes first, in its own precision alone
    planned = {"16-true": ("core.part",)}
    assert after._judged(run, Remedy("16-true"), planned).report.equivalent


def test_a_request_brings_its_siblings_and_its_own_candidate(make_net, digits):
    model, data = make_net(Large()), batches(digits)
    settings = Settings(precisions=("16-true", "bf16-true"), device="cpu")
    reports = {r.precision: r for r in examine(Evaluation(model=model, data=data), settings)}
    run = executed(model, data, "16-true", "bf16-true")
    precision_run = run.runs[0]
    request = after.request_of(run, precision_run, reports["16-true"], reports)
    assert list(request.siblings) == ["bf16-true"]
    assert request.candidate(Remedy("16-true")) is precision_run.candidate
    assert request.candidate(Remedy("16-true", ("core.part",))) is not precision_run.candidate
    assert request.emulated


def lucky(scale=1.0):
    """One input of five is lost for good, and leads no decision elsewhere."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)).eval()
    model[0].running_var[0] = 99_123.4 * scale
    model[1].weight.data = torch.tensor([[0.3, 2, 0, 0], [0.3, 0, 2, 0], [0.3, 0, 0, 2.0]])
    data = torch.randn(64, 4)
    data[:, 0] *= (99_123.4 * scale) ** 0.5
    return Evaluation(model=model, data=[data], labelled=False)


def test_what_passes_by_luck_is_diagnosed_and_cured():
    report = check(lucky())
    assert report.equivalent
    assert report.flips == 0
    assert report.luck in report.warnings
    assert "survived by luck" in report.luck
    assert report.culprit is not None
    assert (report.culprit.module, report.culprit.mechanism) == ("0", "overflow")
    assert report.cure is not None
    assert report.cure.verified


def test_what_passes_by_luck_pays_only_where_it_does(monkeypatch):
    monkeypatch.setattr(after, "diagnosed", lambda *_: pytest.fail("diagnosed a healthy model"))
    assert check(lucky(1e-3)).equivalent


def test_a_cure_that_passes_by_luck_again_is_none(monkeypatch):
    offered = []

    def watched(request):
        offered.append(request.judge(Remedy("16-true", ("1",))))
        offered.append(request.judge(Remedy("16-true", ("0",))))
        return after.Diagnosis()

    monkeypatch.setattr(after, "diagnose", watched)
    check(lucky())
    assert [again.report.verdict for again in offered] == ["inconclusive", "equivalent"]


def near(loss):
    """A report that passes with a loss of so many budgets."""
    numbers = {"name": "accuracy", "reference": 0.9, "candidate": 0.9 - loss * 0.01, "budget": 0.01}
    metric = Metric(**numbers, loss=loss * 0.01, budget_origin="default", labelled=True)
    verdict = "equivalent" if loss <= 1 else "not equivalent"
    report = check(lucky(1e-3))
    return report.model_copy(update={"verdict": verdict, "metric": metric})


@pytest.mark.parametrize(
    ("before", "then", "verdict"),
    [
        (0.7, 0.7, "inconclusive"),
        (0.7, 0.2, "equivalent"),
        (3.0, 0.7, "equivalent"),
        (0.7, 3.0, "not equivalent"),
    ],
)
def test_what_spends_more_than_half_of_the_budget_again_wins_nothing_back(before, then, verdict):
    assert after._as_cure(near(before), near(then)).verdict == verdict
