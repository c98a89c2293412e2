"""Fewer modules than those that pass, where these hold much of the arithmetic."""

from types import SimpleNamespace

import pytest
from torch import nn

from pytest_fp16.diagnosis.cheaper import parts
from pytest_fp16.diagnosis.remedy import Remedy

DEAR = Remedy("16-mixed", ("attn",))


def kept(needed, **children):
    """What is left where all of some modules are needed."""
    asked = []
    attn = nn.Module()
    for name, size in children.items():
        attn.add_module(name, nn.Linear(size, size))
    model = nn.Module()
    model.add_module("attn", attn)

    def heals(remedy, origin):
        asked.append(remedy.keep)
        return {f"attn.{name}" for name in needed} <= set(remedy.keep)

    names = dict(model.named_modules())
    trials = SimpleNamespace(names=names, precision="16-mixed", heals=heals)
    return list(parts(trials, DEAR, None)), asked


@pytest.mark.parametrize("needed", [["v"], ["small"], ["v", "q"]])
def test_the_children_that_are_needed(needed):
    left, _ = kept(needed, q=8, v=8, out=32, small=2)
    assert [set(keep) for keep in left] == [{f"attn.{name}" for name in needed}]


def test_large_ones_are_let_go_of_first():
    left, asked = kept([], q=8, out=32, small=2)
    assert left == [("attn.small",)]
    assert asked[1] == ("attn.q", "attn.small")


def test_nothing_where_it_is_the_forward_around_them():
    left, asked = kept(["another"], q=8, v=8)
    assert left == []
    assert len(asked) == 1


def test_no_passes_are_spent_on_very_many():
    left, asked = kept([], **{f"layer{i}": 2 for i in range(40)})
    assert (left, asked) == ([], [])
