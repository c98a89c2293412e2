"""What the fixture hands to a test: fields go to the subject, other keywords to the settings."""

import pytest
from torch import nn

from pytest_fp16.errors import SettingError
from pytest_fp16.fixture import FP16
from pytest_fp16.settings import Settings
from pytest_fp16.subject import Evaluation, Training

DATA = [1, 2]


@pytest.fixture
def asked():
    """(subject, settings) of each check that was asked for."""
    return []


@pytest.fixture
def fp16(asked):
    def examine(subject, settings):
        asked.append((subject, settings))
        return ["the report"]

    return FP16(Settings(budget=0.25, device="cpu"), examine)


def test_fields_of_an_evaluation_and_settings_in_one_call(fp16, asked):
    model = nn.Linear(2, 2)
    assert fp16.evaluate(model, DATA, precision="bf16-true", task="regression", emulate="always")
    ((subject, settings),) = asked
    assert isinstance(subject, Evaluation)
    assert (subject.model, subject.data, subject.task) == (model, DATA, "regression")
    assert settings.precisions == ("bf16-true",)
    assert (settings.emulate, settings.budget, settings.device) == ("always", 0.25, "cpu")


def test_fields_of_a_training(fp16, asked):
    parts = {"model": nn.Linear, "optimizer": None, "loss": None}
    assert fp16.train(**parts, train_data=DATA, eval_data=DATA, epochs=3, seeds=5) == "the report"
    ((subject, settings),) = asked
    assert isinstance(subject, Training)
    assert (subject.epochs, settings.seeds, settings.precisions) == (3, 5, ("16-true",))


def test_a_subject_that_is_made_already(fp16, asked):
    subject = Evaluation(nn.Linear(2, 2), DATA)
    assert fp16.check(subject, budget="1%") == "the report"
    assert asked == [(subject, fp16.settings.with_(budget="1%", precisions=("16-true",)))]


def test_the_sessions_settings_are_not_changed(fp16):
    fp16.evaluate(nn.Linear(2, 2), DATA, budget=0.5)
    assert fp16.settings.budget == 0.25


def test_what_is_neither_field_nor_setting_is_named(fp16, asked):
    with pytest.raises(SettingError, match="budgte"):
        fp16.evaluate(nn.Linear(2, 2), DATA, budgte=0.5)
    with pytest.raises(TypeError, match="train_data"):
        fp16.train(model=nn.Linear)
    assert not asked


def test_one_precision_at_a_time(fp16, asked):
    with pytest.raises(SettingError, match="one precision="):
        fp16.evaluate(nn.Linear(2, 2), DATA, precisions=["16-true", "bf16-true"])
    with pytest.raises(SettingError, match="json speaks for a whole session"):
        fp16.evaluate(nn.Linear(2, 2), DATA, json="fp16.json")
    assert not asked
