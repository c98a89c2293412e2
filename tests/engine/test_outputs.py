"""What is returned beside the predictions is watched, and said where it breaks."""

from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, Training, check
from pytest_fp16.engine.outputs import joined, main_output, others
from pytest_fp16.errors import ModelError

BAD, GOOD = torch.tensor([torch.inf, 1.0, torch.nan]), torch.ones(2)


@dataclass
class Said:
    logits: torch.Tensor
    hidden: tuple
    note: str = ""


def test_values_are_counted_by_the_name_of_their_output():
    Pair = namedtuple("Pair", "start end")
    assert others(BAD, BAD).not_finite == {}
    assert others((GOOD, BAD, 3), GOOD).not_finite == {"1": 2}
    assert others({"logits": GOOD, "boxes": BAD}, GOOD).not_finite == {"boxes": 2}
    assert others(Pair(GOOD, BAD), GOOD).not_finite == {"end": 2}
    assert others(Said(GOOD, (GOOD, BAD)), GOOD).not_finite == {"hidden.1": 2}
    assert others({"ids": torch.arange(3), "boxes": GOOD}, GOOD).not_finite == {}


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (torch.arange(3), "a tensor of torch.int64, which hides how near its decisions were"),
        ([{"boxes": GOOD}, {"boxes": BAD}], "a list of dict, one for each input or part"),
        ([1.0, 2.0], "a list of float; return a floating tensor"),
        (np.ones(3), "an object of type ndarray; return a floating tensor"),
        (torch.zeros(3, dtype=torch.complex64), "a tensor of torch.complex64; return a floating"),
    ],
)
def test_what_came_in_place_of_logits_is_told(output, said):
    with pytest.raises(ModelError) as told:
        main_output(output)
    assert str(told.value).startswith(f"the model returned no logits: {said}")
    assert "forward=" in str(told.value)


class Detector(nn.Module):
    """Classes, and boxes in pixels whose squares leave the range."""

    def __init__(self, masked: bool = False):
        super().__init__()
        self.classes, self.boxes, self.masked = nn.Linear(10, 4), nn.Linear(10, 4), masked

    def forward(self, x):
        boxes = (self.boxes(x) * 1000) ** 2
        if self.masked:
            boxes = torch.full_like(boxes, -torch.inf)
        return {"logits": self.classes(x) * 10, "boxes": boxes}


def test_an_output_that_is_not_judged_and_breaks_is_said():
    torch.manual_seed(0)
    evaluation = Evaluation(model=Detector().eval(), data=[torch.randn(32, 10)], labelled=False)
    report = check(evaluation)
    assert report.verdict == "equivalent"
    warning, where = report.warnings
    assert "operation pow (" in where
    assert warning.startswith("outputs that were not judged are NaN or infinite")
    assert "'boxes' (" in warning
    assert "forward=" in warning
    assert check(evaluation, precision="bf16-true").warnings == []


def test_infinities_of_the_reference_are_no_loss():
    torch.manual_seed(0)
    model, data = Detector(masked=True).eval(), [torch.randn(32, 10)]
    said = check(Evaluation(model=model, data=data, labelled=False)).warnings
    assert not any("outputs that were not judged" in warning for warning in said)


def test_a_loss_beside_the_logits_is_no_prediction():
    loss, logits = torch.tensor(0.5), torch.ones(4, 3)
    assert main_output((loss, logits)) is logits
    assert main_output({"loss": loss, "scores": logits}) is logits
    assert main_output((loss,)) is loss


def test_which_of_several_outputs_is_judged_is_named():
    rows, shape = torch.ones(4, 2), torch.Size((4, 2))
    assert others(rows, rows).judged(shape) == ""
    assert others((GOOD.sum(), rows), rows).judged(shape) == "", "a loss is no other output"
    assert others((rows, (GOOD, GOOD)), rows).judged(shape) == "", "nor is a state"
    assert others((GOOD, rows), rows).judged(shape) == "'1' of shape (4, 2), and not '0'"
    said = others({"logits": rows, "boxes": GOOD, "masks": BAD}, rows).judged(shape)
    assert said == "'logits' of shape (4, 2), and not 'boxes', 'masks'"
    loose = SimpleNamespace(scores=rows, features=GOOD, cache=SimpleNamespace(keys=BAD))
    assert others(loose, rows).judged(shape) == "'scores' of shape (4, 2), and not 'features'"
    assert others(loose, rows).not_finite == {}
    halves = joined([others((rows, GOOD), rows)] * 2)
    assert halves.judged(shape) == "'0' of shape (4, 2), and not '1'"


class Heads(nn.Module):
    """Features, and classes by them, under names of its own."""

    def __init__(self, names):
        super().__init__()
        self.body, self.head, self.names = nn.Linear(6, 5), nn.Linear(5, 3), names

    def forward(self, x):
        features = self.body(x)
        parts = (features, self.head(features))
        return parts if self.names is None else dict(zip(self.names, parts, strict=True))


@pytest.mark.parametrize(
    ("names", "judged", "told"),
    [
        (None, "'0' of shape (64, 5), and not '1'", True),
        (("features", "classes"), "'features' of shape (64, 5), and not 'classes'", True),
        (("features", "logits"), "'logits' of shape (64, 3), and not 'features'", False),
    ],
)
def test_a_report_names_the_output_that_it_judges(names, judged, told):
    torch.manual_seed(0)
    model, x = Heads(names).eval(), torch.randn(128, 6)
    report = check(Evaluation(model, list(x.split(64)), labelled=False), precision="bf16-true")
    warnings = [w for w in report.warnings if w.startswith("one of several outputs is judged")]
    assert report.run.judged == judged
    assert (
        warnings
        == [f"one of several outputs is judged, {judged}; to judge another, return it by forward="]
        * told
    )

    labels = torch.zeros(64, dtype=torch.long)
    report = check(Evaluation(model, [(x[:64], labels)]), precision="bf16-true")
    assert report.run.judged == judged
    failed = report.model_copy(update={"verdict": "not equivalent"})
    assert f"; judged is {judged}" in str(failed)
    assert not [w for w in report.warnings if w.startswith("one of several")]


def test_logits_of_several_steps_are_those_of_all():
    first, second = torch.ones(4, 7), torch.zeros(4, 7)
    for made in (
        SimpleNamespace(sequences=torch.ones(4, 9).long(), logits=(first, second), scores=None),
        SimpleNamespace(sequences=torch.ones(4, 9).long(), logits=None, scores=[first, second]),
    ):
        steps = main_output(made)
        assert steps.shape == (4, 2, 7)
        assert steps[:, 1].eq(0).all()
        assert others(made, steps).judged(steps.shape) == ""
        assert not others(made, steps).not_finite


class Flows(nn.Module):
    """A list of predictions, each better than the one before."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 3)

    def forward(self, x):
        first = self.body(x)
        return [first, first * 2]


def test_outputs_that_fit_the_labels_alike_are_told():
    torch.manual_seed(0)
    model, x = Flows().eval(), torch.randn(64, 6)
    data = [(x, model(x)[0].detach() + 0.1 * torch.randn(64, 3))]
    report = check(Evaluation(model, data), precision="bf16-true")
    said = "one of several outputs is judged, '0' of shape (64, 3), and not '1'; to judge another, "
    assert f"{said}return it by forward=" in report.warnings
    alone = Evaluation(model, data, forward=lambda model, x: model(x)[0])
    assert not check(alone, precision="bf16-true").warnings


def test_a_training_tells_it_too():
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    data = [(x, x @ torch.randn(6, 3))]
    training = Training(
        model=Flows,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        loss=lambda outputs, y: sum((o - y).square().mean() for o in outputs),
        train_data=data,
        eval_data=data,
        epochs=3,
    )
    report = check(training, precision="bf16-mixed", seeds=1)
    assert any(w.startswith("one of several outputs is judged, '0'") for w in report.warnings)
