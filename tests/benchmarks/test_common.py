"""How benchmarks spread their work, and what a result says of what was left out."""

import os
import time
from types import SimpleNamespace

import pytest

from benchmarks import common


def options(workers=1, minutes=float("inf")):
    return SimpleNamespace(workers=workers, minutes=minutes, threads=1)


@pytest.fixture(autouse=True)
def undone(monkeypatch):
    found = []
    monkeypatch.setattr(common, "_UNDONE", found)
    return found


def process(item):
    time.sleep(item)
    return item, os.getpid()


def test_in_one_process_it_is_a_map(undone):
    assert list(common.spread(process, [0, 0.01], options())) == [
        (0, os.getpid()),
        (0.01, os.getpid()),
    ]
    assert undone == []


def test_in_several_the_order_is_kept(undone):
    found = list(common.spread(process, [0.3, 0, 0.1], options(workers=2)))
    assert [item for item, _ in found] == [0.3, 0, 0.1]
    assert os.getpid() not in {where for _, where in found}
    assert undone == []


def test_what_is_not_done_in_time_is_left_out_and_told(undone):
    start = time.monotonic()
    list(common.spread(process, [0, 0], options(workers=2)))
    enough = 3 + 4 * (time.monotonic() - start)  # for processes to begin here and now
    found = list(common.spread(process, [0, 600, 0, 600], options(workers=3, minutes=enough / 60)))
    assert time.monotonic() - start < 600
    assert [item for item, _ in found] == [0, 0]
    assert undone == ["Not done in the time given: 2 of 4 items."]


def test_one_process_stops_too(undone):
    assert list(common.spread(process, [0, 0], options(minutes=0))) == []
    assert undone == ["Not done in the time given: 2 of 2 items."]


def test_a_result_tells_what_was_left_out(undone, monkeypatch, tmp_path):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    undone.append("Not done in the time given: 2 of 4 items.")
    common.write("name", "Title", "Summary.", ("a",), [(1,)])
    assert "Not done in the time given: 2 of 4 items." in (tmp_path / "name.md").read_text()


def needs_a_package(item):
    if item == "b":
        raise ModuleNotFoundError("this benchmark needs b")
    return item


@pytest.mark.parametrize("workers", [1, 2])
def test_a_missing_package_costs_its_items_alone(undone, workers):
    assert list(common.spread(needs_a_package, ["a", "b", "c"], options(workers))) == ["a", "c"]
    assert undone == ["Left out b: this benchmark needs b."]


def test_rows_that_stand_are_kept_and_told(undone, monkeypatch, tmp_path):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    assert common.kept("name") == common.Kept()
    assert common.Kept().told == ""
    rows = [("first", "-", "", "0.50"), ("second", "broken", "agree", "a note")]
    common.write("name", "Title", "Summary.", ("case", "label", "", "loss"), rows)
    kept = common.kept("name")
    assert kept.rows == tuple(rows)
    assert kept.told == f"2 rows stood here on {kept.date} already."
    assert kept.date in (tmp_path / "name.md").read_text()
    assert kept.lacks(["second", "third"]) == ["third"]
