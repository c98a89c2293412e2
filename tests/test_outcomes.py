"""How items ended that were to be judged, told from pytest's reports; whole runs are in plugin/."""

from types import SimpleNamespace

import pytest

from pytest_fp16.outcomes import SELECTED, Fate, Outcomes


def heard(outcomes, when, outcome, longrepr=None, item="t", **more):
    outcomes.pytest_runtest_logreport(
        SimpleNamespace(
            nodeid=item, when=when, outcome=outcome, longrepr=longrepr, **more,
            passed=outcome == "passed", failed=outcome == "failed", skipped=outcome == "skipped",
        )
    )  # fmt: skip


def selected(*items, aside=()):
    outcomes = Outcomes()
    for item in items:
        outcomes.select(item, aside=item in aside)
    return outcomes


CRASH = SimpleNamespace(reprcrash=SimpleNamespace(message="ValueError: a\nb"))


@pytest.mark.parametrize(
    ("phases", "fate"),
    [
        ([], Fate("t", "not run")),
        ([("setup", "passed")], Fate("t", "not run")),
        ([("setup", "failed", CRASH)], Fate("t", "error", "ValueError: a")),
        ([("setup", "passed"), ("call", "failed", "text\nmore")], Fate("t", "failed", "text")),
        (
            [("setup", "skipped", ("f.py", 3, "Skipped: no GPU")), ("teardown", "passed")],
            Fate("t", "skipped", "no GPU"),
        ),
        (
            [("call", "passed"), ("teardown", "failed", "gone")],
            Fate("t", "error", "gone"),
        ),
        ([("???", "failed", "worker crashed")], Fate("t", "failed", "worker crashed")),
    ],
)
def test_an_item_without_a_report_and_why(phases, fate):
    outcomes = selected("t")
    for phase in phases:
        heard(outcomes, *phase)
    assert outcomes.unreported({"another"}) == [fate]
    assert outcomes.unreported({"t"}) == []


def test_an_expected_failure_failed():
    outcomes = selected("t")
    heard(outcomes, "call", "skipped", CRASH, wasxfail="known")
    assert outcomes.unreported(()) == [Fate("t", "failed", "ValueError: a")]


def test_the_last_run_of_an_item_counts():
    outcomes = selected("t")
    for outcome in ("failed", "passed"):
        heard(outcomes, "setup", "passed")
        heard(outcomes, "call", outcome, "text")
    assert outcomes.unreported(()) == []


def test_what_was_put_aside_is_counted_where_it_came_to_be_skipped():
    outcomes = selected("t", "u", "v", aside=("u", "v"))
    heard(outcomes, "setup", "skipped", ("f.py", 3, "Skipped: not among"), item="u")
    assert outcomes.put_aside() == 1
    assert [fate.test for fate in outcomes.unreported(())] == ["t"]


def test_a_workers_first_report_carries_what_it_selected():
    worker, controller = selected("t", "u", aside=("u",)), Outcomes()
    first, second = SimpleNamespace(), SimpleNamespace()
    worker.tell(first)
    worker.tell(second)
    assert not hasattr(second, SELECTED)
    heard(controller, "setup", "passed", **vars(first))
    assert controller.unreported(()) == [Fate("t", "not run")]


def test_a_file_that_could_not_be_read_is_told_first():
    outcomes = selected("t")
    for failed in (True, False):
        outcomes.pytest_collectreport(
            SimpleNamespace(nodeid="f.py", failed=failed, longrepr="SyntaxError: x")
        )
    assert outcomes.unreported(()) == [
        Fate("f.py", "error", "SyntaxError: x"),
        Fate("t", "not run"),
    ]
