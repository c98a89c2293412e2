"""Inputs that are handed on in float32 as a cure that is tried."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.diagnosis import uncast
from pytest_fp16.diagnosis.trials import Trials
from pytest_fp16.diagnosis.uncast import comes_first
from pytest_fp16.report.model import Culprit


class Weekday(nn.Module):
    """Reads whole days off seconds, and casts nothing but numbers."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 7)
        nn.init.eye_(self.embed.weight)

    def forward(self, seconds):
        return self.embed((seconds // 86400).long() % 7)


class Cells(nn.Module):
    """Places on a fine grid, whose fractions a layer takes in 16 bits."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 4)

    def forward(self, x, shift):
        places = x * 1000 + shift
        return self.head(places - places.floor())


def seconds():
    torch.manual_seed(0)
    return 1.7e9 + torch.rand(400) * 86400 * 7


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_a_cast_that_ruins_the_only_input(precision):
    data = [(seconds(), (seconds() // 86400).long() % 7)]
    report = check(Evaluation(model=Weekday(), data=data), precision=precision)
    assert report.verdict == "not equivalent"
    wanted = "infinite inputs" if precision == "16-true" else "stored inputs"
    assert report.culprit.variant == wanted, "not the constant that they are divided by"
    assert (report.cure.kind, report.cure.verified) == ("keep inputs", True)
    assert report.cure.description == "hand input 0 on in float32 (keep_inputs=[0])"
    by_hand = Evaluation(model=Weekday(), data=data, keep_inputs=[0])
    assert check(by_hand, precision=precision).verdict == "equivalent"


def test_what_a_layer_takes_is_cast_there_and_one_input_named():
    torch.manual_seed(0)
    model = Cells().eval()
    data = [{"x": torch.rand(400, 2), "shift": torch.rand(400, 1)}]
    report = check(Evaluation(model=model, data=data, labelled=False), precision="bf16-true")
    assert report.verdict == "not equivalent"
    assert report.cure.kind == "keep inputs"
    assert report.cure.verified
    assert report.cure.description == (
        "hand input 'x' on in float32 (keep_inputs=['x']), and cast what is made of them for "
        "what takes it: head"
    )


def test_where_that_does_not_run_it_is_not_advised():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.steps = nn.GRU(1, 8, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            level = x.abs().mean(1, keepdim=True)
            if x.dtype != self.head.weight.dtype:
                raise TypeError("another dtype than the weights'")
            return self.head(self.steps((x / level).unsqueeze(-1))[0][:, -1])

    torch.manual_seed(0)
    data = [(torch.rand(200, 6) + 0.5) * 1e5]
    report = check(Evaluation(model=Scaled().eval(), data=data, labelled=False))
    assert report.culprit.variant == "infinite inputs"
    assert report.cure.kind == "mixed"
    assert "not tried: scale them before they are cast" in report.cure.description
    assert "keep_inputs" not in report.cure.description


def test_what_is_lost_is_asked_once(monkeypatch):
    asked = []
    monkeypatch.setattr(uncast, "lost_as_cast", lambda *_: asked.append(1))
    trials = Trials(nn.Identity(), "16-true", lambda _: None, lambda *_: None, lambda _: None)
    assert uncast.lost_of(trials, None) is uncast.lost_of(trials, None) is None
    assert asked == [1]


def test_only_of_inputs_that_are_lost_is_it_the_first_cure():
    parts = {"module": "", "operation": "mul", "mechanism": "overflow", "evidence": "it is"}
    assert comes_first(Culprit(**parts, variant="infinite inputs"))
    assert comes_first(Culprit(**parts, variant="stored inputs"))
    assert not comes_first(Culprit(**parts))
