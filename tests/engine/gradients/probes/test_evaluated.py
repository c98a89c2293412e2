"""The metric of the same weights in both precisions, and when its loss counts."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16 import Training
from pytest_fp16.engine.gradients.probes.evaluated import Evaluated, evaluated, metric_lost
from pytest_fp16.engine.training.place import Place
from pytest_fp16.engine.training.score import Score
from pytest_fp16.engine.training.trainee import Trainee, initial_state
from pytest_fp16.precision import REFERENCE, precision

CPU = torch.device("cpu")


class Inverse(nn.Module):
    """Learns √(1 + x), and answers with what it is the root of."""

    def __init__(self, scale):
        super().__init__()
        self.line, self.scale = nn.Linear(1, 1, bias=False), scale
        nn.init.ones_(self.line.weight)

    def forward(self, x):
        root = torch.sqrt(1 + self.line(x) / self.scale)
        return root if self.training else (root**2 - 1) * self.scale


def training(scale, data=None):
    x = torch.linspace(0.1, 1, 64)[:, None]
    return Training(
        model=lambda: Inverse(scale),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        loss=F.mse_loss,
        train_data=[(x, x)],
        eval_data=data or [(x, x)],
        task="regression",
    )


def seen(subject, name="bf16-true"):
    state = initial_state(subject, 0)
    exact = Trainee(subject, REFERENCE, 0, state, Place(CPU))
    low = Trainee(subject, precision(name), 0, state, Place(CPU, "cuda", True))
    return evaluated(exact, low, 7)


def test_an_inverse_that_cancels_is_lost_though_it_trains():
    finding = metric_lost(seen(training(1000.0)))
    assert finding.reason.startswith("the evaluation loses it: weights of 7 steps in 32 bits")
    assert (finding.module, finding.mechanism) == ("", "precision-loss")
    assert metric_lost(seen(training(1.0))) is None


def test_what_cannot_be_evaluated_is_no_finding():
    found = seen(training(1.0, [(torch.ones(2, 3), torch.ones(2, 1))]))
    assert found is None
    assert metric_lost(found) is None


def score(value, predictions, finite=True, majority=0.1):
    return Score("accuracy", value, 0.005, 400, finite, predictions, majority=majority)


ONE = torch.eye(2).repeat(200, 1)[:, None]


@pytest.mark.parametrize(
    ("low", "flipped", "lost"),
    [(0.89, 0, False), (0.87, 0, True), (0.87, 30, False), (0.80, 60, True), (0.95, 0, False)],
)
def test_a_loss_counts_beyond_the_resolution_and_what_flips_may_do(low, flipped, lost):
    two = ONE.clone()
    two[:flipped] = two[:flipped].flip(-1)
    found = Evaluated(score(0.9, ONE), score(low, two), 7)
    assert (metric_lost(found) is not None) is lost


def test_outputs_that_are_not_finite_are_a_loss_unless_the_reference_has_them():
    found = Evaluated(score(0.9, ONE), score(0.1, ONE, finite=False), 7)
    assert metric_lost(found).mechanism == "overflow"
    assert metric_lost(replace(found, reference=score(0.9, ONE, finite=False))) is None


@pytest.mark.parametrize(
    ("high", "low", "lost"),
    [
        (0.9, 0.8, True),
        (0.0, -0.1, True),
        (-2.03, -2.07, False),  # it has yet to learn, and what rounding adds goes with its errors
        (-0.159, -0.238, True),
        (-2.03, -2.2, True),
    ],
)
def test_a_model_that_has_yet_to_learn_loses_less_by_it(high, low, lost):
    numbers = torch.zeros(400, 1)
    scores = (Score("R²", value, 0.005, 400, True, numbers) for value in (high, low))
    assert (metric_lost(Evaluated(*scores, 32)) is not None) is lost
