"""Classes that 16-bit runs never learn, though the metric hardly shows it."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pytest_fp16 import Settings, Training, check
from pytest_fp16.engine.training.score import Score
from pytest_fp16.training.classes import lost_in_all


def a_run(*right):
    return SimpleNamespace(score=SimpleNamespace(right=list(right)))


def pair(had, now):
    return a_run(*had), a_run(*now)


LOST = pair((900, 40), (905, 3))
KEPT = pair((900, 40), (900, 39))
MISSED = pair((905, 0), (905, 0))


@pytest.mark.parametrize(
    ("pairs", "lost"),
    [
        ([LOST, LOST], True),
        ([LOST], False),  # one seed is luck
        ([LOST, KEPT], False),
        ([LOST, MISSED], False),  # 32 bits do not learn it with every seed either
        ([LOST, (SimpleNamespace(score=None), a_run(1.0))], False),
        ([pair((), ()), pair((), ())], False),  # a regression
        ([], False),
    ],
)
def test_a_class_is_lost_where_every_run_loses_it(pairs, lost):
    said = "class 1: no 16-bit run has more than half of the right answers of its 32-bit twin"
    assert lost_in_all(pairs) == said * lost


def test_many_classes_are_counted():
    had, now = [900, *[40] * 5], [900, *[0] * 5]
    assert lost_in_all([pair(had, now)] * 2).startswith("classes 1, 2, 3, …: no")


class Rare(nn.Module):
    """A pixel of a rare class is told by what rides on an offset."""

    def __init__(self, offset):
        super().__init__()
        self.scale, self.offset = nn.Parameter(torch.tensor([0.1, 0.9])), offset

    def forward(self, x):
        evidence = (x + self.offset) - self.offset
        return torch.stack([torch.zeros_like(x), evidence * self.scale[0] + self.scale[1]], 1)


def training(offset):
    x = torch.where(torch.arange(4000) % 200 == 0, 3.0, -3.0).reshape(40, 100)
    data = [(part, (part > 0).long()) for part in x.split(10)]
    return Training(
        model=lambda: Rare(offset),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.5),
        loss=nn.functional.cross_entropy,
        train_data=data,
        eval_data=data,
        epochs=5,
        name="pixels",
    )


@pytest.mark.parametrize(
    ("offset", "budget", "verdict"),
    [(2400.0, 0.009, "not equivalent"), (2400.0, 0.02, "equivalent"), (0.0, 0.009, "equivalent")],
)
def test_a_training_that_never_learns_a_class_is_not_equivalent(offset, budget, verdict):
    report = check(training(offset), precision="bf16-true", seeds=3, budget=budget)
    assert report.verdict == verdict, str(report)
    failed = [c for c in report.checks if c.name == "each class or output"]
    assert len(failed) == (verdict == "not equivalent")
    if failed:
        assert report.metric.loss < 0.009
        assert failed[0].detail.startswith("class 1: no 16-bit run has more than half")
        assert report.culprit.operation in ("add", "sub")
        assert report.cure.verified


def test_a_cure_with_which_it_is_lost_again_is_none():
    from pytest_fp16.engine.training.train import RunResult
    from pytest_fp16.training.pairs import Pairs

    runs = SimpleNamespace(settings=Settings(budget=0.009), start=lambda _: 0.5)

    def a_result(precision, metric, right):
        score = Score("accuracy", metric, 0.01, 100, True, torch.empty(0, 1, 2), right=right)
        return RunResult(precision, 0, score=score)

    lost = [(a_result("32-true", 0.999, [900, 40]), a_result("16-true", 0.996, [905, 3]))] * 2
    assert Pairs.unsettled(None, runs, lost, 0.009).startswith("class 1: no 16-bit run")
    kept = [(a_result("32-true", 0.999, [900, 40]), a_result("16-true", 0.998, [900, 39]))] * 2
    assert Pairs.unsettled(None, runs, kept, 0.009) is None
