"""How far work is that takes long enough to wonder about: a bar on one line, or lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

#: Characters between the brackets: the words beside them come first.
_NARROWEST, _WIDEST = 6, 24
#: Seconds before the bar first shows, and between two updates: short work stays silent.
_DELAY, _INTERVAL = 2.0, 0.2
#: Seconds between two lines of a log: who runs jobs stops those that say nothing for some minutes.
_SILENCE = 60.0


class Estimate:
    """The time that work will take, from the calls that say how much of it is done."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def begin(self, done: int, now: float) -> None:
        """Count from here, unless it counts already.

        What was finished before says nothing about speed, nor what precedes the first unit.
        """
        if self._first is None or not self._first[1]:
            self._first = now, done

    def left(self, done: int, total: int, now: float) -> str:
        """The time left at the speed so far."""
        start, before = self._first or (now, done)
        if done <= before or done >= total:
            return ""
        seconds = round((now - start) * (total - done) / (done - before))
        return f", {timedelta(seconds=seconds)} left:"


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
        self._estimate = Estimate()

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """Show that `done` of `total` units of the work named `what` are done."""
        now = self._clock()
        self._estimate.begin(done, now)
        if now < self._next:
            return
        self._next = now + _INTERVAL
        line = self._line(what, done, total, now)[: max(self._columns - 1, 10)]
        self._write("\r" + line.ljust(self._drawn))
        self._drawn = len(line)

    def _line(self, what: str, done: int, total: int | None, now: float) -> str:
        if not total:
            return f"fp16: {what}, {done} done"
        so_far = f" {done}/{total}{self._estimate.left(done, total, now)} "
        said = so_far + what
        room = self._columns - 1 - len("fp16: []")
        if len(said) + _NARROWEST > room:  # a bar is what can best be spared, then a name
            return f"fp16:{so_far}{_shortened(what, self._columns - 1 - len('fp16:' + so_far))}"
        width = min(_WIDEST, max(_NARROWEST, room - len(said)))
        full = round(width * min(done / total, 1.0))
        return f"fp16: [{'#' * full}{'.' * (width - full)}]{said}"

    def close(self) -> None:
        """Wipe the bar, so that pytest's own line starts clean."""
        if self._drawn:
            self._write("\r" + " " * self._drawn + "\r")
            self._drawn = 0


class Log:
    """Writes a plain line about once a minute; called as a `Bar` is.

    Args:
        write: puts text into the log, unbuffered.
        clock: seconds, monotonic.
    """

    def __init__(
        self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write, self._clock = write, clock
        self._next = clock() + _SILENCE
        self._estimate = Estimate()
        self._before = "\n"  # pytest's own line has no end yet

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """Say, once in a while, that `done` of `total` units of the work named `what` are done."""
        now = self._clock()
        self._estimate.begin(done, now)
        if now < self._next:
            return
        self._next = now + _SILENCE
        so_far = f"/{total}{self._estimate.left(done, total, now)} " if total else " done, "
        self._write(f"{self._before}fp16: {done}{so_far}{what}\n")
        self._before = ""

    def close(self) -> None:
        """Nothing is left to wipe."""


def _shortened(what: str, room: int) -> str:
    """`what` with the end of its name, before the colon, left out to fit: the figures come last."""
    name, colon, figures = what.partition(": ")
    excess = len(what) - room
    if not colon or excess <= 0:
        return what
    kept = len(name) - excess - 1
    return f"{name[:kept]}…{colon}{figures}" if kept > 0 else figures
