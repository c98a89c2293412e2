import dataclasses

import pytest

from pytest_fp16.errors import SettingError
from pytest_fp16.subject import TASKS, Evaluation, Training


def training(**changes):
    given = {"model": 0, "optimizer": int, "loss": int, "train_data": [], "eval_data": []}
    return Training(**(given | changes))


@pytest.mark.parametrize("make", [lambda **k: Evaluation(model=0, data=[], **k), training])
def test_an_unknown_task_lists_the_known_ones(make):
    with pytest.raises(SettingError, match=f"task must be one of {', '.join(TASKS)}"):
        make(task="ranking")
    assert make().task == "auto"
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().task = "regression"


@pytest.mark.parametrize("name", ["epochs", "accumulate"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
def test_counts_are_whole_numbers_of_at_least_one(name, value):
    with pytest.raises(SettingError, match=f"{name} must be a whole number of at least 1"):
        training(**{name: value})


def test_the_scheduler_steps_per_epoch_or_per_step():
    assert training(scheduler_step="step").scheduler_step == "step"
    with pytest.raises(SettingError, match="scheduler_step must be epoch or step"):
        training(scheduler_step="batch")


@pytest.mark.parametrize("name", ["metric", "forward", "optimizer", "loss", "scheduler"])
def test_what_is_called_must_be_a_function(name):
    with pytest.raises(SettingError, match=f"{name} must be a function or None .got str"):
        training(**{name: "accuracy"})
    if name in ("metric", "forward"):
        with pytest.raises(SettingError, match=name):
            Evaluation(model=0, data=[], **{name: "accuracy"})


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("name", 3, "name must be a string"),
        ("ignore_index", "pad", "ignore_index must be a whole number"),
        ("labelled", "no", "labelled must be True, False or None"),
    ],
)
def test_fields_of_another_type_are_refused_before_the_work(field, value, said):
    with pytest.raises(SettingError, match=f"{said} .got {value!r}"):
        Evaluation(model=0, data=[], **{field: value})
    if field != "labelled":
        with pytest.raises(SettingError, match=said):
            training(**{field: value})
