"""What JSON has no number for is written as a word and read back."""

import math

import pytest
from pydantic import BaseModel

from pytest_fp16.report.numbers import Facts, Real


class Two(BaseModel):
    one: Real = 0.0
    many: Facts = {}


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1.5])
def test_a_number_comes_back(value):
    written = Two(one=value, many={"a": [value, {"b": (value, "inf or not", 3)}]})
    read = Two.model_validate_json(written.model_dump_json())
    assert read.one == value
    assert read.many == {"a": [value, {"b": [value, "inf or not", 3]}]}


def test_nan_comes_back():
    read = Two.model_validate_json(Two(one=math.nan, many={"a": math.nan}).model_dump_json())
    assert math.isnan(read.one)
    assert math.isnan(read.many["a"])
