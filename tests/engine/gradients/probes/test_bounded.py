"""Cosines, whose bound a loss may not survive, and few trainings reach."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16 import Training
from pytest_fp16.engine.gradients.check import gradient_check
from pytest_fp16.engine.gradients.probes import late_failures
from pytest_fp16.engine.gradients.probes.bounded import AtBound, are_cosines, gaps_to_one
from pytest_fp16.engine.training.place import Place
from pytest_fp16.engine.training.trainee import Trainee, initial_state
from pytest_fp16.precision import precision
from pytest_fp16.settings import Settings


class Cosines(nn.Module):
    """Cosines to four directions, of `width` features."""

    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, width))
        self.ways = nn.Parameter(torch.randn(4, width))

    def forward(self, x):
        return F.linear(F.normalize(self.body(x), dim=-1), F.normalize(self.ways, dim=-1))


def angles(cosine, y, scale=16.0):
    """A margin on the angle, as ArcFace has it, of a cosine that may be one."""
    # Of a clamp whose bound is rounded to one, torch 2.14 has no slope there.
    bound = cosine.new_tensor(1 - 1e-3)
    theta = cosine.minimum(bound).maximum(-bound).acos()
    return F.cross_entropy(scale * (theta + 0.3 * F.one_hot(y, 4)).cos(), y)


def training(model, loss=angles, epochs=20, noise=1.0):
    random = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (640,), generator=random)
    x = 3 * torch.eye(8)[y] + noise * torch.randn(640, 8, generator=random)
    data = list(zip(x.split(32), y.split(32), strict=True))
    given = {"optimizer": partial(torch.optim.SGD, lr=0.03, momentum=0.9), "epochs": epochs}
    return Training(model=model, loss=loss, train_data=data, eval_data=data, **given)


def found_by(subject, name="bf16-true"):
    return gradient_check(subject, precision(name), Settings(), torch.device("cpu"))


def reference(model):
    subject, place = training(model), Place(torch.device("cpu"), "cuda")
    state = initial_state(subject, 0)
    return Trainee(subject, precision("32-true"), 0, state, place), subject.train_data[0]


@pytest.mark.parametrize(
    ("model", "cosines"),
    [
        (lambda: Cosines(16), True),
        (lambda: nn.Linear(8, 4), False),
        (lambda: nn.Sequential(nn.Linear(8, 4), nn.Tanh()), False),  # squashed: near one, too
        (lambda: nn.Sequential(nn.Linear(8, 4), nn.Softmax(-1)), False),
    ],
)
def test_what_is_taken_for_cosines(model, cosines):
    trainee, batch = reference(model)
    before = [p.clone() for p in trainee.model.parameters()]
    assert are_cosines(trainee, batch) == cosines
    assert all(map(torch.equal, before, trainee.model.parameters()))
    assert not are_cosines(trainee, (batch[0], torch.randn(len(batch[0]), 4)))


def test_gaps_are_those_of_the_largest():
    trainee, batch = reference(lambda: Cosines(16))
    largest = float(trainee.model(batch[0]).detach().abs().max())
    assert gaps_to_one(trainee, [batch]) == [pytest.approx(1 - largest)]
    logits, _ = reference(lambda: nn.Linear(8, 4))
    assert gaps_to_one(logits, [(100 * batch[0], batch[1])]) == []


def test_the_largest_of_each_row_is_moved_and_keeps_its_slope():
    t = torch.tensor([[0.5, 0.1], [-0.2, -0.7]], requires_grad=True)
    moved = AtBound(1 - 2**-10, (2, 2)).applied(t)
    assert moved.tolist() == [[1 - 2**-10, pytest.approx(0.1)], [pytest.approx(-0.2), 2**-10 - 1]]
    moved.sum().backward()
    assert t.grad.tolist() == [[1, 1], [1, 1]]
    assert AtBound(1 - 2**-10, (2, 2)).applied(t.bfloat16())[0, 0] == 1
    assert AtBound(1.0, (3, 2)).applied(t) is t


def test_an_angle_of_cosines_that_come_to_one(monkeypatch):
    subject = training(lambda: Cosines(8))
    found = found_by(subject)
    assert found.verdict == "not equivalent"
    assert found.reason.startswith("the gradient of outputs at their bound is not finite")
    assert "400 steps will see such a batch" in found.reason
    assert "test_bounded.py" in found.culprit.source
    # 0.999 is held in float16
    assert found_by(subject, "16-true").verdict == "equivalent"
    monkeypatch.setattr(late_failures, "are_cosines", lambda *_: False)
    assert found_by(subject).verdict == "equivalent"  # as sure as logits they pass by the bound


def test_an_angle_of_cosines_that_stay_below():
    subject = training(lambda: Cosines(32), noise=2.0)
    found = found_by(subject)
    assert found.verdict == "equivalent"
    assert any("outputs at their bound" in note for note in found.notes)


def test_a_loss_that_bears_one_needs_no_cosines_below():
    plain = lambda cosine, y: F.cross_entropy(math.e * cosine, y)  # noqa: E731
    assert found_by(training(lambda: Cosines(2), plain)).verdict == "equivalent"
