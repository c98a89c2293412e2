"""A theory pass of a small model."""

from __future__ import annotations

import pytest
import torch

from pytest_fp16.engine.models import make_model, prepare
from pytest_fp16.engine.theory_pass import TheoryPass
from pytest_fp16.precision import precision
from pytest_fp16.subject import Evaluation
from pytest_fp16.task import infer_task


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
