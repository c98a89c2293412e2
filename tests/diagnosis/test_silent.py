"""What leaves the range while loss and weights stay finite."""

import linecache

import pytest
import torch
from torch import nn

from pytest_fp16 import Settings, check
from pytest_fp16.diagnosis.proposal import Proposal
from pytest_fp16.diagnosis.silent import silently_lost
from pytest_fp16.diagnosis.training import _attributed
from pytest_fp16.engine.gradients.check import GradientFindings
from pytest_fp16.engine.training.runs import Runs
from pytest_fp16.engine.training.validation import validated
from pytest_fp16.precision import PRECISIONS
from pytest_fp16.training.pairs import Pairs

CPU = torch.device("cpu")


class ClippedByHand(torch.optim.SGD):
    """Its norm is infinite in float16 beyond 256, and the factor zero."""

    def step(self, closure=None):
        ps = [p for group in self.param_groups for p in group["params"]]
        norm = sum((p.grad**2).sum() for p in ps) ** 0.5
        for p in ps:
            p.grad.mul_((1 / (norm + 1e-6)).clamp(max=1))
        return super().step(closure)


class Rms(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(32))

    def forward(self, x):
        return self.gain * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def found(training, precision="16-true"):
    runs = Runs(validated(training, CPU), Settings().with_(seeds=2), CPU)
    return silently_lost(runs, PRECISIONS[precision], 0)


def at(source):
    path, _, line = source.rpartition(":")
    return path, int(line)


@pytest.fixture
def clipped(digits_training):
    return digits_training(
        optimizer=lambda params: ClippedByHand(params, lr=0.1, momentum=0.9),
        loss=lambda out, y: 300 * nn.functional.cross_entropy(out, y),
        epochs=3,
    )


def test_a_norm_that_is_infinite_is_found_in_the_optimizer(clipped):
    culprit = found(clipped)
    assert (culprit.module, culprit.mechanism) == ("<optimizer>", "overflow")
    assert "norm = sum(" in linecache.getline(*at(culprit.source))
    assert "; first in epoch 1, step " in culprit.evidence


def test_squares_of_a_few_rows_are_found_in_their_module(digits_training):
    data = [(160 * x, y) for x, y in digits_training().train_data]
    layers = lambda: nn.Sequential(  # noqa: E731
        nn.Flatten(), nn.Linear(64, 32), Rms(), nn.ReLU(), nn.Linear(32, 10)
    )
    culprit = found(digits_training(model=layers, train_data=data, eval_data=data[-3:], epochs=3))
    assert (culprit.module, culprit.operation, culprit.mechanism) == ("2", "pow", "overflow")


@pytest.mark.parametrize("precision", ["bf16-true", "16-mixed"])
def test_where_nothing_leaves_the_range_or_a_scaler_looks_for_it_nothing_is_said(
    clipped, precision
):
    assert found(clipped, precision) is None


def test_what_32_bits_make_infinite_too_is_harmless(digits_training):
    def loss(out, y):
        nothing = torch.log(torch.zeros(1, dtype=out.dtype)).exp().mean()
        return nn.functional.cross_entropy(out, y) + nothing

    assert found(digits_training(loss=loss, epochs=1)) is None


def test_the_report_names_it_and_its_cure(clipped):
    report = check(clipped, precision="16-true")
    assert report.verdict == "not equivalent", str(report)
    assert (report.culprit.module, report.culprit.mechanism) == ("<optimizer>", "overflow")
    assert report.culprit.evidence.startswith("mean loss ")
    assert report.cure.verified


@pytest.mark.parametrize(
    ("lost", "where"), [(0.9, "<optimizer>"), (0.0, ""), (None, "<optimizer>")]
)
def test_what_mixed_precision_cures_is_absorption_only_where_updates_are_lost(lost, where):
    cure = Proposal("mixed", "train in it", points_to="<optimizer>", mechanism="absorption")
    figures = {} if lost is None else {"updates_lost": lost}
    told = GradientFindings("equivalent", "", figures=figures)
    culprit = _attributed(Pairs(PRECISIONS["16-true"]), cure, told)
    assert culprit.module == where
    assert culprit.mechanism == ("absorption" if where else "precision-loss")
