"""A weight that is another by the time its kept cast is used: where, why, and what passes."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check


class FastWeights(nn.Module):
    """A layer whose weight is moved for its second use, and put back."""

    def __init__(self, scale=1.0, part=1.0):
        super().__init__()
        self.slow, self.head = nn.Linear(16, 16), nn.Linear(16, 5)
        self.register_buffer("delta", scale * torch.randn(16, 16))
        self.part = part

    def forward(self, x):
        hidden = torch.tanh(self.slow(x))
        kept = self.slow.weight.detach().clone()
        with torch.no_grad():
            self.slow.weight.add_(self.delta)  # the line of the change
        again = self.slow(hidden)  # the line of its use
        with torch.no_grad():
            self.slow.weight.copy_(kept)
        return self.head(self.part * torch.tanh(again) + hidden)


class Assigned(nn.Module):
    """Another weight is put in the place of the old one, into which nothing is written."""

    def __init__(self):
        super().__init__()
        self.layer, self.others = nn.Linear(16, 16), [torch.randn(16, 16) for _ in range(3)]
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        for other in self.others:
            self.layer.weight.data = other
            x = torch.tanh(self.layer(x))
        return self.head(x)


def judged(model, **settings):
    torch.manual_seed(1)
    x = torch.randn(200, 16)
    subject = Evaluation(model=model.eval(), data=[x], labelled=False)
    return check(subject, precision="bf16-mixed", **settings)


def line(words):
    with open(__file__) as file:
        at = next(i for i, text in enumerate(file, 1) if text.rstrip().endswith(f"# {words}"))
    return f"test_stale_weights.py:{at}"


@pytest.mark.parametrize(
    "settings",
    [{}, {"target": "cpu"}, {"target": "cpu", "emulate": "never"}],
    ids=["cuda", "cpu", "native"],
)
def test_the_change_and_the_use_are_named_and_the_cure_is_tried(settings):
    torch.manual_seed(0)
    report = judged(FastWeights(), **settings)
    assert report.verdict == report.forecast.verdict == "not equivalent"
    culprit, cure = report.culprit, report.cure
    assert (culprit.variant, culprit.module) == ("stale weight", "slow")
    assert "slow.weight was changed at" in culprit.evidence
    assert f"{line('the line of the change')} after autocast had cast it" in culprit.evidence
    assert culprit.source.endswith(line("the line of its use"))
    assert (cure.kind, cure.verified, cure.flips) == ("fresh casts", True, 0)
    assert "cache_enabled=False" in cure.description
    assert "goes on with its old cast" in str(report)


def test_a_weight_that_is_assigned_is_named_without_a_line():
    torch.manual_seed(0)
    report = judged(Assigned())
    assert report.culprit.variant == "stale weight"
    assert "layer.weight was changed after autocast had cast it" in report.culprit.evidence


class Branching(FastWeights):
    """Asks for the dtype as well."""

    def forward(self, x):
        y = super().forward(x)
        return y if y.dtype == torch.float32 else y * torch.tensor([1, -2, 3, -4, 5])


@pytest.mark.parametrize("scale", [0.0, 1e-3])
def test_a_stale_weight_that_does_little_is_not_blamed(scale):
    torch.manual_seed(0)
    report = judged(Branching(scale, part=0.01))
    assert report.verdict == "not equivalent"
    assert report.culprit.variant != "stale weight"
