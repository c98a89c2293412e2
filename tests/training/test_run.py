"""The verdict on a training, and what is refused before it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from pytest_fp16 import Settings, check
from pytest_fp16.conformance import examine
from pytest_fp16.engine.gradients.probes.course import Course
from pytest_fp16.errors import DataError, SettingError


def adam(params):
    return torch.optim.Adam(params, lr=1e-3)


def test_a_healthy_training_is_equivalent(digits_training):
    report = check(digits_training(), precision="16-true", seeds=3)
    assert report.verdict == "equivalent", str(report)
    assert report.kind == "training"
    assert report.forecast.method == "gradient check"
    assert report.forecast.verdict == "equivalent"
    assert report.training["seeds"] == [0, 1, 2]
    assert report.metric.reference > 0.8
    assert report.metric.loss == pytest.approx(np.mean(report.training["losses"]))
    assert 0 < report.delta_max < 1
    assert 0 < report.certified.measured <= 1
    assert {c.name for c in report.checks if c.passed} == {
        "16 bit ran",
        "finite",
        "same over seeds",
    }


def test_what_a_training_stores_as_infinite_from_the_first_step_is_told(digits_training):
    norm = nn.BatchNorm1d(64, momentum=0.0)  # what it was given stays
    norm.running_var[5] = 99_123.4
    model = nn.Sequential(nn.Flatten(), norm, nn.Linear(64, 10))
    settings = Settings(precisions=("16-true", "16-mixed"), seeds=1)
    said = [
        [w for w in report.warnings if w.startswith("stored in")]
        for report in examine(digits_training(model=model, epochs=1), settings)
    ]
    assert said == [
        [
            "stored in float16, 1.running_var has 1 of 64 values that are infinite "
            "(largest 9.91e+04, float16 holds 65504)"
        ],
        [],
    ]


def test_one_reference_serves_every_precision(digits_training, monkeypatch):
    from pytest_fp16.engine.training import runs

    made = []
    own = runs.train

    def counted(subject, precision, seed, *arguments):
        made.append((precision.name, seed))
        return own(subject, precision, seed, *arguments)

    monkeypatch.setattr(runs, "train", counted)
    settings = Settings(precisions=("16-true", "bf16-mixed"), seeds=3)
    reports = examine(digits_training(), settings)
    assert [r.precision for r in reports] == ["16-true", "bf16-mixed"]
    assert len(made) == len(set(made))
    assert reports[0].training["reference_metrics"] == reports[1].training["reference_metrics"]


def test_an_alarm_without_a_failure_is_a_warning(digits_training, monkeypatch):
    from pytest_fp16.engine.gradients.check import GradientFindings

    alarm = GradientFindings("not equivalent", "the planted reason")
    monkeypatch.setattr("pytest_fp16.training.run.gradient_check", lambda *_: alarm)
    report = check(digits_training(), precision="16-true", seeds=3)
    assert report.verdict == "equivalent"
    assert any("the planted reason" in warning for warning in report.warnings)


def test_a_diagnosis_that_fails_loses_no_verdict(digits_training, monkeypatch):
    def broken(*_):
        raise torch.OutOfMemoryError("of ours\nand more")

    monkeypatch.setattr("pytest_fp16.training.run.diagnose_training", broken)
    report = check(digits_training(optimizer=adam), precision="16-true", seeds=3)
    assert report.verdict == "not equivalent"
    assert (report.culprit, report.cure) == (None, None)
    assert "no diagnosis: OutOfMemoryError: of ours" in report.warnings


def test_a_gradient_check_that_fails_loses_no_verdict(digits_training, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("of ours\nand more")

    monkeypatch.setattr("pytest_fp16.training.run.gradient_check", broken)
    report = check(digits_training(optimizer=adam), precision="16-true", seeds=3)
    assert report.verdict == "not equivalent"
    assert report.forecast.verdict == "inconclusive"
    said = "the gradient check cannot follow this training (ZeroDivisionError: of ours)"
    assert said in report.warnings
    assert report.culprit.module == "<optimizer>"


def test_a_silent_gradient_check_does_not_save_a_failure(digits_training, monkeypatch):
    from pytest_fp16.engine.gradients.check import GradientFindings

    silent = GradientFindings("equivalent", "nothing found")
    monkeypatch.setattr("pytest_fp16.training.run.gradient_check", lambda *_: silent)
    report = check(digits_training(optimizer=adam), precision="16-true", seeds=3)
    assert report.verdict == "not equivalent"
    assert report.culprit.module == "<optimizer>"


def test_a_module_given_varies_the_order_alone(digits_training):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = model[1].weight.detach().clone()
    report = check(digits_training(model=model), precision="16-true", seeds=3)
    assert torch.equal(model[1].weight, before)
    first = report.training["epoch_losses"]["reference"]
    assert first[0] != first[1]


def test_seeds_that_vary_nothing_are_named(digits_training):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    whole = digits_training(model=model)
    report = check(
        digits_training(model=model, train_data=whole.train_data[:1]),
        precision="bf16-true",
        seeds=3,
    )
    assert any("seeds vary nothing" in warning for warning in report.warnings)


def test_the_callers_state_is_as_it_was(digits_training, digits):
    (x, y), _ = digits
    generator = torch.Generator().manual_seed(7)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), batch_size=64, shuffle=True, generator=generator
    )
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    states = random.getstate(), torch.get_rng_state(), generator.get_state()
    numpy = np.random.get_state()[1].copy()
    with torch.no_grad():
        check(digits_training(train_data=loader), precision="16-mixed", seeds=2)
        assert not torch.is_grad_enabled()
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert torch.equal(generator.get_state(), states[2])
    assert (np.random.get_state()[1] == numpy).all()
    assert not torch.is_autocast_enabled("cpu")


def told_by(subject):
    told = []
    check(subject, precision="16-true", seeds=3, progress=lambda *said: told.append(said))
    return told


def test_progress_names_seed_precision_epoch_and_loss(digits_training):
    told = told_by(digits_training())
    assert any(w.startswith("digits: seed 1, 16-true, epoch 2/2, loss ") for w, _, _ in told)
    steps = [done for what, done, _ in told if "seed" in what]
    assert steps == sorted(steps)
    assert steps[-1] == told[-1][2]


def test_the_gradient_check_says_where_it_is_too(digits_training):
    told = told_by(digits_training())
    checked = [what for what, done, _ in told if "gradient check" in what and not done]
    batches = [int(what.rpartition(" ")[2]) for what in checked]
    assert checked[0] == "digits: gradient check, 16-true, batch 0"
    assert batches == list(range(len(batches)))
    course = Course(digits_training())
    assert len(batches) > 1 + len(course.first) + len(course.extra)  # later ones are told, too


def test_what_was_noted_of_the_input_is_a_warning_of_the_report(digits_training):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    report = check(digits_training(model=lambda: model), precision="16-true", seeds=3)
    assert any("returns the same module each time" in w for w in report.warnings)


def test_bad_input_is_refused_before_the_first_run(digits_training, monkeypatch):
    monkeypatch.setattr("pytest_fp16.engine.training.runs.train", None)
    with pytest.raises(DataError, match="eval_data is empty"):
        check(digits_training(eval_data=[]), precision="16-true", seeds=2)


def test_a_budget_of_nothing_is_refused_before_the_first_run(digits_training, monkeypatch):
    monkeypatch.setattr("pytest_fp16.training.run.validated", None)
    with pytest.raises(SettingError, match="budget 0 could not pass"):
        check(digits_training(), budget=0, seeds=1)


@pytest.mark.parametrize("budget", [1, "100%"])
def test_a_budget_that_no_accuracy_can_exceed_is_refused(digits_training, budget):
    with pytest.raises(SettingError, match="could not fail: it is all"):
        check(digits_training(), budget=budget, seeds=1)
