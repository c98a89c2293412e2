"""What is returned beside the predictions is watched, and said where it breaks."""

from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.outputs import main_output, others
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
    (warning,) = report.warnings
    assert warning.startswith("outputs that were not judged are NaN or infinite")
    assert "'boxes' (" in warning
    assert "forward=" in warning
    assert check(evaluation, precision="bf16-true").warnings == []


def test_infinities_of_the_reference_are_no_loss():
    torch.manual_seed(0)
    model, data = Detector(masked=True).eval(), [torch.randn(32, 10)]
    assert check(Evaluation(model=model, data=data, labelled=False)).warnings == []


def test_a_loss_beside_the_logits_is_no_prediction():
    loss, logits = torch.tensor(0.5), torch.ones(4, 3)
    assert main_output((loss, logits)) is logits
    assert main_output({"loss": loss, "scores": logits}) is logits
    assert main_output((loss,)) is loss
