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
    config = SimpleNamespace(getoption=lambda name, default: default)
    assert ConformanceSession(config, Settings()).summary() == []


def test_who_wants_no_summary_has_none():
    for unwanted in (False, True):
        options = {"no_summary": unwanted}
        session = ConformanceSession(SimpleNamespace(getoption=options.get), Settings())
        session._lost = "ERROR: fp16: no room for the JSON report"
        assert bool(session.summary()) != unwanted


@pytest.mark.parametrize("worker", [True, False])
def test_a_worker_writes_no_file(tmp_path, worker):
    told = {"workerinput": {}} if worker else {}
    config = SimpleNamespace(getoption=lambda name, default: default, **told)
    path = tmp_path / "reports.json"
    session = ConformanceSession(config, Settings(json=str(path)))
    session.write_unfinished()
    assert path.exists() != worker
    path.unlink(missing_ok=True)
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


@pytest.mark.parametrize("parallel", [True, False])
def test_hooks_of_workers_only_where_they_are_declared(parallel):
    manager = SimpleNamespace(hasplugin=lambda name: parallel and name == "xdist")
    session = ConformanceSession(SimpleNamespace(pluginmanager=manager), Settings())
    names = {"fp16-outcomes", "fp16-unfinished"}
    assert session.hooks().keys() == (names | {"fp16-workers"} if parallel else names)
