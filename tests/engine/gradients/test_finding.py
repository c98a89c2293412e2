"""A finding is shown in a report as a culprit, nothing lost."""

import pytest

from pytest_fp16.engine.gradients.finding import Finding, leaf_of, module_of


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


@pytest.mark.parametrize(
    ("name", "module", "leaf"),
    [
        ("body.0.weight", "body.0", "weight"),
        ("weight", "", "weight"),
        ("shadow[3]", "", "shadow[3]"),
        ("head.ema[kept][net.1.weight]", "head", "ema[kept][net.1.weight]"),
    ],
)
def test_whose_a_tensor_is(name, module, leaf):
    assert (module_of(name), leaf_of(name)) == (module, leaf)
