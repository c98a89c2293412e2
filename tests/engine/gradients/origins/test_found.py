"""How what lost its values is told."""

import pytest
import torch

from pytest_fp16.engine.gradients.origins.found import Found, traced
from pytest_fp16.engine.gradients.origins.zeros import Zeroed
from pytest_fp16.theory.rounding import FORMATS

FLOAT16 = FORMATS[torch.float16]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "result 9.0e+04, float16 holds 6.55e+04"),
        ({"part": "exp"}, "result 9.0e+04, float16 holds 6.55e+04, in its exp"),
        (
            {"backward_of": "norm"},
            "result 9.0e+04, float16 holds 6.55e+04, in the backward pass of norm",
        ),
        ({"reached": float("inf")}, "largest argument 3.0e+02, float16 holds 6.55e+04"),
    ],
)
def test_an_overflow_is_told_by_what_it_reached(changes, said):
    seen = Found("net", "pow", "overflow", 300.0, 9e4)
    assert seen._replace(**changes).detail(FLOAT16) == said


def test_what_made_the_zero_is_named_where_it_is_another_line():
    divided = Found("head", "div", "eps-underflow", 1.0, source="net.py:9")
    seen = traced(divided, Zeroed("underflow", "body", "mul", "net.py:7"))
    assert (seen.module, seen.operation, seen.source) == ("body", "mul", "net.py:7")
    assert "then div (net.py:9) divides by it" in seen.detail(FLOAT16)


def test_a_zero_that_nothing_made_leaves_the_blame_where_it_divides():
    divided = Found("head", "div", "eps-underflow", 1.0, source="net.py:9")
    seen = traced(divided, Zeroed("cancellation"))
    assert (seen.operation, seen.mechanism, seen.divides) == ("div", "cancellation", True)
