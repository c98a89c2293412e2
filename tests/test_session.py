"""One session of checks: who awaits which report."""

from types import SimpleNamespace

import pytest

from pytest_fp16 import Evaluation
from pytest_fp16.errors import DataError
from pytest_fp16.report.model import Report
from pytest_fp16.session import ConformanceSession
from pytest_fp16.settings import Settings


def a_report(name):
    fields = {"kind": "evaluation", "task": "classification", "checks": []}
    return Report(name=name, precision="16-true", verdict="equivalent", **fields)


def test_the_last_run_of_an_item_counts():
    session = ConformanceSession(SimpleNamespace(), Settings())
    for name in ("first", "again"):
        session.collect("f.py::t[16-true]", [a_report(name).model_dump_json()])
    assert [r.name for _, r in session.all_reports()] == ["again"]


def test_nothing_examined_nothing_said():
    assert ConformanceSession(SimpleNamespace(), Settings()).summary() == []


@pytest.mark.parametrize("worker", [True, False])
def test_a_worker_writes_no_file(tmp_path, worker):
    config = SimpleNamespace(workerinput={}) if worker else SimpleNamespace()
    path = tmp_path / "reports.json"
    session = ConformanceSession(config, Settings(json=str(path)))
    session.collect("f.py::t[16-true]", [a_report("t").model_dump_json()])
    session.write()
    assert path.exists() != worker


def test_misuse_reaches_the_item(monkeypatch):
    def refuse(*_):
        raise DataError("empty")

    session = ConformanceSession(SimpleNamespace(), Settings())
    monkeypatch.setattr(session, "examine", refuse)
    with pytest.raises(DataError, match="empty"):
        session.report("f.py::t", "16-true", Evaluation(model=None, data=[]), Settings())
