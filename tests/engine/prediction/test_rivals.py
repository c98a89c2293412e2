"""How far away a class must be to need no backward pass of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_fp16.engine.prediction import rivals, theory_pass
from pytest_fp16.engine.prediction.rivals import SCREEN

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
        # More than half the spacing there, or it would be lost for certain.
        odd = (large + (z[:, WILD : WILD + 1] + 3.3)) - large - 9.3
        return torch.cat([z[:, :WILD], odd, z[:, WILD + 1 :]], 1)


@pytest.mark.parametrize("classes", [10, 60, 400])
def test_classes_alike_need_no_wide_screen(classes, theory_of):
    torch.manual_seed(0)
    x = torch.randn(N, 12)
    theory, reference = theory_of(Head(classes, wild=False).eval(), x)
    batch = theory.run(x, N, reference, 0)
    assert theory.screen.shape == (classes,)
    assert (theory.screen >= SCREEN).all()
    assert (theory.screen < 4 * SCREEN).all()
    assert batch.probable.any()


@pytest.mark.parametrize("classes", [60, 400])
def test_one_class_among_many_stands_out_though_it_is_never_near(classes, theory_of):
    torch.manual_seed(0)
    model, x = Head(classes, wild=True).eval(), torch.randn(N, 12)
    theory, reference = theory_of(model, x)
    batch = theory.run(x, N, reference, 0)
    with torch.no_grad():
        z = model(x).sort(-1).values
    assert not (model(x).argsort(-1)[:, -20:] == WILD).any()  # no pass looks at it by its rank
    assert theory.screen[WILD] > 4 * theory.screen.median()
    # its error of half a unit per rounding can carry it past the winner: nothing is certified
    within = z[:, -1] - model(x)[:, WILD] < theory.screen[WILD] * batch.bound[:, 0]
    assert within.any()
    assert not batch.bounded[:, 0][within].any()


class Squeezed(Head):
    """A batch of one loses its dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


def test_one_that_is_looked_at_alone_is_no_batch_of_one(theory_of, monkeypatch):
    torch.manual_seed(0)
    model, x = Squeezed(8, wild=False).eval(), torch.randn(63, 12)
    theory, reference = theory_of(model, x)
    monkeypatch.setattr(theory_pass, "_chunk_size", lambda *_: 31)  # 63: one is left over
    ask = rivals.Rivals.ask

    def of_one(self, asked, reference):
        ask(self, asked.new_zeros(asked.shape).index_fill_(0, torch.tensor([40]), True), reference)

    monkeypatch.setattr(rivals.Rivals, "ask", of_one)
    theory.run(x, 63, reference, 0)
    assert theory.method == "adjoint", theory.notes


def test_the_few_looked_at_again_get_the_certificates_of_the_whole_chunk(theory_of, monkeypatch):
    torch.manual_seed(0)
    model, x = Head(8, wild=False).eval(), torch.randn(150, 12)
    with torch.no_grad():
        model.head.weight.mul_(0.02)  # classes near one another
        model.head.bias.mul_(0.05)
    theory, reference = theory_of(model, x, "bf16-true")
    whole = theory.run(x, 150, reference, 0)
    assert theory.chunk >= 150
    looked: list[int] = []
    made = rivals.backward
    monkeypatch.setattr(rivals, "backward", lambda t, c, s: looked.append(len(c)) or made(t, c, s))
    cut, _ = theory_of(model, x, "bf16-true")
    cut.started, cut.screen, cut.chunk = False, theory.screen, 31
    parts = cut.run(x, 150, reference, 0)
    assert looked, "a third class comes near somewhere, or this test shows nothing"
    assert len(looked) < 2 * 5  # not two for each chunk
    assert torch.equal(parts.bounded, whole.bounded)
    assert torch.equal(parts.probable, whole.probable)
    assert parts.bounded.any()
    assert not parts.bounded.all()
