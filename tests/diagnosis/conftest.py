"""A few inputs of a model under examination."""

from __future__ import annotations

import copy

import pytest
import torch

from pytest_fp16 import Evaluation
from pytest_fp16.diagnosis.comparison import Comparison, fewer
from pytest_fp16.engine.candidate import Candidate
from pytest_fp16.precision import precision
from pytest_fp16.task import Task


@pytest.fixture
def comparison(digits):
    """A function that puts a few inputs of a model under examination."""
    _, (x, _) = digits

    def make(model, name="16-true", inputs=None):
        subject = Evaluation(model=model, data=[])
        device = torch.device("cpu")
        candidate = Candidate(copy.deepcopy(model), precision(name), subject, device, "cuda")
        inputs = x if inputs is None else inputs
        few = fewer(inputs, len(inputs), 7, [])
        return Comparison(candidate, model, Task("classification"), few, emulated=True)

    return make
