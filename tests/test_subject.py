import dataclasses
import inspect
import pickle
import re

import pytest
import torch

from pytest_fp16.engine.batching import _LABEL_KEYS
from pytest_fp16.errors import SettingError
from pytest_fp16.subject import TASKS, Evaluation, Training, of_trainer, require_subject


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


def test_the_names_of_labels_are_told():
    told = re.search(r"holds a key (.*?) is a labelled", Evaluation.__doc__, re.DOTALL)[1]
    assert set(re.findall(r'"(\w+)"', told)) == set(_LABEL_KEYS)


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


@pytest.mark.parametrize("make", [lambda **k: Evaluation(model=0, data=[], **k), training])
def test_a_field_that_is_misspelt_is_named(make):
    kind = type(make()).__name__
    with pytest.raises(SettingError, match=f"{kind} has no metrik=; did you mean metric=. it tak"):
        make(metrik=None)
    with pytest.raises(
        SettingError, match=f"{kind} has no device=; it is a setting: hand device= to check"
    ):
        make(device="cpu")


def test_subjects_are_dataclasses_all_the_same():
    made = Evaluation(1, [], task="regression")
    assert pickle.loads(pickle.dumps(made)) == dataclasses.replace(made) == made
    assert list(inspect.signature(Evaluation).parameters)[:2] == ["model", "data"]


class Module:
    def forward(self, outputs, targets):
        return outputs

    __call__ = forward


@pytest.mark.parametrize("name", ["loss", "metric", "training_step"])
def test_a_class_of_a_module_is_no_function(name):
    with pytest.raises(SettingError, match=rf"{name} is the class Module; pass an .*: Module\(\)"):
        training(**{name: Module})
    assert training(**{name: Module()})


@pytest.mark.parametrize(
    ("subject", "others", "said"),
    [
        ("a model", ([],), "got str.; wrap the model and its data: Evaluation"),
        (Evaluation(0, []), ("16-true",), "takes one Evaluation or Training; the rest are keyw"),
    ],
)
def test_parts_one_by_one_are_to_be_wrapped(subject, others, said):
    with pytest.raises(SettingError, match=said):
        require_subject(subject, others)


class Driver:
    def __init__(self, model):
        self.model = model

    def fit(self):
        self.model()


def test_a_trainer_is_told_of_the_module_it_trains():
    assert "hand in the module that it trains" in of_trainer(Driver(Module()))
    assert of_trainer(Module()) == of_trainer("a model") == ""
    with pytest.raises(SettingError, match=r"got Driver.*docs/how-to/lightning\.md"):
        require_subject(Driver(Module()))


@pytest.mark.parametrize("keep", ["t", [1.5], [True], 3])
def test_inputs_to_keep_are_a_list_of_places_or_keys(keep):
    with pytest.raises(SettingError, match="keep_inputs must be a list of places or keys"):
        Evaluation(model=None, data=[], keep_inputs=keep)


@pytest.mark.parametrize(
    ("name", "made", "example"),
    [
        ("optimizer", lambda: torch.optim.SGD([torch.zeros(1)], lr=0.1), "lambda parameters: SGD("),
        (
            "scheduler",
            lambda: torch.optim.lr_scheduler.ConstantLR(torch.optim.SGD([torch.zeros(1)], lr=0.1)),
            "lambda optimizer: ConstantLR(optimizer, …)",
        ),
    ],
)
def test_what_each_run_makes_anew_is_asked_for_by_example(name, made, example):
    parts = {"model": torch.nn.Identity, "loss": max, "train_data": [], "eval_data": []}
    given = {**parts, "optimizer": torch.optim.SGD, name: made()}
    with pytest.raises(SettingError, match="must be a function or None") as raised:
        Training(**given)
    assert example in str(raised.value)
