"""What a culprit's code should do instead, in words."""

import pytest

from pytest_fp16.diagnosis.advice import advice
from pytest_fp16.report.model import Culprit


@pytest.mark.parametrize(
    ("operation", "said"),
    [("_to_copy", "stay in float32 at a.py:3"), ("exp", "compute exp in float32 at a.py:3")],
)
def test_a_cast_is_not_computed_but_left_out(operation, said):
    culprit = Culprit(
        module="", operation=operation, mechanism="overflow", evidence="", source="a.py:3"
    )
    assert advice(culprit)[1] == f"divide before it, or {said}, up to where its values fit again"
