"""What an operation is handed that has no finite value for it."""

import re

import pytest
import torch
from torch import nn

from pytest_fp16.diagnosis.mechanism import carrier, explain, worth_watching
from pytest_fp16.diagnosis.origin import find_origin


def explained(under):
    origin = find_origin(under)
    watched = worth_watching(origin)
    return explain(origin, under.side_by_side(watched.__contains__), carrier(under, origin))


def angles(x):
    """Of every row with itself: zero, but for rounding, which makes some cosines exceed one."""
    unit = nn.functional.normalize(x + 3, dim=-1)
    cosine = (unit * unit).sum(-1, keepdim=True) * (1 - 2e-6)
    return x + 20 * torch.acos(cosine.detach())


def spread(x):
    """A variance as a difference of two sums, of which some come out below zero."""
    far = x.detach() + 50
    variance = (far**2).mean(-1, keepdim=True) - far.mean(-1, keepdim=True) ** 2
    return x / (variance + 1e-2).sqrt()


@pytest.mark.parametrize(
    ("function", "operation", "range_"),
    [(angles, "acos", (1.0, 1.1)), (spread, "sqrt", (-99.0, 0.0))],
)
def test_what_led_there_is_the_culprit_and_the_number_is_told(
    make_net, comparison, function, operation, range_
):
    culprit = explained(comparison(make_net(function, steps=5), "bf16-true"))
    assert culprit.operation != operation
    assert culprit.mechanism in ("precision-loss", "cancellation")
    said = re.search(
        rf"; {operation}(?: at \S+)? is handed (\S+) \(exactly: (\S+)\) and makes NaN of it$",
        culprit.evidence,
    )
    assert said, culprit.evidence
    handed, exact = float(said[1]), float(said[2])
    assert range_[0] < handed < range_[1]
    assert (handed > 1) == (exact > 0 and operation == "acos")
    assert exact <= 1 if operation == "acos" else exact > 0


def test_what_is_lost_without_consequence_is_not_told(make_net, comparison):
    def function(x):
        unit = nn.functional.normalize(x + 3, dim=-1)
        cosine = (unit * unit).sum(-1, keepdim=True) * (1 - 2e-6)
        angle = torch.where(cosine < 1, torch.acos(cosine), 0.0)  # NaN is left out
        return (x * 0.2 + 60) - 60 + 1e-4 * angle  # and this is what does the harm

    under = comparison(make_net(function, steps=5), "bf16-true")
    culprit = explained(under)
    assert under.tape.first_lost() is not None
    assert culprit.operation in ("add", "sub")
    assert "acos" not in culprit.evidence
