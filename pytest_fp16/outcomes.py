"""What became of the items that were to be judged, with a report or without. Imports no pytest."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

#: Attribute of pytest's reports by which a worker tells the controller which items it selected.
SELECTED = "fp16_selected"


@dataclass(frozen=True)
class Fate:
    """How an item ended: passed, failed, error, skipped or not run; and a line that says why."""

    test: str
    outcome: str
    message: str = ""


class Outcomes:
    """The items that were selected, and how each ended; its hooks hear that from pytest."""

    def __init__(self) -> None:
        self._selected: dict[str, bool] = {}  # and whether put aside by --fp16-precisions
        self._ended: dict[str, Fate] = {}
        self._uncollected: list[Fate] = []
        self._told = False

    def select(self, item: str, *, aside: bool) -> None:
        """An item of that id is to be judged; or would be, but for the precisions asked for."""
        self._selected[item] = aside

    def tell(self, report: Any) -> None:
        """Let a worker's first report carry what it selected: one that is killed says no more."""
        if not self._told:
            self._told = True
            vars(report)[SELECTED] = [[item, aside] for item, aside in self._selected.items()]

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Hear how a phase of an item ended, in this process or in a worker."""
        self._selected.update(dict(getattr(report, SELECTED, ())))
        before = self._ended.get(report.nodeid)
        if report.when == "setup" and report.passed:
            self._ended.pop(report.nodeid, None)  # it may be a second run of it
        elif report.when != "teardown":
            self._ended[report.nodeid] = Fate(report.nodeid, _outcome(report), _line(report))
        elif report.failed and before is not None and before.outcome == "passed":
            self._ended[report.nodeid] = Fate(report.nodeid, "error", _line(report))

    def pytest_collectreport(self, report: Any) -> None:
        """Hear of a file that could not be read: nobody knows what it would have claimed."""
        if report.failed:
            self._uncollected.append(Fate(report.nodeid, "error", _line(report)))

    def unreported(self, reported: Collection[str]) -> list[Fate]:
        """Items that were to be judged and are not among the `reported`; files first.

        One that passed without a report checked nothing by hand, which is its own affair.
        """
        left = [
            item for item, aside in self._selected.items() if not aside and item not in reported
        ]
        fates = [self._ended.get(item, Fate(item, "not run")) for item in left]
        return self._uncollected + [fate for fate in fates if fate.outcome != "passed"]

    def put_aside(self) -> int:
        """How many items came to be skipped because their precision was not asked for."""
        return sum(aside and item in self._ended for item, aside in self._selected.items())


def _outcome(report: Any) -> str:
    if report.when == "setup" and report.failed:
        return "error"
    if report.when == "call" and report.skipped and hasattr(report, "wasxfail"):
        return "failed"
    return report.outcome if report.outcome in ("passed", "skipped") else "failed"


def _line(report: Any) -> str:
    """The first line of what went wrong."""
    found = report.longrepr
    crash = getattr(found, "reprcrash", None)
    if crash is not None:
        found = crash.message
    elif isinstance(found, tuple):
        found = found[-1].removeprefix("Skipped: ")
    lines = str(found or "").strip().splitlines()
    return lines[0] if lines else ""
