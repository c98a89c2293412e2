"""Small models on digits, each with one part that 16 bits break."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation
from pytest_fp16.diagnosis.specimen import Specimen, fewer
from pytest_fp16.engine.candidate import Candidate
from pytest_fp16.precision import precision
from pytest_fp16.task import Task


class Net(nn.Module):
    """An encoder, the part under test in a nested module, and a head."""

    def __init__(self, part, gain=1.0):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())
        self.core = nn.ModuleDict({"part": part})
        self.head, self.gain = nn.Linear(32, 10), gain

    def forward(self, x):
        return self.head(self.core["part"](self.encoder(x) * self.gain))


@pytest.fixture
def make_net(digits):
    """A function that trains a `Net` for a moment around a part."""
    (x, y), _ = digits

    def make(part, gain=1.0, steps=40):
        torch.manual_seed(0)
        model = Net(part, gain)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        return model.eval()

    return make


@pytest.fixture
def specimen(digits):
    """A function that puts a few inputs of a model under examination."""
    _, (x, _) = digits

    def make(model, name="16-true", inputs=None):
        subject = Evaluation(model=model, data=[])
        device = torch.device("cpu")
        candidate = Candidate(copy.deepcopy(model), precision(name), subject, device, "cuda")
        inputs = x if inputs is None else inputs
        few = fewer(inputs, len(inputs), 7, [])
        return Specimen(candidate, model, Task("classification"), few, emulated=True)

    return make
