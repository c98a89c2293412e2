"""What a session says on the terminal."""

import io
from types import SimpleNamespace

import pytest

from pytest_fp16 import console
from pytest_fp16.report.model import Culprit, Metric, Report, Run, Speed
from pytest_fp16.settings import Settings


def a_report(name="t", precision="16-true", **more):
    fields = {"kind": "evaluation", "task": "classification", "checks": []}
    return Report(name=name, precision=precision, verdict="equivalent", **fields, **more)


def a_config(plugins=(), worker=False, **options):
    manager = SimpleNamespace(hasplugin=lambda name: name in plugins)
    config = SimpleNamespace(
        pluginmanager=manager, getoption=lambda name, default: options.get(name, default)
    )
    if worker:
        config.workerinput = {}
    return config


def test_reports_of_one_test_stand_together_by_precision():
    arrived = [
        (f"f.py::{test}[{p}]", a_report(test, p))
        for test, p in [("b", "bf16-true"), ("a", "16-true"), ("b", "16-true")]
    ]
    assert [nodeid for nodeid, _ in console.grouped(arrived)] == [
        "f.py::b[16-true]", "f.py::b[bf16-true]", "f.py::a[16-true]",
    ]  # fmt: skip


def test_a_warning_is_told_once_with_all_it_concerns():
    reports = [
        (f"f.py::t[{p}]", a_report("t", p, warnings=["beware"])) for p in ("16-true", "16-mixed")
    ]
    lines = console.summary(reports, Settings(), "it rained")
    assert "warning: beware (t[16-true], t[16-mixed])" in lines
    assert "Speed and memory are left out: it rained." in lines


def test_a_warning_names_tests_as_the_table_does():
    reports = [
        (f"f.py::{test}16-true]", a_report("reg", warnings=["beware"])) for test in ("a[", "b[x-")
    ]
    lines = console.summary(reports, Settings(), None)
    assert "warning: beware (a[16-true], b[x][16-true])" in lines


def test_rows_of_one_test_are_told_apart():
    reports = [("f.py::t", a_report(name)) for name in ("t", "t #2", "mine")]
    reports += [("f.py::u", a_report("other"))]
    names = [line.partition("  ")[0] for line in console.summary(reports, Settings(), None)[2:6]]
    assert names == ["t", "t #2", "t: mine", "u"]


@pytest.mark.parametrize(("columns", "whole"), [("160", False), (None, True)])
def test_a_log_has_names_whole(monkeypatch, columns, whole):
    name = "test_" + "many_words_" * 20
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(
        "sys.__stdout__", io.StringIO()
    )  # no terminal, as in continuous integration
    lines = console.summary([(f"f.py::{name}[16-true]", a_report(name))], Settings(), None)
    assert any(line.startswith(name) for line in lines) is whole


def test_where_a_passing_test_has_spent_its_budget_is_told():
    culprit = Culprit(module="norm", operation="pow", mechanism="overflow", evidence="9e4")
    metric = Metric(
        name="accuracy", reference=0.97, candidate=0.963, loss=0.007, budget=0.01,
        budget_origin="default", labelled=True,
    )  # fmt: skip
    reports = [("f.py::t[16-true]", a_report(culprit=culprit, metric=metric))]
    (line,) = [s for s in console.summary(reports, Settings(), None) if s.startswith("warning")]
    assert line.startswith("warning: t[16-true]: More than half of the budget is spent")
    assert "norm, operation pow" in line


@pytest.mark.parametrize(("second", "told"), [("g.py", True), ("f.py", False)])
def test_the_file_is_told_where_there_are_several(second, told):
    reports = [
        ("f.py::one[16-true]", a_report("one")), (f"{second}::two[16-true]", a_report("two")),
    ]  # fmt: skip
    assert ("f.py::one" in "\n".join(console.summary(reports, Settings(), None))) == told


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (a_config(["benchmark"], worker=True), "xdist"),
        (a_config(["benchmark", "dsession"]), "xdist"),
        (a_config(), "not installed"),
        (a_config(["benchmark"], benchmark_skip=True), "--benchmark-skip"),
        (a_config(["benchmark"], benchmark_disable=True), "--benchmark-disable"),
    ],
)
def test_why_nothing_is_timed(config, reason):
    assert reason in console.why_no_timing(config)


@pytest.mark.parametrize("options", [{}, {"benchmark_disable": True, "benchmark_enable": True}])
def test_nothing_forbids_timing(options):
    assert console.why_no_timing(a_config(["benchmark"], **options)) is None


def test_emulation_is_the_reason_for_no_speed_only_where_a_figure_is_missing():
    config = a_config(["benchmark"])
    emulated = Run(device="cpu", target="cuda", mode="emulated")
    speed = Speed(seconds=1, reference_seconds=1, speedup=1)
    assert "emulated" in console.why_no_speed(config, [("t", a_report(run=emulated))])
    assert console.why_no_speed(config, [("t", a_report(run=emulated, speed=speed))]) is None
    native = Run(device="cpu", target="cpu", mode="native")
    assert "times once" in console.why_no_speed(config, [("t", a_report(run=native))])
    assert console.why_no_speed(config, [("t", a_report(run=native, error="broke"))]) is None
