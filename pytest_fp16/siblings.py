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

    def expect(self, test: str, precision: str) -> None:
        """An item of that test and precision is going to run."""
        self._awaited.setdefault(test, []).append(precision)

    def to_examine(self, test: str, precision: str) -> tuple[str, ...]:
        """The precisions to examine when this item is the first of its test to run."""
        if self.apart:
            return (precision,)
        return tuple(dict.fromkeys([precision, *self._awaited.get(test, ())]))

    def is_ready(self, test: str, precision: str) -> bool:
        """Whether a sibling has examined this precision."""
        return (test, precision) in self._ready

    def store(self, test: str, outcome: list[Report] | FP16Error, precisions: tuple[str, ...]) -> None:
        """Keep the reports, or the misuse that all siblings share, in the order of `precisions`."""
        for i, precision in enumerate(precisions):
            self._ready[test, precision] = outcome[i] if isinstance(outcome, list) else outcome

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

    def left(self) -> list[Report]:
        """Reports that no item came to read, because the run was cut short."""
        return [r for r in self._ready.values() if not isinstance(r, Exception)]
