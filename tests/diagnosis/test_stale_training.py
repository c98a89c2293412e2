"""Weights that a training step swaps inside autocast's region."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16 import check


class Anchored(nn.Module):
    """Keeps a copy of the weights it began with, which a step puts in for a moment."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        for i, p in enumerate(self.net.parameters()):
            self.register_buffer(f"first{i}", p.detach().clone() * 0)

    def forward(self, x):
        return self.net(x)

    def put(self, values):
        had = [p.data.clone() for p in self.net.parameters()]
        for p, value in zip(self.net.parameters(), values, strict=True):
            p.data.copy_(value)  # the line of the change
        return had


def step(model, batch):
    """A loss, and what keeps outputs near those of other weights."""
    x, y = batch
    loss = F.cross_entropy(model(x), y)
    with torch.no_grad():
        had = model.put([getattr(model, f"first{i}") for i in range(4)])
        near = model(x)  # of zero weights, or of the old casts
        model.put(had)
    return loss + 100 * (near.detach() * model(x).softmax(-1)).sum(-1).mean()


def plain(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_the_change_is_named_and_the_cure_is_tried(digits_training, target):
    given = digits_training(model=Anchored, loss=None, training_step=step)
    report = check(given, precision="bf16-mixed", seeds=4, target=target, budget=0.1)
    assert report.verdict == "not equivalent", str(report)
    culprit, cure = report.culprit, report.cure
    assert culprit.variant == "stale weight"
    assert "was changed at" in culprit.evidence
    assert "test_stale_training.py" in culprit.source
    assert (cure.kind, cure.verified) == ("fresh casts", True)
    assert "cache_enabled=False" in cure.description
    assert "torch.clear_autocast_cache()" in cure.description


def test_what_changes_no_weight_within_a_step_is_not_blamed(digits_training):
    from pytest_fp16.diagnosis.stale_training import fresh_casts, stale_in_a_step
    from pytest_fp16.engine.device import resolve_device
    from pytest_fp16.engine.training.runs import Runs
    from pytest_fp16.engine.training.validation import validated
    from pytest_fp16.precision import PRECISIONS
    from pytest_fp16.settings import Settings

    device = resolve_device("cpu")
    for own, name in ((plain, "bf16-mixed"), (step, "bf16-true")):
        given = digits_training(model=Anchored, loss=None, training_step=own)
        runs = Runs(validated(given, device), Settings(), device, None, None, None)
        assert stale_in_a_step(runs, PRECISIONS[name], 0) is None
    assert fresh_casts(None) == []
