"""A bar on one line of a terminal, for work that takes long enough to wonder about."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

#: Characters between the brackets: the words beside them come first.
_NARROWEST, _WIDEST = 6, 24
#: Seconds before the bar first shows, and between two updates: short work stays silent.
_DELAY, _INTERVAL = 2.0, 0.2


class Bar:
    """Draws progress over itself; call it as the library's `progress`, and `close` it in the end.

    Args:
        write: puts text on the terminal, unbuffered.
        columns: width of the terminal in characters.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        columns: int = 80,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._columns = columns
        self._clock = clock
        self._next = clock() + _DELAY
        self._drawn = 0
        self._first: tuple[float, int] | None = None

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """Show that `done` of `total` units of the work named `what` are done."""
        now = self._clock()
        if self._first is None:
            self._first = now, done  # what was finished before says nothing about speed
        if now < self._next:
            return
        self._next = now + _INTERVAL
        line = self._line(what, done, total, now)[: max(self._columns - 1, 10)]
        self._write("\r" + line.ljust(self._drawn))
        self._drawn = len(line)

    def _line(self, what: str, done: int, total: int | None, now: float) -> str:
        if not total:
            return f"fp16: {what}, {done} done"
        said = f" {done}/{total}{self._left(done, total, now)} {what}"
        width = min(_WIDEST, max(_NARROWEST, self._columns - 1 - len("fp16: []" + said)))
        full = round(width * min(done / total, 1.0))
        return f"fp16: [{'#' * full}{'.' * (width - full)}]{said}"

    def _left(self, done: int, total: int, now: float) -> str:
        """The time left at the speed so far."""
        start, before = self._first or (now, done)
        if done <= before or done >= total:
            return ""
        seconds = round((now - start) * (total - done) / (done - before))
        return f", {timedelta(seconds=seconds)} left:"

    def close(self) -> None:
        """Wipe the bar, so that pytest's own line starts clean."""
        if self._drawn:
            self._write("\r" + " " * self._drawn + "\r")
            self._drawn = 0
