"""Small values that do the harm beside large ones whose errors are larger."""

import re

import pytest
import torch
from torch import nn

from pytest_fp16.diagnosis.mechanism import explain, worth_watching
from pytest_fp16.diagnosis.origin import find_origin
from pytest_fp16.diagnosis.subnormal import below_range


class Likeness(nn.Module):
    """A ratio of products, as of a structural similarity, tiny where `dark` inputs are."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        size = torch.cat([x[:, :8].sigmoid() * 1e-3, x.sigmoid() + 1], -1)  # dark, and bright
        other = torch.cat([x[:, :8].tanh() * 1e-3, x.tanh()], -1)
        like = (self.scale * size * other) / (self.scale * size * size)
        return x + like[:, :8].repeat(1, 4) + like[:, 8:]


def found(comparison, model, name):
    under = comparison(model, name)
    origin = find_origin(under)
    operations = under.side_by_side(worth_watching(origin).__contains__)
    return explain(origin, operations), below_range(under, origin, operations)


def test_small_values_that_do_the_harm_are_what_is_told(make_net, comparison):
    plain, culprit = found(comparison, make_net(Likeness(), steps=5), "16-true")
    assert plain.mechanism == "precision-loss"  # by root mean squares it is the large ones
    assert culprit.mechanism == "underflow"
    assert culprit.operation == plain.operation == "mul"
    said = re.fullmatch(
        r"([\d,]+) of ([\d,]+) values lie below the smallest normal number of float16, 6\.1e-05; "
        r"with these alone put right, (\d+)% of the squared error is gone",
        culprit.evidence,
    )
    assert said, culprit.evidence
    small, every = (int(n.replace(",", "")) for n in said.group(1, 2))
    assert small <= 8 * 8 < every
    assert int(said[3]) > 50


@pytest.mark.parametrize(("scale", "name"), [(2.0**13, "16-true"), (1.0, "bf16-true")])
def test_where_there_is_no_underflow_digits_are_what_is_lost(make_net, comparison, scale, name):
    _, culprit = found(comparison, make_net(Likeness(scale), steps=5), name)
    assert culprit is None
