"""A finding is shown in a report as a culprit, nothing lost."""

import pytest

from pytest_fp16.engine.gradients.finding import Finding


@pytest.mark.parametrize("source", [None, "net.py:12"])
def test_the_culprit_says_all_that_was_found(source):
    found = Finding("one gradient is lost", "head", "backward", "underflow", "gain 0.1", source)
    culprit = found.culprit
    assert (culprit.module, culprit.operation) == ("head", "backward")
    assert (culprit.mechanism, culprit.evidence) == ("underflow", "gain 0.1")
    assert culprit.source == source


def test_a_mechanism_is_one_of_those_that_are_documented():
    with pytest.raises(ValueError, match="mechanism"):
        _ = Finding("bad luck", "head", "backward", "bad luck", "").culprit
