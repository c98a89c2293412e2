"""Which items of one test await which reports: a test is examined once for all its precisions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_fp16.errors import FP16Error
    from pytest_fp16.report.model import Report


class Siblings:
    """Items of one test, one per precision, and the reports that lie ready for them.

    Tests are told apart by any string that is the same for all siblings.

    Args:
        apart: every item examines its own precision only, because its siblings may run in
            another process.
    """

    def __init__(self, *, apart: bool) -> None:
        self.apart = apart
        self._awaited: dict[str, list[str]] = {}
        self._ready: dict[tuple[str, str], Report | FP16Error] = {}
        self._ids: dict[tuple[str, str], str] = {}

    def expect(self, test: str, precision: str, item: str) -> None:
        """The item of that id is going to run, for that test and precision."""
        self._ids[test, precision] = item
        self._awaited.setdefault(test, []).append(precision)

    def to_examine(self, test: str, precision: str) -> tuple[str, ...]:
        """The precisions to examine when this item is the first of its test to run."""
        if self.apart:
            return (precision,)
        return tuple(dict.fromkeys([precision, *self._awaited.get(test, ())]))

    def has(self, test: str, precision: str) -> bool:
        """Whether the item's test has been examined for it, with a report or with misuse found."""
        return (test, precision) in self._ready

    def peek(self, test: str, precision: str) -> Report | None:
        """The report that lies ready for an item; None where there is none."""
        outcome = self._ready.get((test, precision))
        return None if isinstance(outcome, Exception) else outcome

    def store(self, test: str, reports: list[Report], precisions: tuple[str, ...]) -> None:
        """Keep the reports of a test, one per precision."""
        for precision, report in zip(precisions, reports, strict=True):
            self._ready[test, precision] = report

    def store_misuse(self, test: str, error: FP16Error, precisions: tuple[str, ...]) -> None:
        """Keep the mistake that was found instead: all siblings share it."""
        for precision in precisions:
            self._ready[test, precision] = error

    def take(self, test: str, precision: str) -> Report:
        """The report of one item, which is then forgotten.

        Raises:
            FP16Error: the misuse that was found when the test was examined.
        """
        outcome = self._ready.pop((test, precision))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def finish(self, test: str, precision: str) -> None:
        """The item has run, or was skipped: nothing is examined for it any more."""
        awaited = self._awaited.get(test, [])
        if precision in awaited:
            awaited.remove(precision)
        if not awaited:
            self._awaited.pop(test, None)

    def left(self) -> list[tuple[str, Report]]:
        """(item's id, report) for each that no item came to read, because the run was cut short."""
        return [
            (self._ids.get(key, key[0]), outcome)
            for key, outcome in self._ready.items()
            if not isinstance(outcome, Exception)
        ]
