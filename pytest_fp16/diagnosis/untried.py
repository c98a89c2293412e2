"""Why what a report advises was not tried, in words."""

from __future__ import annotations

from pytest_fp16.diagnosis.trials import Trials
from pytest_fp16.engine.emulation.wording import told
from pytest_fp16.report.model import Culprit, CureKind

#: What can be done from outside is to compute lines and modules in float32, and nothing else.
_OUTSIDE = "it is a change of the code, which cannot be made from outside"


def untried(trials: Trials, culprit: Culprit, kind: CureKind) -> str:
    """Why an advice of this kind was not tried itself, after whatever else was.

    Args:
        trials: what came of the cures that were.
        culprit: what it is given for.
        kind: of the advice.
    """
    reports = [again.report for again in trials.short.values()]
    unsure = next((report for report in reports if report.verdict == "inconclusive"), None)
    if unsure is not None:
        failed = next((check for check in unsure.checks if not check.passed), None)
        because = f": {failed.detail}" if failed is not None else ""
        return f"what was tried in its place is inconclusive{because}"
    if kind != "upcast":
        return _OUTSIDE
    if culprit.source is None:
        return "no line of the program's own computes it, which could be changed from outside"
    if trials.error is not None:
        return f"with that line in float32 the model does not run: {told(trials.error)}"
    if trials.budget <= 0:
        return "as many cures were tried in full as are worth their time"
    return _OUTSIDE
