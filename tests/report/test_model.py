"""The schema of a report."""

import json
import math

import pytest
from pydantic import ValidationError

from pytest_fp16.report.model import Report, Speed


def a_report(**more):
    fields = {"name": "t", "kind": "training", "task": "classification", "precision": "16-true"}
    return Report(**fields, verdict="equivalent", checks=[], **more)


def test_numbers_that_json_lacks_come_back():
    facts = {"a": [math.inf, {"b": -math.inf}], "c": 1.5, "word": "plain"}
    written = a_report(delta_max=math.nan, training=facts).model_dump_json()
    json.loads(written, parse_constant=lambda word: pytest.fail(f"not JSON: {word}"))
    back = Report.model_validate_json(written)
    assert math.isnan(back.delta_max)
    assert back.training == facts


def test_a_report_is_closed_and_frozen():
    with pytest.raises(ValidationError, match="surprise"):
        a_report(surprise=1)
    with pytest.raises(ValidationError, match="frozen"):
        a_report().verdict = "inconclusive"


def test_another_version_of_the_schema_is_refused():
    with pytest.raises(ValidationError, match="schema_version"):
        a_report(schema_version=2)


@pytest.mark.parametrize("verdict", ["equivalent", "not equivalent", "inconclusive"])
def test_only_equivalent_is_equivalent(verdict):
    report = a_report().model_copy(update={"verdict": verdict})
    assert report.equivalent == (verdict == "equivalent")


def test_an_infinite_speedup_survives():
    speed = Speed(seconds=0.0, reference_seconds=1.0, speedup=math.inf)
    assert Speed.model_validate_json(speed.model_dump_json()) == speed
