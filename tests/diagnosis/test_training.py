"""Trainings broken on purpose: who is blamed, and whether the cure was tried."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_fp16 import check
from pytest_fp16.diagnosis.training_cures import proposals
from pytest_fp16.engine.gradient_check import GradientFindings
from pytest_fp16.precision import PRECISIONS
from pytest_fp16.report.model import Culprit


class Square(nn.Module):
    def forward(self, x):
        return (x * 300) * (x * 300) / 90000


def squaring():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), Square(), nn.Linear(32, 10))


def adam(params):
    return torch.optim.Adam(params, lr=1e-3)


def far(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none").mul(3000).sum() / 192000


BROKEN = {
    "epsilon": ({"optimizer": adam}, "<optimizer>", "eps-underflow", "optimizer epsilon"),
    "loss": ({"loss": far}, "<loss>", "overflow", "loss in float32"),
    "module": ({"model": squaring}, "2", "overflow", "keep_in_float32"),
}


@pytest.fixture(params=["with the gradient check", "with a silent gradient check"])
def _gradient_check(request, monkeypatch):
    if "silent" in request.param:
        silent = GradientFindings("equivalent", "nothing found")
        monkeypatch.setattr("pytest_fp16.training.gradient_check", lambda *_: silent)


@pytest.mark.usefixtures("_gradient_check")
@pytest.mark.parametrize("case", BROKEN)
def test_culprit_and_cure(digits_training, case):
    changes, module, mechanism, kind = BROKEN[case]
    report = check(digits_training(epochs=1, **changes), precision="16-true", seeds=3)
    assert report.verdict == "not equivalent"
    assert (report.culprit.module, report.culprit.mechanism) == (module, mechanism)
    assert report.cure.kind == kind
    assert report.cure.verified
    assert report.cure.metric > report.metric.reference - 0.05
    price = report.cure.price
    assert (price.float32_share > price.float32_share_before) is (module != "<optimizer>")


def test_a_cure_that_does_not_help_is_not_named(digits_training, monkeypatch):
    from pytest_fp16.diagnosis import training

    useless = [
        p
        for p in proposals(
            digits_training(loss=far),
            squaring(),
            PRECISIONS["16-true"],
            Culprit(module="<optimizer>", operation="", mechanism="eps-underflow", evidence=""),
            None,
        )
        if p.kind == "loss in float32"
    ]
    monkeypatch.setattr(training, "proposals", lambda *_: iter(useless))
    report = check(digits_training(optimizer=adam, epochs=1), precision="16-true", seeds=3)
    assert report.verdict == "not equivalent"
    assert report.cure is None


def kinds(subject, precision, module, mechanism, scale=None):
    culprit = Culprit(module=module, operation="", mechanism=mechanism, evidence="")
    model = subject.model()
    return [p.kind for p in proposals(subject, model, PRECISIONS[precision], culprit, scale)]


def test_what_is_proposed_follows_from_the_culprit(digits_training):
    subject = digits_training(optimizer=adam)
    assert kinds(subject, "16-true", "<optimizer>", "eps-underflow")[0] == "optimizer epsilon"
    assert kinds(subject, "16-true", "<loss>", "overflow")[0] == "loss in float32"
    assert kinds(subject, "16-true", "1", "underflow", 1024.0)[0] == "loss scale"
    assert kinds(subject, "16-mixed", "1", "overflow") == ["keep_in_float32", "bfloat16"]
    assert kinds(subject, "bf16-true", "1", "precision-loss") == ["keep_in_float32", "mixed"]
    assert "loss scale" not in kinds(subject, "16-mixed", "1", "underflow", 1024.0)


def test_a_raised_epsilon_leaves_a_sound_one_alone(digits_training):
    def sound(params):
        return torch.optim.Adam(params, lr=1e-3, eps=1e-2)

    found = kinds(digits_training(optimizer=sound), "16-true", "<optimizer>", "absorption")
    assert found == ["mixed", "bfloat16"]
