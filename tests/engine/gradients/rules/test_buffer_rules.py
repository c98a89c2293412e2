"""The rules about buffers that are lost; those about averages have their tests in test_rules."""

from pytest_fp16.engine.gradients.evidence import Evidence
from pytest_fp16.engine.gradients.probes.second_look import SecondLook
from pytest_fp16.engine.gradients.probes.steady_probe import Stalled
from pytest_fp16.engine.gradients.rules.buffer_rules import (
    lost_buffers,
    outgrown,
    stalled,
    stopped,
)
from pytest_fp16.engine.gradients.rules.figures import notes
from pytest_fp16.engine.gradients.rules.second_look_rules import suspected
from pytest_fp16.theory.rounding import FLOAT16


def evidence(**known):
    return Evidence(FLOAT16, **known)


def test_nothing_is_wrong_without_evidence():
    assert lost_buffers(evidence()) is None
    assert outgrown(evidence()) is None
    assert stalled(evidence()) is None
    assert stopped(evidence()) is None


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


def look(end, candidate):
    return SecondLook(76, [2.3, 2.4], None, end, candidate)


def test_a_count_that_stands_still_is_named_where_it_does_harm():
    found = Stalled("head.step", 456.0, 256.0, 256, 456, look([0.7, 0.8], [3.8, 3.9]))
    finding = stalled(evidence(stalled=found))
    assert (finding.module, finding.operation) == ("head", "step")
    assert finding.mechanism == "absorption"
    assert "at 256 in 16 bits, at 456 in 32: it stands still after 256 of 456" in finding.reason
    assert not any("head.step" in note for note in notes(evidence(stalled=found)))


def test_one_without_harm_is_a_note_and_a_suspect():
    found = Stalled("step", 456.0, 512.0, None, 456, look([0.7, 0.8], [0.7, 0.8]))
    seen = evidence(stalled=found)
    assert stalled(seen) is None
    assert suspected(seen).operation == "step"
    (note,) = [note for note in notes(seen) if note.startswith("step ends at 512")]
    assert "stands still" not in note


def test_a_way_that_32_bits_do_not_survive_shows_nothing():
    lost = [float("nan")] * 2
    assert stalled(evidence(stalled=Stalled("step", 9, 5, 5, 9, look(lost, lost)))) is None
