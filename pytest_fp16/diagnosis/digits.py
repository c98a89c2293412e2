"""Rules for digits that are lost: absorbed, cancelled, or simply too few."""

from __future__ import annotations

import math

from pytest_fp16.diagnosis.findings import ADDITIONS, RUNNING, STEPWISE, Finding
from pytest_fp16.diagnosis.measure import Measure
from pytest_fp16.diagnosis.twin_run import Operation
from pytest_fp16.diagnosis.why import Why, format_of, low_format
from pytest_fp16.report.model import Variant
from pytest_fp16.theory.rounding import Format, ulp_at

#: An addend within so many spacings of the sum keeps fewer than four of its own bits.
ABSORBED = 16.0
#: A difference whose relative error exceeds that of what it is taken of by this factor cancels.
CANCELS = 4.0
#: …and at which the cancelling operation itself is named, although it lies in another module.
CANCELS_ELSEWHERE = 16.0
#: Share of ruined differences, of operands that were sound, that is no chance.
RUINED = 0.02
#: A share of less is told as none.
_A_SHARE = 0.0005
#: Operations behind the origin that are looked at.
AHEAD = 40

#: Operations whose whole results number something.
_COUNTERS = frozenset({"arange", *RUNNING, *STEPWISE})


def counting(born: Operation, finding: Finding, fmt: Format) -> Why | None:
    """Whole numbers beyond those that the format can tell apart."""
    most = 2.0**fmt.significand
    measures = [*finding.results, *finding.operands] if finding.decided else finding.results
    for measure in measures:
        whole = measure.whole and measure.largest > most and measure.error > 0
        counts = born.name in _COUNTERS or (
            born.name == "sum" and any(m.binary for m in finding.operands)
        )
        if whole and (finding.decided or counts or (measure.fixed and _merge(measure))):
            stored = _comes_stored(finding)
            text = f"whole numbers up to {measure.largest:.0f}; {fmt.name} can tell every one "
            text += f"apart up to {most:.0f} only"
            text += _BRING[stored].replace(", most of which", "; the error is what")
            return Why("absorption", born, text, "whole numbers")
    return None


def _merge(measure: Measure) -> bool:
    """Whether numbers become one that are two; one number alone has none that it could meet."""
    return measure.alike or measure.merged


def absorbed(born: Operation, finding: Finding, fmt: Format) -> Why | None:
    """An addend of which the sum keeps few digits, or none."""
    if finding.addends is None or not any(m.error > 0 for m in finding.own):
        return None
    steps, small, large = finding.addends
    if steps > ABSORBED:
        return None
    how = "one after another into one sum" if born.name in STEPWISE else "beside"
    text = f"{small:.2g} is added to {large:.3g}, where {fmt.name} has steps of "
    text += f"{ulp_at(large, fmt):.2g}"
    if born.name in STEPWISE:
        text = f"terms of up to {small:.2g} are added {how} of {large:.3g} that {fmt.name} keeps"
    return Why("absorption", born, text)


def cancelled(born: Operation, watched: list[Operation]) -> Why | None:
    """Sums and differences from the origin on that leave little but the error of their operands."""
    found: list[tuple[float, Operation, Measure, Measure]] = []
    chain: list[tuple[Measure, float]] = []  # what each one left, and what entered the first
    for operation in watched[born.index : born.index + AHEAD]:
        finding = operation.finding
        if finding is None or operation.name not in ADDITIONS or not finding.results:
            continue
        entered = max(finding.operands, key=lambda m: m.value, default=None)
        left = finding.results[0]
        if entered is None or left.value <= 0:
            continue
        before, enough = max(m.relative for m in finding.operands), CANCELS_ELSEWHERE
        if before <= 0 or not math.isfinite(before):
            continue
        before = max(before, format_of(finding).unit_roundoff / 4)
        if operation.module == born.module:
            # One may take what another left; but two that stand side by side share no gain, nor do
            # those of a loop, on whose way errors are born.
            taken = [e for was, e in chain if any(_passed_on(was, m) for m in finding.operands)]
            before, enough = min([before, *taken]), CANCELS
            chain.append((left, before))
        gain = left.relative / before
        cancels = entered.value >= 1.5 * left.value and gain >= enough
        if cancels:
            found.append((gain, operation, entered, left))
    if not found:
        return None
    _, operation, entered, left = max(found, key=lambda one: one[0])
    others = (o for _, o, _, _ in found if o is not operation and o.source == operation.source)
    stored = _comes_stored(operation.finding) if operation.finding is not None else None
    text = f"a difference of {left.value:.2g} is left of values of {entered.value:.3g} (root mean "
    text += f"squares), with an error of {left.error:.2g}{_BRING[stored]}"
    return Why("cancellation", operation, text, stored, tuple(others))


def _passed_on(left: Measure, taken: Measure) -> bool:
    """Whether an operand is what another operation left, or a good part of it: a slice, a view."""
    sizes = zip((left.value, left.relative), (taken.value, taken.relative), strict=True)
    return all(abs(a - b) <= 0.25 * max(a, b) for a, b in sizes)


def cancelled_in_places(born: Operation, watched: list[Operation]) -> Why | None:
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
            name = format_of(finding).name
            return Why("cancellation", operation, _in_places(finding.results[0], entered, name))
    return None


def _in_places(left: Measure, entered: float, name: str) -> str:
    """What is wrong with some of the differences; `entered` is the share of operands that are."""
    equal = left.zeroed / left.count
    if equal >= left.ruined / 2:
        return (
            f"{equal:.1%} of the differences are 0 and should be up to {left.largest_zeroed:.2g}: "
            f"there, both numbers are one once they are rounded to {name}, as p is 1 in 1 - p"
        )
    sound = f"{entered:.1%}" if entered >= _A_SHARE else "none"
    return (
        f"{left.ruined:.1%} of the differences are off by a quarter of their value or more, though "
        f"{sound} of the numbers subtracted are: these are so nearly equal there that what is left "
        "is for the most part their rounding errors"
    )


#: What brings most of an error that no operation made.
_BRING: dict[Variant | None, str] = {
    "stored inputs": ", most of which the model's inputs bring, as they are cast",
    "stored digits": ", most of which a weight or a buffer brings, as it is cast",
    None: "",
}


def imprecise(born: Operation, finding: Finding, fmt: Format) -> Why:
    """Nothing but too few digits."""
    results = [m for m in finding.results if m.count]
    stored = _comes_stored(finding)
    if not results:
        text = f"{finding.decided:.1%} of its results differ from those of exact values"
        return Why("precision-loss", born, text + _BRING[stored], stored)
    measure = max(results, key=lambda m: m.relative)
    text = f"values of {measure.value:.3g} (root mean square) with an error of {measure.error:.2g}"
    own = max((m.relative for m in finding.own), default=0.0)
    if own > 4 * fmt.unit_roundoff:
        text += f"; one rounding to {fmt.name} explains {fmt.unit_roundoff * measure.value:.2g}"
    text += _BRING[stored]
    if low_format(finding) is not None:
        text += f"; {fmt.name} has steps of {ulp_at(measure.value, fmt):.2g} there"
    return Why("precision-loss", born, text, stored)


def _comes_stored(finding: Finding) -> Variant | None:
    """Whether most of the squared error enters with the inputs, or with what the model stores."""
    wrong = [m for m in finding.operands if m.error]
    if not wrong or any(m.made or m.fixed != wrong[0].fixed for m in wrong):
        return None
    own = sum(m.error**2 for m in finding.own)
    if finding.results and sum(m.error**2 for m in finding.results) <= 2 * own:
        return None
    return "stored digits" if wrong[0].fixed else "stored inputs"
