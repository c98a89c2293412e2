"""Classes that 16-bit runs never learn, though the metric hardly shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from pytest_fp16.evaluation.parts import lost_classes

if TYPE_CHECKING:
    from pytest_fp16.engine.training.train import RunResult

#: Pairs that it takes: what one seed does not learn another may.
FEWEST_PAIRS = 2


def lost_in_all(pairs: Sequence[tuple[RunResult, RunResult]]) -> str:
    """The classes that every 16-bit run loses, of its 32-bit twin's, in words; empty without any.

    Where 32 bits miss a class with some seed, nothing is said of it.
    """
    found: set[int] | None = None
    for reference, candidate in pairs:
        if reference.score is None or candidate.score is None:
            return ""
        scores = reference.score, candidate.score
        had, now = (torch.tensor(score.right, dtype=torch.float64) for score in scores)
        lost = set(lost_classes(had, now)) if len(had) == len(now) and len(had) else set()
        found = lost if found is None else found & lost
    if not found or len(pairs) < FEWEST_PAIRS:
        return ""
    few = ", ".join(map(str, sorted(found)[:3])) + ", …" * (len(found) > 3)
    plural = "es" if len(found) > 1 else ""
    return (
        f"class{plural} {few}: no 16-bit run has more than half of the right answers of its 32-bit "
        "twin"
    )
