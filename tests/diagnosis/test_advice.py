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


@pytest.mark.parametrize(
    ("source", "end"), [("a.py:3", "cast; they enter at a.py:3"), (None, "are cast")]
)
def test_where_inputs_enter_is_told_where_it_is_known(source, end):
    culprit = Culprit(
        module="",
        operation="add",
        mechanism="overflow",
        evidence="",
        source=source,
        variant="infinite inputs",
    )
    assert advice(culprit)[1].endswith(end)
    assert advice(culprit)[1].startswith("hand the inputs on in float32 (keep_inputs=)")
    assert advice(culprit, handed_on=False)[1].startswith("scale them before they are cast")
