"""Whose copy a copy is."""

import gc

from torch import nn

from pytest_fp16.engine.copies import make_model
from pytest_fp16.engine.origins import originals


def test_a_copy_knows_the_weights_of_all_it_comes_from():
    first = nn.Linear(2, 2)
    second = make_model(first)
    third = make_model(second)
    names, weights = zip(*((name, weight()) for name, weight in originals(third)), strict=True)
    assert names == ("weight", "bias") * 2
    wanted = [*second.parameters(), *first.parameters()]
    assert all(one is other for one, other in zip(weights, wanted, strict=True))
    assert originals(first) == []


def test_it_does_not_keep_them():
    copied = make_model(nn.Linear(2, 2))
    gc.collect()
    assert all(weight() is None for _, weight in originals(copied))
