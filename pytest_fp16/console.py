"""What a session says on the terminal, as text; pytest's objects are handed in, never imported."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_fp16.report.model import Report
    from pytest_fp16.report.progress import Bar
    from pytest_fp16.settings import Settings


def without_parameter(nodeid: str, value: str) -> str:
    """A node id without the last parameter of that value: ``t[a-16-true]`` becomes ``t[a]``."""
    if not value or not nodeid.endswith("]"):
        return nodeid
    name, _, ids = nodeid[:-1].partition("[")
    if ids == value:
        return name
    head, found, tail = ids.rpartition(f"-{value}")
    if found:
        return f"{name}[{head}{tail}]"
    return f"{name}[{ids.removeprefix(value + '-')}]"


def header(settings: Settings) -> str:
    """The header line of an active session."""
    return (
        f"fp16: {', '.join(settings.precisions)}; device {settings.device}, "
        f"emulate {settings.emulate}, target {settings.target}"
    )


def grouped(reports: list[Report]) -> list[Report]:
    """Reports in order of arrival, but those of one test together."""
    tests: dict[str, list[Report]] = {}
    for report in reports:
        tests.setdefault(report.name, []).append(report)
    return [report for group in tests.values() for report in group]


def summary(reports: list[Report], settings: Settings, no_speed: str | None) -> list[str]:
    """The lines of our section: table, warnings, details where asked for, notes."""
    from pytest_fp16.report import terminal

    lines = terminal.table(reports).splitlines()
    warnings: dict[str, list[str]] = {}
    for report in reports:
        for warning in report.warnings:
            warnings.setdefault(warning, []).append(f"{report.name}[{report.precision}]")
    lines += [f"warning: {text} ({', '.join(names)})" for text, names in warnings.items()]
    if settings.report == "full":
        for report in reports:
            lines += ["", *terminal.full(report).splitlines()]
    if no_speed:
        lines.append(f"Speed and memory are left out: {no_speed}.")
    if settings.json:
        lines.append(f"Reports written to {settings.json}")
    return lines


def why_no_timing(config: Any) -> str | None:
    """Why no item of this session can be timed, or None where it can."""
    if hasattr(config, "workerinput") or config.pluginmanager.hasplugin("dsession"):
        return "tests run in parallel (xdist), which disturbs timing"
    if not config.pluginmanager.hasplugin("benchmark"):
        return "pytest-benchmark is not installed, or blocked"
    if config.getoption("benchmark_skip", False):
        return "--benchmark-skip was given"
    if config.getoption("benchmark_disable", False) and not config.getoption("benchmark_enable", False):
        return "--benchmark-disable was given"
    return None


def why_no_speed(config: Any, reports: list[Report]) -> str | None:
    """Why some or all of these reports hold no speed figure; None where none is missing."""
    if all(report.speed is not None for report in reports):
        return None
    reason = why_no_timing(config)
    if reason is None and any(r.run is not None and r.run.mode == "emulated" for r in reports):
        return "an emulated run says nothing about speed"
    return reason


def mark_error_lines(longrepr: Any) -> None:
    """Give each line of a message without traceback the ``E`` that pytest gives error lines."""
    traceback = getattr(longrepr, "reprtraceback", None)
    for entry in getattr(traceback, "reprentries", ()):
        entry.lines = [f"E   {line}" for line in entry.lines]


@contextmanager
def progress_bar(config: Any) -> Iterator[Bar | None]:
    """A bar on pytest's own terminal where a person watches it; None in workers and in logs."""
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput") or not sys.__stdout__.isatty():
        yield None
        return
    from pytest_fp16.report.progress import Bar

    bar = Bar(_uncaptured(config, reporter), shutil.get_terminal_size().columns)
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
