"""Every pytest hook and fixture: read the options, ask the library, print the answer.

pytest imports this module in every run of every project it is installed beside, so torch, numpy,
pydantic and tabulate are imported inside functions, and only where the user asked for a check.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest

from pytest_fp16 import console, options
from pytest_fp16.decorator import (
    ARGUMENTS,
    check_arguments,
    fp16_equivalent,
    listened,
    returned_values,
)
from pytest_fp16.errors import FP16Error, SettingError
from pytest_fp16.siblings import Siblings

if TYPE_CHECKING:
    from pytest_fp16.fixture import FP16
    from pytest_fp16.report.model import Report
    from pytest_fp16.settings import Settings
    from pytest_fp16.subject import Evaluation, Training

MARK = "fp16_equivalent"
#: The parameter that makes one item per precision.
PARAMETER = "fp16_precision"
SESSION = pytest.StashKey["Conformance"]()
REPORTS = pytest.StashKey["list[Report]"]()
REQUEST = pytest.StashKey[pytest.FixtureRequest]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare options and ini keys."""
    options.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Turn options into settings once; refuse what cannot be used before anything runs."""
    about = (fp16_equivalent.__doc__ or "").partition("\n")[0]
    config.addinivalue_line("markers", f"{MARK}(**settings): {about}")
    try:
        settings = options.read_settings(config)
        if options.is_active(config):
            options.check_environment(settings, writes=not hasattr(config, "workerinput"))
            config.stash[SESSION] = Conformance(config, settings)
            config.pluginmanager.register(config.stash[SESSION], "fp16-conformance")
    except FP16Error as error:
        raise pytest.UsageError(f"fp16: {error}") from None


def claim(node: pytest.Item, test: Any) -> dict[str, Any] | None:
    """Settings a test is claimed with, by decorator or marks (the closer wins); None: no claim.

    Raises:
        SettingError: a mark with positional or unknown arguments.
    """
    arguments = getattr(test, ARGUMENTS, None)
    marks = list(node.iter_markers(MARK))
    if arguments is None and not marks:
        return None
    merged: dict[str, Any] = {}
    for mark in reversed(marks):
        if mark.args:
            raise SettingError(f"the mark {MARK} takes keywords only (got {mark.args[0]!r})")
        check_arguments(mark.kwargs)
        merged |= mark.kwargs
    return merged | (arguments or {})


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let ``-m fp16_equivalent`` choose decorated tests too."""
    if isinstance(item, pytest.Function) and hasattr(item.function, ARGUMENTS):
        item.add_marker(MARK)


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One item per precision; after other parameters, so that siblings run one after another."""
    try:
        arguments = claim(metafunc.definition, metafunc.function)
        session = metafunc.config.stash.get(SESSION, None)
        if arguments is None or session is None:
            return
        precisions = session.settings.with_(**arguments).precisions
    except FP16Error as error:
        raise pytest.Collector.CollectError(f"{metafunc.definition.nodeid}: {error}") from None
    chosen = options.chosen_precisions(metafunc.config, session.settings)
    if chosen is not None and "precisions" in arguments:
        skip = pytest.mark.skip(reason="not among --fp16-precisions=" + ",".join(chosen))
        params = [pytest.param(p, marks=() if p in chosen else skip) for p in precisions]
    else:
        params = [pytest.param(p) for p in precisions]
    metafunc.fixturenames.append(PARAMETER)
    metafunc.parametrize(PARAMETER, params, ids=precisions)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Call a claimed test for what it returns, and let the outcome depend on that."""
    arguments = claim(pyfuncitem, pyfuncitem.obj)
    if arguments is None:
        return (yield)
    session = pyfuncitem.config.stash.get(SESSION, None)
    test = pyfuncitem.obj
    known = session is not None and session.knows(pyfuncitem)
    pyfuncitem.obj = _nothing if known else listened(test)
    try:
        with returned_values() as values:
            result = yield
    finally:
        pyfuncitem.obj = test
    try:
        subject = None if known else _subject(pyfuncitem, values)
        if session is not None:
            session.judge(pyfuncitem, subject, arguments)
        elif subject is not None:
            from pytest_fp16.smoke import smoke

            smoke(subject)
    except FP16Error as error:
        pytest.fail(f"{type(error).__name__}: {error}", pytrace=False)
    return result


def name_and_precision(item: pytest.Item) -> tuple[str, str]:
    """The id of an item without its precision, which all siblings share, and the precision."""
    callspec = getattr(item, "callspec", None)
    precision = callspec.params.get(PARAMETER, "") if callspec else ""
    return console.without_parameter(item.nodeid, precision), precision


def _nothing(**fixtures: Any) -> None:
    """Stands in for a test whose sibling has been called already."""


def _subject(item: pytest.Function, values: list[Any]) -> Evaluation | Training:
    from pytest_fp16.subject import Evaluation, Training

    value = values[-1] if values else None
    if not isinstance(value, (Evaluation, Training)):
        raise SettingError(
            f"{item.originalname} must return an Evaluation or a Training "
            f"(it returned {'None' if value is None else type(value).__name__})"
        )
    return value


@pytest.fixture
def fp16(request: pytest.FixtureRequest) -> FP16:
    """Check models by hand: ``fp16.evaluate(model, data, precision="16-true")`` gives a report.

    Skipped without --fp16-conformance.
    """
    session = request.config.stash.get(SESSION, None)
    if session is None:
        pytest.skip("the fixture fp16 needs --fp16-conformance")
    return session.by_hand(request.node)


class NotEquivalent(pytest.fail.Exception):
    """A claim that does not hold, or could not be settled; its text is the report's."""


class Conformance:
    """A session with --fp16-conformance: examines tests, passes reports on, prints the answer."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self.config = config
        self.settings = settings
        self.is_worker = hasattr(config, "workerinput")
        self.siblings = Siblings(apart=self.is_worker)
        self.reports: dict[str, list[Report]] = {}

    @pytest.fixture(autouse=True)
    def _fp16_request(self, request: pytest.FixtureRequest) -> None:
        """The public way to a fixture that only some items turn out to need (benchmark)."""
        request.node.stash[REQUEST] = request

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Remember which items share a test."""
        for item in session.items:
            if name_and_precision(item)[1] and not item.get_closest_marker("skip"):
                self.siblings.expect(*name_and_precision(item))

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Refuse a claim on a test that pytest neither parametrises nor calls itself."""
        if isinstance(item, pytest.Function) and not name_and_precision(item)[1]:
            if hasattr(item.function, ARGUMENTS):
                pytest.fail(f"{MARK} does not work on methods of unittest.TestCase", pytrace=False)

    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        """Nothing is examined for this item any more."""
        self.siblings.finish(*name_and_precision(item))

    def knows(self, item: pytest.Function) -> bool:
        """Whether a sibling's examination makes calling the test needless."""
        return self.siblings.is_ready(*name_and_precision(item))

    def judge(
        self, item: pytest.Function, subject: Evaluation | Training | None, arguments: dict[str, Any]
    ) -> None:
        """Pass, or raise NotEquivalent; `subject` is None where a sibling was examined.

        Raises:
            FP16Error: misuse.
        """
        __tracebackhide__ = True
        test, precision = name_and_precision(item)
        settings = self.settings.with_(**arguments)
        if subject is not None:
            precisions = self.siblings.to_examine(test, precision)
            try:
                found: Any = self.examine(subject, settings.with_(precisions=precisions), test)
            except FP16Error as error:
                found = error
            self.siblings.store(test, found, precisions)
        report = self.siblings.take(test, precision)
        self.record(item, report)
        if not report.equivalent:
            raise NotEquivalent(str(report), pytrace=False)

    def examine(
        self, subject: Evaluation | Training, settings: Settings, test: str
    ) -> list[Report]:
        """Run the library's check under the test's own name, with a bar where a person watches."""
        from pytest_fp16.conformance import examine

        if subject.name == "model":
            subject = replace(subject, name=test.rpartition("::")[2])
        with console.progress_bar(self.config) as progress:
            return examine(subject, settings, progress)

    def record(self, item: pytest.Item, report: Report) -> None:
        """Attach a report to the item, from where it goes to JUnit, JSON and the table."""
        from pytest_fp16.report.junit import properties

        item.stash.setdefault(REPORTS, []).append(report)
        item.user_properties.extend(properties(report))

    def by_hand(self, item: pytest.Item) -> FP16:
        """The fixture's value for one item."""
        from pytest_fp16.fixture import FP16

        def examine(subject: Evaluation | Training, settings: Settings) -> list[Report]:
            __tracebackhide__ = True
            reports = self.examine(subject, settings, item.nodeid)
            for report in reports:
                self.record(item, report)
            return reports

        return FP16(self.settings, examine)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Send reports along as JSON text: only builtins cross from a worker to the controller."""
        outcome = yield
        if call.when == "call" and REPORTS in item.stash:
            outcome.fp16_reports = [r.model_dump_json() for r in item.stash[REPORTS]]
            del item.stash[REPORTS]
        if call.excinfo and call.excinfo.errisinstance(NotEquivalent):
            console.mark_error_lines(outcome.longrepr)
        return outcome

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect what arrives, from this process or from workers; the last run of an item counts."""
        texts = getattr(report, "fp16_reports", None)
        if texts and not self.is_worker:
            from pytest_fp16.report.model import Report

            self.reports[report.nodeid] = [Report.model_validate_json(text) for text in texts]

    def all_reports(self) -> list[Report]:
        """Every report of the session, those of one test together."""
        return console.grouped([*chain(*self.reports.values()), *self.siblings.left()])

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Write the JSON report, whatever became of the run."""
        if self.settings.json and not self.is_worker:
            from pytest_fp16.report.json import write_json

            write_json(self.settings.json, self.all_reports())

    def pytest_report_header(self) -> str:
        """One line that says what will be checked."""
        return console.header(self.settings)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The table of verdicts, and what there is to know beside it."""
        reports = self.all_reports()
        if reports:
            terminalreporter.section("16-bit conformance")
            for line in console.summary(reports, self.settings, console.why_no_speed(self.config, reports)):
                terminalreporter.line(line)
