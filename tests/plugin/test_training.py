"""A decorated training under the flag, and the fixture's way to one."""

TRAINING = """
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

def training(data, **changes):
    parts = dict(
        model=make,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.2),
        loss=nn.functional.cross_entropy,
        train_data=data,
        eval_data=data,
        epochs=2,
    )
    return Training(**{**parts, **changes})
"""


def test_a_sound_and_a_broken_training(example):
    example.write(
        TRAINING
        + """
@fp16_equivalent(precisions=["bf16-mixed"], seeds=3, budget=0.1)
def test_sound(data):
    return training(data, epochs=20)

@fp16_equivalent(precisions=["16-true"], seeds=3)
def test_broken(data):
    return training(data, optimizer=lambda p: torch.optim.Adam(p, lr=1e-2, eps=1e-8))

def test_by_hand(fp16, data):
    report = fp16.train(
        precision="bf16-mixed",
        seeds=2,
        model=make,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.2),
        loss=nn.functional.cross_entropy,
        train_data=data,
        eval_data=data,
    )
    assert report.kind == "training"
"""
    )

    result = example.check_apart("--fp16-json=out.json")

    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        ["E   training in 16-true is not equivalent to 32-true on *", "E *where: the optimizer, *"]
    )
    reports = example.reports()
    assert {r["kind"] for r in reports.values()} == {"training"}
    broken = reports["test_it.py::test_broken[16-true]"]
    assert broken["culprit"]["module"] == "<optimizer>"
    assert broken["forecast"]["verdict"] == "not equivalent"
