"""How far away a class must be to need no backward pass of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_fp16.engine.models import make_model, prepare
from pytest_fp16.engine.rivals import SCREEN
from pytest_fp16.engine.theory_pass import TheoryPass
from pytest_fp16.precision import precision
from pytest_fp16.subject import Evaluation
from pytest_fp16.task import infer_task

N, WILD = 24, 37


class Head(nn.Module):
    """Plain classes, and on demand one that is the difference of large numbers."""

    def __init__(self, classes: int, wild: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 48), nn.ReLU())
        self.head = nn.Linear(48, classes)
        self.wild = wild

    def forward(self, x: Tensor) -> Tensor:
        z = self.head(self.body(x))
        if not self.wild:
            return z
        large = 2000 * (1 + x[:, :1].abs())
        odd = (large + z[:, WILD : WILD + 1]) - large - 6.0
        return torch.cat([z[:, :WILD], odd, z[:, WILD + 1 :]], 1)


def theory_of(model: nn.Module, x: Tensor) -> tuple[TheoryPass, object]:
    cpu, wanted = torch.device("cpu"), precision("16-true")
    with torch.no_grad():
        out = model(x)
    task = infer_task("auto", out, None, len(x), -100)
    own = prepare(make_model(model), wanted, cpu)
    subject = Evaluation(model=model, data=[x])
    theory = TheoryPass(own, wanted, "cuda", cpu, subject, task)
    return theory, theory.run(x, len(x), task.canonical(out), 0)


@pytest.mark.parametrize("classes", [10, 60, 400])
def test_classes_alike_need_no_wide_screen(classes: int) -> None:
    torch.manual_seed(0)
    theory, batch = theory_of(Head(classes, wild=False).eval(), torch.randn(N, 12))
    assert theory.screen.shape == (classes,)
    assert (theory.screen >= SCREEN).all()
    assert (theory.screen < 4 * SCREEN).all()
    assert batch.probable.any()


@pytest.mark.parametrize("classes", [60, 400])
def test_one_class_among_many_stands_out_though_it_is_never_near(classes: int) -> None:
    torch.manual_seed(0)
    model, x = Head(classes, wild=True).eval(), torch.randn(N, 12)
    theory, batch = theory_of(model, x)
    with torch.no_grad():
        z = model(x).sort(-1).values
    assert not (model(x).argsort(-1)[:, -20:] == WILD).any()  # no pass looks at it by its rank
    assert theory.screen[WILD] > 4 * theory.screen.median()
    # its error of half a unit per rounding can carry it past the winner: nothing is certified
    within = z[:, -1] - model(x)[:, WILD] < theory.screen[WILD] * batch.bound[:, 0]
    assert within.any()
    assert not batch.bounded[:, 0][within].any()
