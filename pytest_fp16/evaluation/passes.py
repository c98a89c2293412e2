"""Where an evaluation is, batch by batch, and within a batch pass by pass."""

from __future__ import annotations

from pytest_fp16.progress import Progress


class Passes:
    """Tells whoever is watching: a loop that runs a thousand times makes one batch a long one.

    Args:
        progress: who is told; None where nobody is.
        name: of what is evaluated.
    """

    def __init__(self, progress: Progress | None, name: str) -> None:
        self._progress, self._name = progress, name
        self._done, self._passes = 0, 0
        self.total: int | None = None

    def done(self, batches: int) -> None:
        """So many batches are, in every precision."""
        self._done, self._passes = batches, 0
        if self._progress is not None:
            self._progress(f"evaluating {self._name}", batches, self.total)

    def passed(self, precision: str) -> None:
        """The theory of a precision has made another pass over the batch."""
        self._passes += 1
        if self._progress is not None:
            what = f"evaluating {self._name}: {precision}, pass {self._passes} over the batch"
            self._progress(what, self._done, self.total)
