"""An operation that was handed what it has no finite value for, such as a cosine above one.

It is no origin: what led there is. But NaN is what people see, and the number shows why.
"""

from __future__ import annotations

from pytest_fp16.diagnosis.twin_run import Operation
from pytest_fp16.report.model import Culprit

#: Explained by themselves: they tell of what became infinite, and where.
_TOLD = frozenset({"overflow", "mask-inf", "unsupported-op"})


def with_domain(culprit: Culprit, lost: Operation) -> Culprit:
    """A culprit with what became of its error.

    Args:
        lost: the first operation that gave NaN or infinity of finite operands, measured.
    """
    if culprit.mechanism in _TOLD or culprit.operation == lost.name:
        return culprit
    handed = _handed(lost)
    if not handed:
        return culprit
    where = f" at {lost.source}" if lost.source and lost.source != culprit.source else ""
    return culprit.model_copy(
        update={"evidence": f"{culprit.evidence}; {lost.name}{where} {handed}"}
    )


def _handed(lost: Operation) -> str:
    """What it was handed and what it made of it, at one place; empty where that is not seen."""
    finding = lost.finding
    if finding is None:
        return ""
    result = next((m for m in finding.results if m.lost), None)
    made = result.first_lost if result is not None else None
    if result is None or made is None:
        return ""
    operands = [m.pair(made) for m in finding.operands if m.count == result.count]
    if len(operands) != len(finding.operands) or all(low == high for low, high in operands):
        return ""  # reduced, or broadcast: which of them it was would be a guess
    low, wanted = (" and ".join(f"{v:.5g}" for v in side) for side in zip(*operands, strict=True))
    gave, _ = result.pair(made)
    what = "NaN" if gave != gave else "infinity" if gave > 0 else "-infinity"
    return f"is handed {low} (exactly: {wanted}) and makes {what} of it"
