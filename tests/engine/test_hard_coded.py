"""A reference that casts to 16 bits by itself is told, with the place; one that does not is not."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation
from pytest_fp16.engine.candidate import Candidate, fresh_model
from pytest_fp16.engine.hard_coded import hard_coded
from pytest_fp16.engine.randomness import preserved_state
from pytest_fp16.precision import REFERENCE


@pytest.fixture(autouse=True)
def _state():
    with preserved_state():
        yield


class Casts(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, x):
        return torch.softmax(x.to(self.dtype), -1).to(x.dtype)


class Refuses(nn.Module):
    """Cannot be watched."""

    def forward(self, x):
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            raise NotImplementedError("no modes here")
        return x


class OwnAutocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(6, 6)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.dense(x).float()


def said(*layers):
    model = nn.Sequential(nn.Linear(6, 6), *layers).eval()
    subject = Evaluation(model=model, data=[])
    device = torch.device("cpu")
    reference = Candidate(fresh_model(model), REFERENCE, subject, device, "cuda")
    return hard_coded(reference, torch.randn(4, 6), 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_cast_of_its_own_is_told_with_its_place(dtype):
    (remark,) = said(Casts(dtype))
    name = str(dtype).removeprefix("torch.")
    assert remark.startswith(
        f"32-true itself computes in {name}, as the program asks: a cast in 1 "
    )
    assert "test_hard_coded.py:" in remark
    assert remark.endswith("not seen here: cast to the dtype of the values instead")


def test_each_format_is_told_once():
    remarks = said(Casts(torch.float16), Casts(torch.bfloat16), Casts(torch.float16))
    assert [r.split(",")[0].split()[-1] for r in remarks] == ["float16", "bfloat16"]


@pytest.mark.parametrize(
    "layer", [nn.ReLU(), Casts(torch.float64), OwnAutocast()], ids=["none", "wider", "autocast"]
)
def test_nothing_is_said_of_a_reference_in_float32(layer):
    assert said(layer) == []


def test_a_program_that_cannot_be_watched_is_left_alone():
    assert said(Refuses()) == []
