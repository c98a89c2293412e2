"""One session of checks: who awaits which report, what came of it. Imports no pytest, no torch."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_fp16 import console
from pytest_fp16.errors import FP16Error, SettingError
from pytest_fp16.options import chosen_precisions
from pytest_fp16.outcomes import Outcomes
from pytest_fp16.siblings import Siblings
from pytest_fp16.workers import Workers, stands_apart, tell_tests

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_fp16.report.model import Report
    from pytest_fp16.settings import Settings
    from pytest_fp16.subject import Evaluation, Training

#: Exit codes of pytest's.
_OK, _FAILED, _NOTHING = 0, 1, 5


class ConformanceSession:
    """Examines each test once for all its precisions, and keeps every report.

    Args:
        config: pytest's, for its terminal and to know which plugins are beside us.
        settings: the session's.

    Attributes:
        is_worker: this process is one of several (xdist): it sends its reports away.
        outcomes: of the items that are to be judged.
        tests: ids of all tests that were collected, without precisions.
    """

    def __init__(self, config: Any, settings: Settings) -> None:
        self.config = config
        self.settings = settings
        self.is_worker = hasattr(config, "workerinput")
        self.outcomes = Outcomes()
        self.siblings = Siblings(apart=stands_apart(config))
        self._reports: dict[str, list[Report]] = {}
        self._lost: str | None = None  # why there is no JSON report
        self.tests: set[str] = set()

    def hooks(self) -> dict[str, object]:
        """What has hooks of pytest's beside the plugin, by name; xdist's only where it declares."""
        parallel = self.config.pluginmanager.hasplugin("xdist")
        workers = {"fp16-workers": Workers(self.tests)} if parallel else {}
        return {"fp16-outcomes": self.outcomes, "fp16-unfinished": Unfinished(self), **workers}

    def header(self) -> str:
        """One line that says what will be checked."""
        return console.header(self.settings)

    def know(self, tests: Iterable[str]) -> None:
        """Remember which tests were collected, and tell a controller."""
        self.tests.update(tests)
        tell_tests(self.config, self.tests)

    @property
    def can_time(self) -> bool:
        """Whether items of this session can be timed."""
        return console.why_no_timing(self.config) is None

    def is_settled(self, test: str, precision: str) -> bool:
        """Whether a sibling's examination makes calling the test needless."""
        if not self.siblings.has(test, precision):
            return False
        report = self.siblings.peek(test, precision)
        return report is None or not self.can_be_timed(report)

    def report(
        self, test: str, precision: str, subject: Evaluation | Training | None, settings: Settings
    ) -> Report:
        """The report of one item; `subject` is None where a sibling has been examined.

        Raises:
            FP16Error: misuse, also where it was found when a sibling was examined.
        """
        __tracebackhide__ = True
        if subject is not None and not self.siblings.has(test, precision):
            precisions = self.siblings.to_examine(test, precision)
            try:
                found = self.examine(subject, settings.with_(precisions=precisions), test)
            except FP16Error as error:
                self.siblings.store_misuse(test, error, precisions)
            else:
                self.siblings.store(test, found, precisions)
        return self.siblings.take(test, precision)

    def examine(
        self, subject: Evaluation | Training, settings: Settings, test: str
    ) -> list[Report]:
        """Run the library's check under the test's own name, with a bar where a person watches."""
        __tracebackhide__ = True
        from pytest_fp16.conformance import examine

        if subject.name == "model":
            subject = replace(subject, name=test.rpartition("::")[2])
        with console.progress_bar(self.config) as progress:
            return examine(subject, settings, progress, test)

    def can_be_timed(self, report: Report) -> bool:
        """Whether a speed figure for this report would mean something, and can be had."""
        ran = report.run is not None and report.run.mode == "native"
        return ran and report.error is None and self.can_time

    def collect(self, nodeid: str, texts: Iterable[str]) -> None:
        """Keep the reports of an item that has run, given as JSON; its last run counts."""
        from pytest_fp16.report.model import Report

        self._reports[nodeid] = [Report.model_validate_json(text) for text in texts]

    def all_reports(self) -> list[tuple[str, Report]]:
        """(item's id, report) for every report of the session, those of one test together."""
        read = [(nodeid, r) for nodeid, reports in self._reports.items() for r in reports]
        return console.grouped(read + self.siblings.left())

    def select(self, item: Any, precision: str) -> None:
        """Remember an item that is to be judged: one that is claimed, or checks by hand."""
        chosen = chosen_precisions(self.config, self.settings) or (precision,)
        if precision or "fp16" in getattr(item, "fixturenames", ()):
            aside = bool(precision) and precision not in chosen
            self.outcomes.select(item.nodeid, aside=aside)

    def judged_nothing(self) -> str | None:
        """That every claim was put aside by the precisions asked for, and none was judged."""
        aside = self.outcomes.put_aside()
        if self.is_worker or not aside or self.all_reports():
            return None
        return (
            f"ERROR: fp16: no claim was judged: {aside} skipped, whose tests do not name "
            f"--fp16-precisions={','.join(self.settings.precisions)}"
        )

    def finish(self, exit_status: int) -> int:
        """Write the JSON report; the exit status, which a gate that judged nothing changes.

        Nor is it a success where the JSON report is lost.
        """
        if exit_status == _OK and self.judged_nothing():
            exit_status = _NOTHING
        written = self.write(exit_status)
        return exit_status if written or exit_status != _OK else _FAILED

    def write(self, exit_status: int | None = None) -> bool:
        """Write the JSON report where the user asked for one; a worker writes none.

        Args:
            exit_status: that the session ends with, but for this.

        Returns:
            False where it could not be written, which the summary tells.
        """
        if self.settings.json and self._writes:
            from pytest_fp16.report.json import write_json

            try:
                reports = self.all_reports()
                left = self.outcomes.unreported({item for item, _ in reports})
                write_json(self.settings.json, reports, exit_status, left)
            except SettingError as error:
                self._lost = f"ERROR: fp16: {error}"
        return self._lost is None

    def write_unfinished(self) -> None:
        """Say in the JSON report that nothing is judged yet, lest a killed run leave an old one."""
        if self.settings.json and self._writes:
            from pytest_fp16.report.json import write_json

            with suppress(SettingError):  # the end tells of it
                write_json(self.settings.json, (), complete=False)

    @property
    def _writes(self) -> bool:
        """Whether this process runs items, or hears of all that run, and so has a report."""
        return not self.is_worker and not self.config.getoption("collectonly", False)

    def summary(self) -> list[str]:
        """The lines of the section at the end; none where none are wanted, or nothing was said."""
        if self.config.getoption("no_summary", False):
            return []
        reports = self.all_reports()
        if not reports:
            return [said for said in (self.judged_nothing(), self._lost) if said]
        no_speed = console.why_no_speed(self.config, reports)
        lines = console.summary(reports, self.settings, no_speed, self._lost)
        return lines + [f"warning: {said}" for said in self._orphaned()]

    def _orphaned(self) -> list[str]:
        """Entries of the plan whose tests are gone, where all of a file was collected."""
        path = self.settings.plan
        if not path or not Path(path).exists() or self.config.getoption("lf", False):
            return []
        from pytest_fp16.plan import orphaned, read_plan

        chosen = [arg.partition("::") for arg in self.config.args]
        partly = {Path(file).name for file, some, _ in chosen if some}
        files = {test.partition("::")[0] for test in self.tests}
        return orphaned(
            read_plan(path), self.tests, {file for file in files if Path(file).name in partly}
        )


class Unfinished:
    """Before the first item runs, the JSON report says that the session is not complete."""

    def __init__(self, session: ConformanceSession) -> None:
        self.session = session

    def pytest_runtestloop(self) -> None:
        """All has been collected."""
        self.session.write_unfinished()
