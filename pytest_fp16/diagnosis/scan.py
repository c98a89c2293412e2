"""The whole program looked through for one kind of fault, whatever the damage at its end."""

from __future__ import annotations

from pytest_fp16.diagnosis.bounds import VANISHED, out_of_range, vanished
from pytest_fp16.diagnosis.findings import STEPWISE
from pytest_fp16.diagnosis.measure import Measure
from pytest_fp16.diagnosis.twin_run import Operation
from pytest_fp16.diagnosis.why import Why, format_of
from pytest_fp16.report.model import Culprit

#: Root mean square error in spacings that no rounding to nearest reaches by chance.
UNSOUND = 0.45


def overflowing(watched: list[Operation]) -> Culprit | None:
    """The first operation whose finite values become infinite, whatever becomes of them later.

    Args:
        watched: a program side by side with its exact twin, every operation measured.
    """
    for operation in watched:
        finding = operation.finding
        if finding is None or not any(m.infinite for m in finding.own):
            continue
        why = out_of_range(operation, finding, format_of(finding))
        if why is not None and why.mechanism == "overflow":
            return why.culprit()
    return None


def inflated(watched: list[Operation], index: int) -> bool:
    """Whether an operation overflows only because what it got was wrong: exact values fit."""
    finding = watched[index].finding if index < len(watched) else None
    if finding is None or not any(m.infinite for m in finding.own):
        return False
    most = format_of(finding).overflow_threshold
    return max((m.largest for m in finding.results), default=most) < most


def unneeded(watched: list[Operation], index: int) -> bool:
    """Whether what an operation's constants guard is far from zero, but fell to it before.

    Beside the exact values such a constant, lost or not, is less than their rounding.
    """
    finding = watched[index].finding if index < len(watched) else None
    if finding is None:
        return False
    fmt = format_of(finding)
    lost = [abs(s) for s in finding.scalars if 0 < abs(s) < fmt.smallest_subnormal]
    entered = [m for m in finding.operands if _emptied(m)]
    return bool(lost) and any(m.least * fmt.unit_roundoff > max(lost) for m in entered)


def vanishing(watched: list[Operation]) -> Culprit | None:
    """The last of the operations whose values nearly all fall to zero.

    Args:
        watched: a program side by side with its exact twin, every operation measured.
    """
    for operation in reversed(watched):
        finding = operation.finding
        if finding is None or not any(_emptied(m) for m in finding.own):
            continue
        why = vanished(operation, finding, format_of(finding))
        if why is not None:
            return why.culprit()
    return None


def _emptied(measure: Measure) -> bool:
    return measure.zeroed > VANISHED * max(1, measure.count - measure.exact_zeros)


def defective(watched: list[Operation]) -> Culprit | None:
    """The first operation whose results are further off than one rounding can explain.

    Args:
        watched: a program side by side with its exact twin, every operation measured.
    """
    worst = [(_excess(operation), operation) for operation in watched]
    most = max((excess for excess, _ in worst), default=0.0)
    if most < UNSOUND:
        return None
    found = next(o for excess, o in worst if excess >= max(UNSOUND, most / 2))
    assert found.finding is not None, "unreachable: it has an excess"
    fmt = format_of(found.finding)
    return Why(
        "absorption" if found.name in STEPWISE else "precision-loss",
        found,
        f"its results are off by {_excess(found):.2g} spacings of {fmt.name} (root mean squares), "
        "one sound rounding by 0.29: the kernel rounds or computes otherwise",
    ).culprit()


def _excess(operation: Operation) -> float:
    finding = operation.finding
    return max((m.steps for m in finding.own), default=0.0) if finding is not None else 0.0
