"""What several tests of the engine use."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_fp16.engine.copies import make_model
from pytest_fp16.engine.models import prepare
from pytest_fp16.engine.prediction.theory_pass import TheoryPass
from pytest_fp16.precision import precision
from pytest_fp16.subject import Evaluation
from pytest_fp16.telling import infer_task


@pytest.fixture
def theory_of():
    """A function that makes the theory pass of a model, and its reference on some inputs."""

    def make(model, x, name="16-true", kind="auto"):
        cpu, wanted = torch.device("cpu"), precision(name)
        with torch.no_grad():
            out = model(x)
        task = infer_task(kind, out, None, len(x), -100)
        own = prepare(make_model(model), wanted, cpu)
        theory = TheoryPass(own, wanted, "cuda", cpu, Evaluation(model=model, data=[x]), task)
        return theory, task.canonical(out)

    return make


@pytest.fixture
def convolutional():
    """A function that makes a model for digits with a convolution and running statistics."""
    return lambda: nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
    )
