"""What left the range in a training whose loss and weights stayed finite all the same.

An infinite norm makes a factor of zero, and a step that is none; nothing of the run shows it but
what it has learned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_fp16.diagnosis.watched_run import culprit_of, watched_run
from pytest_fp16.precision import REFERENCE, Precision
from pytest_fp16.report.model import Culprit

if TYPE_CHECKING:
    from pytest_fp16.engine.training.runs import Runs


def silently_lost(runs: Runs, precision: Precision, seed: int) -> Culprit | None:
    """The first operation of a run that made an infinity or NaN, where its 32-bit twin made none.

    The run is made again, each of its steps watched. A gradient scaler looks for its scale by such
    infinities: of a run with one nothing is said.
    """
    if precision.mixed and precision.dtype_name == "float16":
        return None
    seen = watched_run(runs, precision, seed, lambda _: True, None)
    found = seen.origin.found if seen is not None else None
    if seen is None or found is None:
        return None
    twin = watched_run(runs, REFERENCE, seed, lambda at: at == seen.at, seen.at)
    known = twin.origin.found if twin is not None else None
    if known is not None and (known.module, known.operation) == (found.module, found.operation):
        return None
    return culprit_of(found, precision, seed, seen.at)
