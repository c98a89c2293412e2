"""Every pytest hook and fixture: read the options, ask the library, print the answer.

pytest imports this module in every run of every project it is installed beside, so torch, numpy,
pydantic, tabulate and the session are imported only where the user asked for a check.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_fp16 import claims, decorator, options
from pytest_fp16.decorator import ARGUMENTS, fp16_equivalent
from pytest_fp16.errors import FP16Error

if TYPE_CHECKING:
    from pytest_fp16.fixture import FP16
    from pytest_fp16.report.model import Report
    from pytest_fp16.session import ConformanceSession
    from pytest_fp16.settings import Settings
    from pytest_fp16.subject import Evaluation, Training

#: Attribute of pytest's report that carries ours, as JSON, from a worker to the controller.
TEXTS = "fp16_reports"
SESSION = pytest.StashKey["ConformanceSession"]()
REPORTS = pytest.StashKey["list[Report]"]()
REQUEST = pytest.StashKey[pytest.FixtureRequest]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare options and ini keys."""
    options.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Turn options into settings once; refuse what cannot be used before anything runs."""
    about = (fp16_equivalent.__doc__ or "").partition("\n")[0]
    config.addinivalue_line("markers", f"{claims.MARK}(**settings): {about}")
    try:
        settings = options.read_settings(config)
        if options.is_active(config):
            options.check_environment(settings, writes=not hasattr(config, "workerinput"))
            _begin(config, options.with_store(settings, getattr(config, "cache", None)))
    except FP16Error as error:
        raise pytest.UsageError(f"fp16: {error}") from None


def _begin(config: pytest.Config, settings: Settings) -> None:
    from pytest_fp16.session import ConformanceSession

    session = config.stash[SESSION] = ConformanceSession(config, settings)
    config.pluginmanager.register(Conformance(session), "fp16-conformance")
    for name, hooks in session.hooks().items():
        config.pluginmanager.register(hooks, name)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let ``-m fp16_equivalent`` choose decorated tests too."""
    if isinstance(item, pytest.Function) and hasattr(item.function, ARGUMENTS):
        item.add_marker(claims.MARK)


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One item per precision; after other parameters, so that siblings run one after another."""
    session = metafunc.config.stash.get(SESSION, None)
    try:
        arguments = claims.claim(metafunc.definition, metafunc.function)
        if arguments is None or session is None:
            return
        precisions = session.settings.with_(**arguments).precisions
    except FP16Error as error:
        raise pytest.Collector.CollectError(f"{metafunc.definition.nodeid}: {error}") from None
    chosen = options.chosen_precisions(metafunc.config, session.settings) or precisions
    skip = pytest.mark.skip(reason="not among --fp16-precisions=" + ",".join(chosen))
    own = [pytest.param(p, marks=() if p in chosen else skip) for p in precisions]
    metafunc.fixturenames.append(claims.PARAMETER)
    metafunc.parametrize(claims.PARAMETER, own, ids=precisions)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Call a claimed test for what it returns, and let the outcome depend on that."""
    __tracebackhide__ = True
    arguments = claims.claim(pyfuncitem, pyfuncitem.obj)
    session = pyfuncitem.config.stash.get(SESSION, None)
    if arguments is None:
        return (yield from _unclaimed(pyfuncitem)) if session is not None else (yield)
    needless = session is not None and session.is_settled(*claims.name_and_precision(pyfuncitem))
    called = claims.nothing if needless else decorator.listened(pyfuncitem.obj)
    with decorator.instead(pyfuncitem, called), decorator.returned_values() as values:
        result = yield
    try:
        subject = None if needless else claims.subject_in(values, pyfuncitem.originalname)
        _judge(session, pyfuncitem, subject, arguments)
    except FP16Error as error:
        text = f"{type(error).__name__}: {error}"
    else:
        return result
    pytest.fail(text, pytrace=False)


def _unclaimed(item: pytest.Function) -> Generator[None, object, object]:
    """Call a test that claims nothing; one that returns a subject was meant to."""
    __tracebackhide__ = True
    values: list[Any] = []
    with decorator.instead(item, decorator.overheard(item.obj, claims.SUBJECTS, values)):
        result = yield
    if values:
        pytest.fail(claims.unclaimed(values[-1], item.originalname), pytrace=False)
    return result


def _judge(
    session: ConformanceSession | None,
    item: pytest.Function,
    subject: Evaluation | Training | None,
    arguments: dict[str, Any],
) -> None:
    """Pass, or raise NotEquivalent; without the flag, a plain test in float32.

    Raises:
        FP16Error: misuse.
    """
    __tracebackhide__ = True
    if session is None:
        from pytest_fp16.smoke import smoke

        if subject is not None:
            smoke(subject)
        return
    settings = session.settings.with_(**arguments)
    report = session.report(*claims.name_and_precision(item), subject, settings)
    if subject is not None and session.can_be_timed(report):
        report = _timed(item, subject, report, settings)
    _record(item, report)
    if not report.equivalent:
        kind = Inconclusive if report.verdict == "inconclusive" else NotEquivalent
        raise kind(str(report), pytrace=False)


def _timed(
    item: pytest.Item, subject: Evaluation | Training, report: Report, settings: Settings
) -> Report:
    """The report with its speed: a row of pytest-benchmark's, grouped by test."""
    from pytest_fp16.speed import timed

    _set_timer(item)
    benchmark = item.stash[REQUEST].getfixturevalue("benchmark")
    test = claims.name_and_precision(item)[0]  # with its file: another may have one of that name
    return timed(benchmark, test, subject, report, settings)


def _set_timer(item: pytest.Item) -> None:
    """Have pytest-benchmark read a clock that waits for the device, unless the user chose one."""
    from pytest_fp16.speed import clock

    own = item.get_closest_marker("benchmark")
    chosen = {"timer": clock, **(own.kwargs if own else {})}
    item.add_marker(pytest.mark.benchmark(**chosen), append=False)


def _record(item: pytest.Item, report: Report) -> None:
    """Attach a report to the item, from where it goes to JUnit, JSON and the table."""
    from pytest_fp16.report.junit import properties

    item.stash.setdefault(REPORTS, []).append(report)
    item.user_properties.extend(properties(report))


@pytest.fixture
def fp16(request: pytest.FixtureRequest) -> FP16:
    """Check models by hand: ``fp16.evaluate(model, data, precision="16-true")`` gives a report.

    Skipped without --fp16-conformance.
    """
    session = request.config.stash.get(SESSION, None)
    if session is None:
        pytest.skip("the fixture fp16 needs --fp16-conformance")
    from pytest_fp16.fixture import FP16

    names = claims.Names(request.node.nodeid)

    def examine(subject: Evaluation | Training, settings: Settings) -> list[Report]:
        __tracebackhide__ = True
        test = names.of(subject, settings.precisions[0])
        (report,) = session.examine(subject, settings, test)
        if session.can_be_timed(report) and claims.wants_timing(request.node):
            report = _timed(request.node, subject, report, settings)
        _record(request.node, report)
        return [report]

    return FP16(session.settings, examine)


class NotEquivalent(pytest.fail.Exception):  # type: ignore[name-defined, misc]
    """A claim that does not hold; its text is the report's."""

    __module__ = "builtins"  # as pytest's own outcomes do, for a short name in the summary


class Inconclusive(NotEquivalent):
    """A claim that could not be settled."""

    __module__ = "builtins"


class Conformance:
    """The hooks of a session with --fp16-conformance."""

    def __init__(self, session: ConformanceSession) -> None:
        self.session = session

    @pytest.fixture(autouse=True)
    def _fp16_request(self, request: pytest.FixtureRequest) -> None:
        """The public way to a fixture that only some items turn out to need (benchmark)."""
        request.node.stash[REQUEST] = request

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Know all tests, before some are deselected."""
        self.session.know(claims.name_and_precision(item)[0] for item in items)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Remember which items share a test."""
        for item in session.items:
            test, precision = claims.name_and_precision(item)
            self.session.select(item, precision)
            if precision and not item.get_closest_marker("skip"):
                self.session.siblings.expect(test, precision, item.nodeid)
            if claims.wants_timing(item) and self.session.can_time:
                _set_timer(item)
                item.add_marker(pytest.mark.filterwarnings("ignore:Benchmark fixture was not used"))

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Refuse, before fixtures train a model, what the test itself cannot be claimed with."""
        if not item.get_closest_marker(claims.MARK):
            return
        if not claims.name_and_precision(item)[1]:
            pytest.fail(
                f"{claims.MARK} needs a function, or a method of a plain class (not of "
                "unittest.TestCase): pytest gives others no parameters",
                pytrace=False,
            )
        try:
            claims.require_device(item)
        except FP16Error as error:
            text = f"{type(error).__name__}: {error}"
        else:
            return
        pytest.fail(text, pytrace=False)

    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        """Nothing is examined for this item any more."""
        self.session.siblings.finish(*claims.name_and_precision(item))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Send reports along as JSON text: only builtins cross from a worker to the controller."""
        from pytest_fp16 import console

        outcome = yield
        if self.session.is_worker:
            self.session.outcomes.tell(outcome)
        if call.when == "call" and REPORTS in item.stash:
            reports = item.stash[REPORTS]
            del item.stash[REPORTS]
            vars(outcome)[TEXTS] = [report.model_dump_json() for report in reports]
            if outcome.failed and not claims.name_and_precision(item)[1]:
                outcome.sections += console.beside_failure(reports)
        if call.excinfo and call.excinfo.errisinstance(NotEquivalent):
            console.mark_error_lines(outcome.longrepr)
        return outcome

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect what arrives, from this process or from workers."""
        texts = getattr(report, TEXTS, None)
        if texts and not self.session.is_worker:
            self.session.collect(report.nodeid, texts)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the JSON report, whatever became of the run."""
        session.exitstatus = self.session.finish(int(session.exitstatus))

    def pytest_report_header(self) -> str:
        """One line that says what will be checked."""
        return self.session.header()

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The table of verdicts, and what there is to know beside it."""
        lines = self.session.summary()
        if lines:
            terminalreporter.section("16-bit conformance")
        for line in lines:
            terminalreporter.line(line)
