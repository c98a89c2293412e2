from pytest_fp16.report.junit import properties
from pytest_fp16.report.model import Certified, Speed


def test_a_failure_as_properties(failed):
    assert properties(failed()) == [
        ("fp16.name", "test_digits"),
        ("fp16.precision", "16-true"),
        ("fp16.verdict", "not equivalent"),
        ("fp16.failed", "as predicted, good enough"),
        ("fp16.metric", "accuracy"),
        ("fp16.reference", "0.97123"),
        ("fp16.candidate", "0.61234"),
        ("fp16.loss", "0.35889"),
        ("fp16.budget", "0.0081"),
        ("fp16.inputs", "360"),
        ("fp16.flips", "130"),
        ("fp16.forecast", "not equivalent"),
        ("fp16.flips_allowed", "2"),
        ("fp16.culprit", "blocks.1.norm:pow"),
        ("fp16.mechanism", "overflow"),
        ("fp16.ran", "emulated for cuda on cpu"),
    ]


def test_what_is_unknown_is_left_out(failed):
    bare = failed(
        metric=None, flips=None, forecast=None, culprit=None, run=None, checks=[], inputs=0
    )
    assert properties(bare) == [
        ("fp16.name", "test_digits"),
        ("fp16.precision", "16-true"),
        ("fp16.verdict", "not equivalent"),
    ]


def test_shares_speed_and_zero_flips_are_kept(passed):
    speed = Speed(seconds=1.0, reference_seconds=5 / 3, speedup=5 / 3)
    report = passed(certified=Certified(measured=1.0, probable=2 / 3), speed=speed)
    found = dict(properties(report))
    assert found["fp16.flips"] == "0"
    assert found["fp16.certified_measured"] == "1"
    assert found["fp16.certified_probable"] == "0.666667"
    assert found["fp16.speedup"] == "1.66667"
    assert "fp16.certified_bounded" not in found


def test_a_loss_that_is_nan_is_a_word(failed, metric):
    assert ("fp16.loss", "nan") in properties(failed(metric=metric(loss=float("nan"))))


def test_values_are_short_strings_so_that_they_cross_processes(failed):
    assert all(type(v) is str and len(v) < 80 for _, v in properties(failed()))
