"""Why: what happened at the origin, with the numbers that show it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from pytest_fp16.diagnosis.autopsy import Operation
from pytest_fp16.diagnosis.findings import ADDITIONS, RUNNING, STEPWISE, Finding
from pytest_fp16.diagnosis.measure import Measure
from pytest_fp16.diagnosis.origin import Origin, Raised
from pytest_fp16.report.model import Culprit, Mechanism
from pytest_fp16.theory.rounding import FORMATS, Format

#: An addend within so many spacings of the sum keeps fewer than four of its own bits.
ABSORBED = 16.0
#: A difference whose relative error exceeds that of what it is taken of by this factor cancels.
CANCELS = 4.0
#: …and at which the cancelling operation itself is named, although it lies in another module.
CANCELS_ELSEWHERE = 16.0
#: Share of ruined differences, of operands that were sound, that is no chance.
RUINED = 0.02
#: Root mean square error in spacings that no rounding to nearest reaches by chance.
UNSOUND = 0.45
#: Operations behind the origin that are looked at.
AHEAD = 40
#: Part of the values (or of the squared error) at which falling to zero explains the damage.
VANISHED = 0.5

_EPSILON = frozenset(
    "add sub rsub clamp clamp_min clamp_max maximum minimum where masked_fill full fmax".split()
)
#: Operations that put a constant into its place, or bring it into the format.
_PLACES = frozenset("where masked_fill _to_copy copy fill full full_like index_put add sub".split())
#: Operations that bring a mask to its size.
_SCALES = frozenset({"mul", "div"})
#: Operations whose whole results number something.
_COUNTERS = frozenset({"arange", *RUNNING, *STEPWISE})
#: Operations whose scalar moves every value: none is masked.
_OFFSETS = frozenset({"add", "sub", "rsub"})
_TOO_LARGE = "cannot be converted"


@dataclass(frozen=True)
class Why:
    """A mechanism, the operation it is seen at, and its evidence."""

    mechanism: Mechanism
    operation: Operation
    evidence: str


def stopped(found: Raised, dtype_name: str) -> Culprit:
    """The culprit where the program raised."""
    said = str(found.error).splitlines()[0][:200] if str(found.error) else ""
    mechanism: Mechanism = "unsupported-op"
    evidence = f"it raised {type(found.error).__name__}: {said}"
    if _TOO_LARGE in said:
        mechanism = "mask-inf"
        evidence = f"a constant beyond the range of {dtype_name}: {said}"
    return Culprit(
        module=found.module,
        operation=found.operation,
        mechanism=mechanism,
        evidence=evidence,
        source=found.source,
    )


def worth_watching(origin: Origin) -> set[int]:
    """Indices of the operations that `explain` needs measured: the origin, and additions behind."""
    first = origin.operation.index
    behind = origin.operations[first : first + AHEAD]
    return {first, first + 1} | {o.index for o in behind if o.name in ADDITIONS}


def explain(origin: Origin, watched: list[Operation]) -> Culprit | None:
    """The culprit where the outputs are wrong.

    Args:
        origin: where it was born.
        watched: the same program side by side with its exact twin; the operations from the origin
            on carry what was measured.
    """
    first = origin.operation.index
    if first >= len(watched):
        return None
    born = _consumer(watched, first)
    if born.finding is None:
        return None
    why = _why(born, watched)
    return Culprit(
        module=why.operation.module,
        operation=why.operation.name,
        mechanism=why.mechanism,
        evidence=why.evidence,
        source=why.operation.source,
    )


def overflowing(watched: list[Operation]) -> Culprit | None:
    """The first operation whose finite values become infinite, whatever becomes of them later.

    Args:
        watched: a program side by side with its exact twin, every operation measured.
    """
    for operation in watched:
        finding = operation.finding
        if finding is None or not any(m.infinite for m in finding.own):
            continue
        why = _out_of_range(operation, finding, _format(finding))
        if why is not None and why.mechanism == "overflow":
            return Culprit(
                module=operation.module,
                operation=operation.name,
                mechanism=why.mechanism,
                evidence=why.evidence,
                source=operation.source,
            )
    return None


def inflated(watched: list[Operation], index: int) -> bool:
    """Whether an operation overflows only because what it got was wrong: exact values fit."""
    finding = watched[index].finding if index < len(watched) else None
    if finding is None or not any(m.infinite for m in finding.own):
        return False
    most = _format(finding).overflow_threshold
    return max((m.largest for m in finding.results), default=most) < most


def vanishing(watched: list[Operation]) -> Culprit | None:
    """The last of the operations whose values nearly all fall to zero.

    Args:
        watched: a program side by side with its exact twin, every operation measured.
    """
    for operation in reversed(watched):
        finding = operation.finding
        if finding is None or not any(_emptied(m) for m in finding.own):
            continue
        why = _vanished(operation, finding, _format(finding))
        if why is not None:
            return Culprit(
                module=operation.module,
                operation=operation.name,
                mechanism=why.mechanism,
                evidence=why.evidence,
                source=operation.source,
            )
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
    fmt = _format(found.finding)
    return Culprit(
        module=found.module,
        operation=found.name,
        mechanism="absorption" if found.name in STEPWISE else "precision-loss",
        evidence=f"its results are off by {_excess(found):.2g} spacings of {fmt.name} (root mean "
        "squares), one sound rounding by 0.29: the kernel rounds or computes otherwise",
        source=found.source,
    )


def _excess(operation: Operation) -> float:
    finding = operation.finding
    return max((m.steps for m in finding.own), default=0.0) if finding is not None else 0.0


def _consumer(watched: list[Operation], first: int) -> Operation:
    """The origin; for a cast that autocast put before an operation, that operation."""
    found = watched[first]
    if found.name == "_to_copy" and first + 1 < len(watched):
        follower = watched[first + 1]
        cast = found.finding is not None and found.finding.results
        lost = cast and any(m.lost for m in found.finding.own)  # type: ignore[union-attr]
        same = follower.finding is not None and follower.source == found.source
        if cast and not lost and same:
            return follower
    return found


def _why(born: Operation, watched: list[Operation]) -> Why:
    finding = born.finding
    assert finding is not None, "unreachable: the caller has looked"
    fmt = _format(finding)
    for rule in (_out_of_range, _vanishing_constant, _counting, _absorbed):
        why = rule(born, finding, fmt)
        if why is not None:
            return why
    why = _cancelled(born, watched) or _cancelled_in_places(born, watched)
    if why is not None:
        return why
    return _vanished(born, finding, fmt) or _imprecise(born, finding, fmt)


def _format(finding: Finding) -> Format:
    for measure in (*finding.results, *finding.operands):
        if measure.dtype in FORMATS:
            return FORMATS[measure.dtype]
    return next(iter(FORMATS.values()))


# -- out of range -----------------------------------------------------------------------------


def _out_of_range(born: Operation, finding: Finding, fmt: Format) -> Why | None:
    """A constant that becomes infinite, or values that do."""
    constant = _mask_constant(born, finding, fmt)
    if constant is not None:
        return Why(
            "mask-inf",
            born,
            f"the constant {constant:.3g} is infinite in {fmt.name}, whose largest number is "
            f"{fmt.largest:.4g}",
        )
    entered = [m for m in finding.operands if m.infinite and not m.made]
    infinite = [m for m in finding.own if m.infinite]
    if not infinite and not entered:
        return None
    whose = "largest value" if infinite else "the largest value that enters it is"
    largest = max(m.largest for m in infinite or entered)
    share = max(m.infinite / m.count for m in infinite or entered)
    return Why(
        "overflow",
        born,
        f"{whose} {largest:.3g}, {fmt.name} holds {fmt.largest:.4g}; {share:.1%} of the values "
        "become infinite",
    )


def _mask_constant(born: Operation, finding: Finding, fmt: Format) -> float | None:
    """The constant that became infinite, where it is a constant that did."""
    lost = any(m.lost for m in (*finding.own, *finding.results))
    for measure in finding.operands:
        alone = measure.count == 1 or measure.constant is not None  # weights are many numbers
        too_large = measure.largest >= fmt.overflow_threshold
        placed = born.name in _PLACES or born.name in _SCALES  # a bias in a product is no mask
        if measure.fixed and not measure.made and alone and too_large and placed:
            return measure.constant or -measure.largest
    if not lost:
        return None
    masks = born.name not in _SCALES or any(m.binary or m.fixed for m in finding.operands)
    masks &= born.name not in _OFFSETS
    for scalar in finding.scalars:
        if masks and fmt.overflow_threshold <= abs(scalar) < math.inf:
            return scalar
    for measure in (*finding.own, *finding.results):
        if born.name in _PLACES and measure.constant is not None and measure.constant < 0:
            return measure.constant
    return None


# -- too small --------------------------------------------------------------------------------


def _vanishing_constant(born: Operation, finding: Finding, fmt: Format) -> Why | None:
    """An epsilon that rounds to zero, or a bound near one that rounds to one."""
    if born.name not in _EPSILON or not finding.results:
        return None
    wrong = any(m.error > 0 or m.zeroed or m.lost for m in finding.own)
    for constant in finding.scalars:
        rounded = _nearest(constant, fmt)
        if constant != 0 and rounded == 0 and wrong:
            return Why(
                "eps-underflow",
                born,
                f"the constant {constant:.3g} rounds to zero in {fmt.name}, whose smallest number "
                f"is {fmt.smallest_subnormal:.2g}",
            )
        if constant != 1 and rounded == 1 and wrong:
            return Why(
                "eps-underflow", born, f"the constant {constant!r} rounds to 1 in {fmt.name}"
            )
    for measure in finding.operands:
        if measure.fixed and measure.zeroed and measure.largest < fmt.smallest_subnormal:
            return Why(
                "eps-underflow",
                born,
                f"a constant of {measure.largest:.3g} is zero in {fmt.name}, whose smallest number "
                f"is {fmt.smallest_subnormal:.2g}",
            )
    return None


def _nearest(value: float, fmt: Format) -> float:
    return float(torch.tensor(value, dtype=torch.float64).to(fmt.dtype))


def _vanished(born: Operation, finding: Finding, fmt: Format) -> Why | None:
    """Values that fall to zero, or so far below the normal range that few digits are left."""
    worst: tuple[float, Measure] | None = None
    stored = [m for m in finding.operands if not m.made]
    for measure in (*finding.own, *stored):
        some = measure.error > 0 and measure.zeroed > 0
        share = max(measure.small_error, 0.0) if some or measure.small else 0.0
        share = max(share, measure.zeroed / max(1, measure.count - measure.exact_zeros))
        if worst is None or share > worst[0]:
            worst = (share, measure)
    if worst is None or worst[0] < VANISHED:
        return None
    measure = worst[1]
    if measure.relative < fmt.unit_roundoff and not _alone(measure):
        return None
    return Why(
        "underflow",
        born,
        f"{measure.zeroed / measure.count:.1%} of the values fall to zero and "
        f"{measure.small / measure.count:.1%} lie below the smallest normal number of "
        f"{fmt.name}, {fmt.smallest_normal:.2g}; their root mean square is {measure.value:.2g}",
    )


def _alone(measure: Measure) -> bool:
    """Whether small values are all there is, or a good part of it."""
    return measure.small >= 0.25 * measure.count


# -- lost digits ------------------------------------------------------------------------------


def _counting(born: Operation, finding: Finding, fmt: Format) -> Why | None:
    """Whole numbers beyond those that the format can tell apart."""
    most = 2.0**fmt.significand
    measures = [*finding.results, *finding.operands] if finding.decided else finding.results
    for measure in measures:
        whole = measure.whole and measure.largest > most and measure.error > 0
        counts = born.name in _COUNTERS or (
            born.name == "sum" and any(m.binary for m in finding.operands)
        )
        if whole and (finding.decided or measure.fixed or counts):
            return Why(
                "absorption",
                born,
                f"whole numbers up to {measure.largest:.0f}; {fmt.name} can tell every one apart "
                f"up to {most:.0f} only",
            )
    return None


def _absorbed(born: Operation, finding: Finding, fmt: Format) -> Why | None:
    if finding.addends is None or not any(m.error > 0 for m in finding.own):
        return None
    steps, small, large = finding.addends
    if steps > ABSORBED:
        return None
    how = "one after another into one sum" if born.name in STEPWISE else "beside"
    text = f"{small:.2g} is added to {large:.3g}, where {fmt.name} has steps of "
    text += f"{large * 2 * fmt.unit_roundoff:.2g}"
    if born.name in STEPWISE:
        text = f"terms of up to {small:.2g} are added {how} of {large:.3g} that {fmt.name} keeps"
    return Why("absorption", born, text)


def _cancelled(born: Operation, watched: list[Operation]) -> Why | None:
    """Sums and differences from the origin on that leave little but the error of their operands."""
    best: tuple[float, Operation, Measure, Measure] | None = None
    chain = 1.0
    for operation in watched[born.index : born.index + AHEAD]:
        finding = operation.finding
        if finding is None or operation.name not in ADDITIONS or not finding.results:
            continue
        entered = max(finding.operands, key=lambda m: m.value, default=None)
        left = finding.results[0]
        if entered is None or left.value <= 0 or entered.value < 1.5 * left.value:
            continue
        before = max(m.relative for m in finding.operands)
        if before <= 0 or not math.isfinite(before):
            continue
        gain = left.relative / max(before, _format(finding).unit_roundoff / 4)
        if gain < 1.5:
            continue
        same = operation.module == born.module
        chain = chain * gain if same else gain
        enough = CANCELS if same else CANCELS_ELSEWHERE
        if chain >= enough and (best is None or chain > best[0]):
            best = (chain, operation, entered, left)
    if best is None:
        return None
    _, operation, entered, left = best
    return Why(
        "cancellation",
        operation,
        f"a difference of {left.value:.2g} is left of values of {entered.value:.3g} (root mean "
        f"squares), with an error of {left.error:.2g}",
    )


def _cancelled_in_places(born: Operation, watched: list[Operation]) -> Why | None:
    """The same where it happens to some elements only, such as 1 − p for the few p near one."""
    for operation in watched[born.index : born.index + AHEAD]:
        finding = operation.finding
        if operation.module != born.module or finding is None or not finding.results:
            continue
        if operation.name not in ADDITIONS or not finding.operands:
            continue
        entered, left = max(m.ruined for m in finding.operands), finding.results[0].ruined
        itself = max((m.ruined for m in finding.own), default=0.0)
        if left >= RUINED and left > 10 * max(entered, itself):
            return Why(
                "cancellation",
                operation,
                f"{left:.1%} of the differences are wrong by a quarter or more, of operands of "
                f"which {entered:.1%} are",
            )
    return None


def _imprecise(born: Operation, finding: Finding, fmt: Format) -> Why:
    """Nothing but too few digits."""
    results = [m for m in finding.results if m.count]
    if not results:
        return Why(
            "precision-loss",
            born,
            f"{finding.decided:.1%} of its results differ from those of exact values",
        )
    measure = max(results, key=lambda m: m.relative)
    text = f"values of {measure.value:.3g} (root mean square) with an error of {measure.error:.2g}"
    own = max((m.relative for m in finding.own), default=0.0)
    if own > 4 * fmt.unit_roundoff:
        text += f"; one rounding to {fmt.name} explains {fmt.unit_roundoff * measure.value:.2g}"
    return Why(
        "precision-loss",
        born,
        f"{text}; {fmt.name} has steps of {2 * fmt.unit_roundoff * measure.value:.2g} there",
    )
