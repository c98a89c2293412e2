"""What a session says on the terminal, as text; pytest's objects are handed in, never imported."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pytest_fp16.claims import without_parameter
from pytest_fp16.precision import PRECISIONS, REFERENCE

if TYPE_CHECKING:
    from pytest_fp16.report.model import Report
    from pytest_fp16.report.progress import Bar, Log
    from pytest_fp16.settings import Settings

    Named = tuple[str, Report]


def header(settings: Settings) -> str:
    """The header line of an active session."""
    return (
        f"fp16: {', '.join(settings.precisions)}; device {settings.device}, "
        f"emulate {settings.emulate}, target {settings.target}"
    )


def grouped(reports: list[Named]) -> list[Named]:
    """Tests in order of arrival, the reports of each by precision: items may run in any order."""
    tests: dict[str, list[Named]] = {}
    for nodeid, report in reports:
        test = without_parameter(nodeid, report.precision)
        tests.setdefault(test, []).append((nodeid, report))
    order = list(PRECISIONS)
    return [
        pair
        for group in tests.values()
        for pair in sorted(group, key=lambda pair: order.index(pair[1].precision))
    ]


def summary(
    reports: list[Named], settings: Settings, no_speed: str | None, no_json: str | None = None
) -> list[str]:
    """The lines of our section: table, warnings, details where asked for, notes."""
    from pytest_fp16.report import terminal
    from pytest_fp16.report.message import spent

    columns = shutil.get_terminal_size((0, 0)).columns  # none in a log, whose lines do not wrap
    named = _short(reports)
    lines = terminal.table(named, max(120, columns) if columns else None).splitlines()
    warnings: dict[str, list[str]] = {}
    for name, report in named:
        for warning in report.warnings:
            warnings.setdefault(warning, []).append(f"{name}[{report.precision}]")
    lines += [f"warning: {text} ({', '.join(names)})" for text, names in warnings.items()]
    lines += _unguarded(named)
    for name, report in named:
        if sentences := spent(report):
            lines.append(f"warning: {name}[{report.precision}]: {'. '.join(sentences)}.")
    if settings.report == "full":
        for _, report in reports:
            lines += ["", *terminal.full(report).splitlines()]
    if no_speed:
        lines.append(f"Speed and memory are left out: {no_speed}.")
    if settings.json:
        lines.append(no_json or f"Reports written to {settings.json}")
    return lines


def _unguarded(named: list[Named]) -> list[str]:
    """The warning of tests that hold the reference against itself, and nothing else."""
    precisions: dict[str, set[str]] = {}
    for name, report in named:
        precisions.setdefault(name, set()).add(report.precision)
    alone = [name for name, asked in precisions.items() if asked == {REFERENCE.name}]
    if not alone:
        return []
    return [
        f"warning: {REFERENCE.name} is the reference itself, so that nothing is guarded; name a "
        f"16-bit precision ({', '.join(alone)})"
    ]


def _short(reports: list[Named]) -> list[Named]:
    """Tests by name, which has a column of its own for the precision; by file too, if several."""
    names = [(without_parameter(nodeid, report.precision), report) for nodeid, report in reports]
    rows = Counter((name, report.precision) for name, report in names)
    several = {name for (name, _), count in rows.items() if count > 1}
    names = [(_apart(name, r) if name in several else name, r) for name, r in names]
    if len({name.partition("::")[0] for name, _ in names}) > 1:
        return names
    return [(name.partition("::")[2] or name, report) for name, report in names]


def _apart(name: str, report: Report) -> str:
    """The name of a test that makes several checks by hand, with what this one is called."""
    own = report.name.removeprefix(name.rpartition("::")[2])
    return name + (own if own != report.name else f": {own}")


def why_no_timing(config: Any) -> str | None:
    """Why no item of this session can be timed, or None where it can."""
    if hasattr(config, "workerinput") or config.pluginmanager.hasplugin("dsession"):
        return "tests run in parallel (xdist), which disturbs timing"
    if not config.pluginmanager.hasplugin("benchmark"):
        return "pytest-benchmark is not installed, or blocked"
    if config.getoption("benchmark_skip", False):
        return "--benchmark-skip was given"
    if config.getoption("benchmark_disable", False) and not config.getoption(
        "benchmark_enable", False
    ):
        return "--benchmark-disable was given"
    return None


def why_no_speed(config: Any, reports: list[Named]) -> str | None:
    """Why some or all of these reports hold no speed figure; None where none is missing."""
    if all(report.speed is not None for _, report in reports):
        return None
    reason = why_no_timing(config)
    if reason is not None:
        return reason
    untimed = [report for _, report in reports if report.speed is None and report.run is not None]
    if any(report.run and report.run.mode == "emulated" for report in untimed):
        return "an emulated run says nothing about speed"
    if any(report.error is None for report in untimed):
        return (
            "pytest-benchmark times once in a test, and in one by hand where it asks for the "
            "fixture benchmark too"
        )
    return None


def beside_failure(reports: list[Report]) -> list[tuple[str, str]]:
    """Sections below a test by hand that failed: its reports that are not good, in full."""
    bad = [str(report) for report in reports if not report.equivalent]
    return [("16-bit conformance", text) for text in bad]


def mark_error_lines(longrepr: Any) -> None:
    """Give each line of a message without traceback the ``E`` that pytest gives error lines."""
    traceback = getattr(longrepr, "reprtraceback", None)
    for entry in getattr(traceback, "reprentries", ()):
        entry.lines = [f"E   {line}" for line in entry.lines]


@contextmanager
def progress_bar(config: Any) -> Iterator[Bar | Log | None]:
    """A bar on pytest's own terminal where a person watches it, in a log a line now and then.

    None in workers, and under ``-q`` in a log.
    """
    reporter = config.pluginmanager.getplugin("terminalreporter")
    # Only the reporter knows: while a test runs, the process's own stdout is captured in a file.
    watched = getattr(reporter, "isatty", False)
    quiet = reporter is None or (not watched and config.getoption("verbose", 0) < 0)
    if quiet or hasattr(config, "workerinput"):
        yield None
        return
    from pytest_fp16.report.progress import Bar, Log

    write = _uncaptured(config, reporter)
    bar = Bar(write, shutil.get_terminal_size().columns) if watched else Log(write)
    try:
        yield bar
    finally:
        bar.close()


def _uncaptured(config: Any, reporter: Any) -> Callable[[str], None]:
    """Writes to pytest's terminal past the capture of the running test."""
    capture = config.pluginmanager.getplugin("capturemanager")

    def write(text: str) -> None:
        if capture is None:
            reporter.write(text, flush=True)
            return
        with capture.global_and_fixture_disabled():
            reporter.write(text, flush=True)

    return write
