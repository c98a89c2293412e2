"""When pairs of runs settle a verdict, and what they refuse or say of the 32-bit runs."""

import pytest
import torch
from torch import nn

from pytest_fp16 import check
from pytest_fp16.errors import ModelError


def adam(params):
    return torch.optim.Adam(params, lr=1e-3)


def test_a_run_that_breaks_ends_it_at_the_first_seed(digits_training):
    report = check(digits_training(optimizer=adam), precision="16-true", seeds=3)
    assert report.verdict == "not equivalent"
    assert report.training["seeds"] == [0]
    assert report.training["ended"] == ["not finite"]
    assert [c.detail for c in report.checks if c.name == "finite"] == [
        "the 16-true run of seed 0 ended in NaN or infinity in epoch 1, step 1; "
        "its 32-bit twin did not"
    ]


def test_a_training_that_fails_in_32_bits_is_refused(digits_training):
    def wild(params):
        return torch.optim.SGD(params, lr=1e30)

    with pytest.raises(ModelError, match="the 32-bit training itself fails"):
        check(digits_training(optimizer=wild), precision="16-true", seeds=3)


def test_too_few_seeds_say_how_many_are_missing(digits_training):
    report = check(digits_training(), precision="bf16-true", seeds=2, budget=1e-6)
    assert report.verdict == "inconclusive"
    assert report.training["seeds_missing"] > 0
    (detail,) = [c.detail for c in report.checks if c.name == "same over seeds"]
    missing, made = report.training["seeds_missing"], len(report.training["losses"])
    said = f"about {missing} more seed(s) would settle it: seeds={made + missing}"
    assert said in detail


def lucky():
    """A model that learns with some seeds only."""
    dropped = 1.0 if float(torch.rand(())) < 0.5 else 0.0
    layers = [nn.Linear(64, 32), nn.ReLU(), nn.Dropout(dropped), nn.Linear(32, 10)]
    return nn.Sequential(nn.Flatten(), *layers)


@pytest.mark.parametrize(("settings", "said"), [({}, True), ({"budget": 0.02}, False)])
def test_a_budget_that_lets_anything_pass_is_named(digits_training, settings, said):
    report = check(digits_training(model=lucky), precision="16-mixed", seeds=3, **settings)
    assert report.verdict == "equivalent", str(report)
    assert any("runs themselves differ" in warning for warning in report.warnings) is said
