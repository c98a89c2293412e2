"""Finished training runs are kept in pytest's cache, and read again on request."""

INI = """
[pytest]
addopts = -p no:randomly -p no:asyncio -p no:cov -p no:hypothesispytest
"""

TRAINING = """
import torch
from pathlib import Path
from torch import nn

def make():
    with Path("made.txt").open("a") as file:
        file.write("model")
    return nn.Linear(64, 10)

@fp16_equivalent(precisions=["bf16-mixed"], seeds=3, budget=0.1)
def test_training(data):
    return Training(
        model=make,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.2),
        loss=nn.functional.cross_entropy,
        train_data=data,
        eval_data=data,
        epochs=10,
    )
"""


def runs(example):
    folder = example.pytester.path / ".pytest_cache" / "d" / "fp16-training"
    return {f: f.stat().st_mtime_ns for f in folder.rglob("*.json")}


def test_runs_are_read_again_only_on_request(example):
    example.pytester.makefile(".ini", pytest=INI)
    example.write(TRAINING)

    example.check_apart().assert_outcomes(passed=1)
    first = runs(example)
    assert first

    example.check_apart("--fp16-resume").assert_outcomes(passed=1)
    assert runs(example) == first

    example.check_apart().assert_outcomes(passed=1)
    again = runs(example)
    assert again.keys() == first.keys()
    assert all(again[f] > first[f] for f in first)


def test_a_damaged_run_is_made_again(example):
    example.pytester.makefile(".ini", pytest=INI)
    example.write(TRAINING)
    example.check_apart().assert_outcomes(passed=1)
    damaged = next(iter(runs(example)))
    damaged.write_text(damaged.read_text()[:-20])

    example.check_apart("--fp16-resume").assert_outcomes(passed=1)

    assert damaged.read_text().rstrip().endswith("}")


def test_the_ini_key_asks_as_well(example):
    example.ini("fp16_resume = true")
    example.write("def test_ask(fp16):\n    assert fp16.settings.resume is True\n")

    example.check().assert_outcomes(passed=1)


HELPER = """
from torch.nn.functional import cross_entropy

def my_loss(model, batch):
    x, y = batch
    return inner(model(x), y) * 1.0

def inner(outputs, targets):
    return cross_entropy(outputs, targets)
"""


def test_a_helper_module_that_changed_is_another_training(example):
    example.pytester.makefile(".ini", pytest=INI)
    example.pytester.makepyfile(helper=HELPER)
    own = "loss=None, training_step=step,"
    step = "import helper\n\ndef step(model, batch):\n    return helper.my_loss(model, batch)\n"
    example.write(step + TRAINING.replace("loss=nn.functional.cross_entropy,", own))
    example.check_apart("--fp16-resume").assert_outcomes(passed=1)
    again = example.check_apart("--fp16-resume")
    again.stdout.fnmatch_lines(["*warning: * of * runs were read from *fp16-training*"])

    example.pytester.makepyfile(helper=HELPER.replace("* 1.0", "* 0.0"))

    changed = example.check_apart("--fp16-resume")
    changed.assert_outcomes(failed=1)
    changed.stdout.no_fnmatch_line("*runs were read*")
    changed.stdout.fnmatch_lines(["*warning: none of the * stored runs in *fp16-training*"])
