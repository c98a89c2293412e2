"""A defect that stands behind the one a cure mends."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from pytest_fp16 import Settings, check
from pytest_fp16.diagnosis.proposal import Proposal
from pytest_fp16.diagnosis.second_defect import second_defect
from pytest_fp16.engine.randomness import preserved_state
from pytest_fp16.engine.training.place import Amendment
from pytest_fp16.engine.training.runs import Runs
from pytest_fp16.engine.training.validation import validated
from pytest_fp16.mixing import keep_in_float32
from pytest_fp16.precision import PRECISIONS

HALF = PRECISIONS["16-true"]


class Square(nn.Module):
    def forward(self, x):
        return (x * 300) * (x * 300) / 90000


def squaring():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), Square(), nn.Linear(32, 10))


def adam(epsilon):
    return lambda params: torch.optim.Adam(params, lr=1e-2, eps=epsilon)


KEPT = Proposal(
    "keep_in_float32",
    "keep 2 in float32",
    amendment=Amendment(model=lambda model: keep_in_float32(model, ["2"], quiet=True)),
)


def left(subject, cure):
    with preserved_state():
        device = torch.device("cpu")
        runs = Runs(validated(subject, device), Settings().with_(device="cpu"), device)
        return second_defect(runs, HALF, cure)


@pytest.mark.parametrize("shared", [False, True])
def test_what_a_cure_leaves_is_told(digits_training, shared):
    """The overflow of a module is mended; that the optimizer's epsilon is zero is not."""
    model = squaring() if shared else squaring
    said = left(digits_training(model=model, optimizer=adam(1e-8)), KEPT)
    assert said.startswith("with the cure the gradient check still expects a failure")
    assert "eps 1e-08 is zero in float16" in said
    assert left(digits_training(model=model), KEPT) is None


def test_another_training_or_precision_is_looked_at_as_it_is(digits_training):
    broken = digits_training(model=squaring, optimizer=adam(1e-4))
    changed = Proposal("upcast", "another model", subject=replace(broken, optimizer=adam(1e-8)))
    assert "a failure" in left(broken, changed)
    mixed = Proposal("mixed", "train in bf16-mixed", precision=PRECISIONS["bf16-mixed"])
    assert left(broken, mixed) is None


def test_what_only_an_optimizer_made_can_be_given_is_not_looked_at(digits_training):
    raised = Proposal("optimizer epsilon", "raise it", amendment=Amendment(optimizer=lambda _: 0))
    assert left(digits_training(model=squaring, optimizer=adam(1e-8)), raised) is None


def test_a_report_warns_of_it(digits_training, monkeypatch):
    monkeypatch.setattr("pytest_fp16.diagnosis.training.second_defect", lambda *_: "a second one")
    report = check(digits_training(model=squaring), precision="16-true", seeds=3)
    assert report.cure.kind == "keep_in_float32"
    assert "a second one" in report.warnings
