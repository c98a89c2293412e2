"""The rules about buffers that are lost; those about averages have their tests in test_rules."""

from pytest_fp16.engine.gradients.evidence import Evidence
from pytest_fp16.engine.gradients.rules.buffer_rules import lost_buffers, outgrown
from pytest_fp16.theory.rounding import FLOAT16


def evidence(**known):
    return Evidence(FLOAT16, **known)


def test_nothing_is_wrong_without_evidence():
    assert lost_buffers(evidence()) is None
    assert outgrown(evidence()) is None


def test_a_count_that_will_leave_the_range_is_named():
    finding = outgrown(evidence(outgrown={"norm.count": 1e5, "norm.total": 9e4}))
    assert (finding.module, finding.operation) == ("norm", "count")
    assert finding.mechanism == "overflow"
    assert "about 1e+05 by the end" in finding.reason


def test_a_buffer_that_the_cast_lost_is_called_no_statistic():
    lost = evidence(lost_buffers=["head.bins"], lost_weights=["head.bins"])
    assert lost_buffers(lost).reason.startswith("a buffer is lost: head.bins")
    kept = lost_buffers(evidence(lost_buffers=["norm.var"]))
    assert kept.reason.startswith("a running statistic is lost")
