"""Rules for what leaves the range of a format: too large for it, or too small."""

from __future__ import annotations

import math

from pytest_fp16.diagnosis.findings import Finding
from pytest_fp16.diagnosis.measure import Measure
from pytest_fp16.diagnosis.twin_run import Operation
from pytest_fp16.diagnosis.why import Why
from pytest_fp16.engine.emulation.scalars import rounded
from pytest_fp16.report.model import Variant
from pytest_fp16.theory.rounding import Format

#: Part of the values (or of the squared error) at which falling to zero explains the damage.
VANISHED = 0.5
#: A part of the values that is told as one: of fewer it is told how many there are.
_A_SHARE = 0.0005
#: Up to here a value and the largest of a format look alike in three digits.
_JUST_BEYOND = 1.01

_EPSILON = frozenset(
    """
    add sub rsub clamp clamp_min clamp_max maximum minimum where masked_fill fmax
    full full_like new_full fill copy index_put
    """.split()
)
_COMPARES = frozenset("lt le gt ge eq ne".split())
#: Operations that put a constant into its place, or bring it into the format.
_PLACES = frozenset("where masked_fill _to_copy copy fill full full_like index_put add sub".split())
#: Operations whose constant is a bound, where that of others is put into a mask.
BOUNDS = frozenset("clamp clamp_max clamp_min clip hardtanh threshold".split())
#: Operations that add a mask to scores.
_ADDS = frozenset({"add", "sub", "addmm", "baddbmm"})
#: Operations that bring a mask to its size.
_SCALES = frozenset({"mul", "div", "floor_divide"})
#: Operations whose scalar moves or folds every value, or ends a row of numbers: none is masked.
_OFFSETS = frozenset("add sub rsub arange linspace remainder fmod".split())


def out_of_range(born: Operation, finding: Finding, fmt: Format) -> Why | None:
    """A constant that becomes infinite, or values that do."""
    entered = [m for m in finding.operands if m.infinite and not m.made]
    given = [m for m in entered if not m.fixed]
    # What is computed of inputs that are infinite already is lost whatever the constant.
    constant = None if _most_lost(given) == 1 else _mask_constant(born, finding, fmt)
    if constant is not None:
        return Why(
            "mask-inf",
            born,
            f"the constant {constant:.3g} is infinite in {fmt.name}, whose largest number is "
            f"{fmt.largest:.4g}",
            form_of_constant(born.name, constant),
        )
    infinite = [m for m in finding.own if m.infinite]
    if not infinite and not entered:
        return None
    if born.name in _ADDS and infinite and any(m.floored for m in finding.operands):
        return Why(
            "mask-inf",
            born,
            f"a mask holds the smallest number of {fmt.name}, -{fmt.largest:.4g}, and what it is "
            f"added to takes {infinite[0].infinite:,} of {infinite[0].count:,} values to -inf",
            "no room",
        )
    if _most_lost(entered) > _most_lost(infinite):  # a few, beside a buffer that was infinite
        infinite = []
    whose = "largest value" if infinite else "the largest value that enters it is"
    largest = max(m.largest for m in infinite or entered)
    most = max(infinite or entered, key=_lost)
    share = _lost(most)
    part = f"{share:.1%} of the" if share >= _A_SHARE else f"{most.infinite:,} of {most.count:,}"
    held = f"{largest:.3g}, {fmt.name} holds {fmt.largest:.4g}"
    if largest < _JUST_BEYOND * fmt.largest:
        held = f"{largest:.6g}, {fmt.name} holds {fmt.largest:.6g}"
    return Why(
        "overflow",
        born,
        f"{whose} {held}; {part} values looked at become infinite",
        None if infinite else _stored(entered),
    )


def form_of_constant(operation: str, constant: float | None) -> Variant | None:
    """What a constant beyond the range is for: None for a mask's, as a negative one is taken for.

    Args:
        operation: that takes it.
        constant: its value, where it is known.
    """
    if operation in BOUNDS:
        return "bound"
    return "large constant" if constant is not None and constant > 0 else None


def _lost(measure: Measure) -> float:
    """The part of the values that became infinite."""
    return measure.infinite / measure.count


def _most_lost(measures: list[Measure]) -> float:
    return max(map(_lost, measures), default=0.0)


def _stored(entered: list[Measure]) -> Variant:
    """Whose values left the range as they were cast: the inputs', where some of them did."""
    return "infinite values" if all(m.fixed for m in entered) else "infinite inputs"


def _mask_constant(born: Operation, finding: Finding, fmt: Format) -> float | None:
    """The constant that became infinite, where it is a constant that did."""
    lost = any(m.lost for m in (*finding.own, *finding.results))
    scales = born.name in _SCALES  # a mask; any other values are brought to their unit
    for measure in finding.operands:
        single = measure.count == 1 and born.name not in _OFFSETS
        alone = single or measure.constant is not None  # weights are many numbers
        too_large = measure.largest >= fmt.overflow_threshold
        masked = any(m.binary or m.fixed for m in finding.operands if m is not measure)
        placed = born.name in _PLACES or (scales and masked)  # a bias in a product is no mask
        if measure.fixed and not measure.made and alone and too_large and placed:
            return measure.constant if measure.constant is not None else measure.only
    if not lost:
        return None
    masks = not scales or any(m.binary or m.fixed for m in finding.operands)
    masks &= born.name not in _OFFSETS
    for scalar in finding.scalars:
        if masks and fmt.overflow_threshold <= abs(scalar) < math.inf:
            return scalar
    for measure in (*finding.own, *finding.results):
        if born.name in _PLACES and measure.constant is not None and measure.constant < 0:
            return measure.constant
    return None


def fell_as_stored(born: Operation, finding: Finding, fmt: Format) -> Why | None:
    """A few values of a weight or buffer that are zero as it is cast, where outputs became NaN.

    A small variance, say: the result shows it, and no constant guards it that is larger.
    """
    guards = max(map(abs, finding.scalars), default=0.0)
    stored = [m for m in finding.operands if m.fixed and not m.made and m.count > 1]
    fell = [m for m in stored if m.zeroed and m.largest_zeroed > guards]
    if not fell or not any(m.lost or m.zeroed for m in finding.results):
        return None
    return _fell(born, max(fell, key=lambda m: m.largest_zeroed), fmt)


def vanishing_constant(born: Operation, finding: Finding, fmt: Format) -> Why | None:
    """An epsilon that rounds to zero, or a bound near one that rounds to one.

    In a sum, a clamp, a choice; or in a comparison that comes out otherwise.
    """
    wrong = finding.decided > 0
    if born.name not in _COMPARES:
        known = born.name in _EPSILON
        known |= born.name in _SCALES and (_ends_at_one(finding, fmt) or _left_as_is(finding, fmt))
        if not finding.results or not (known or any(m.fixed and m.alike for m in finding.results)):
            return None
        wrong = any(m.error > 0 or m.zeroed or m.lost for m in finding.own)
        wrong |= any(m.fixed and m.count == 1 and m.error > 0 for m in finding.operands)
    # One of a tensor of one number: x.new_tensor(1e-8), or what a kernel such as
    # cosine_similarity hands on.
    handed = (float(f"{m.largest:.7g}") for m in finding.operands if m.fixed and m.count == 1)
    for constant in (*finding.scalars, *handed):
        nearest = rounded(constant, fmt.dtype)
        if constant != 0 and nearest == 0 and wrong:
            return Why(
                "eps-underflow",
                born,
                f"the constant {constant:.3g} rounds to zero in {fmt.name}, whose smallest number "
                f"is {fmt.smallest_subnormal:.2g}",
            )
        if constant != 1 and nearest == 1 and wrong:
            return Why(
                "eps-underflow",
                born,
                f"the constant {constant!r} rounds to 1 in {fmt.name}",
                "near one",
            )
    if born.name in _SCALES:
        return None  # what values are multiplied with guards nothing from zero
    made = [m for m in finding.results if m.alike]
    for measure in (*finding.operands, *made):
        if measure.fixed and measure.zeroed and measure.largest < fmt.smallest_subnormal:
            return Why(
                "eps-underflow",
                born,
                f"a constant of {measure.largest:.3g} is zero in {fmt.name}, whose smallest number "
                f"is {fmt.smallest_subnormal:.2g}",
            )
    return None


def _ends_at_one(finding: Finding, fmt: Format) -> bool:
    """Whether what is scaled is bounded by one and comes up to it, as what a tangent gives."""
    bounded = [m.largest for m in finding.operands if not m.fixed]
    return len(bounded) == 1 and 1 - fmt.unit_roundoff <= bounded[0] <= 1


def _left_as_is(finding: Finding, fmt: Format) -> bool:
    """Whether a factor just beside one is one, and nothing else is wrong: a step behind is missed.

    Results that the format holds without it, such as i / n, are off by what it would have taken,
    once: a decay is taken again and again.
    """
    for factor in finding.scalars:
        off = abs(factor - 1)
        if off and rounded(factor, fmt.dtype) == 1:
            both = [*finding.own, *finding.results]
            return all(0.5 * off < m.relative < 2 * off for m in both)
    return False


def vanished(born: Operation, finding: Finding, fmt: Format, few: bool = False) -> Why | None:
    """Values that fall to zero, or so far below the normal range that few digits are left.

    Args:
        born, finding, fmt: the operation, what was measured, the format it worked in.
        few: a few zeros are enough, as where an output became NaN: lost digits alone make none.
    """
    worst: tuple[tuple[float, float], Measure] | None = None
    stored = [m for m in finding.operands if not m.made]
    for measure in (*finding.own, *stored):
        some = measure.error > 0 and measure.zeroed > 0
        share = max(measure.small_error, 0.0) if some or measure.small else 0.0
        gone = measure.zeroed / max(1, measure.count - measure.exact_zeros)
        seen = (round(max(share, gone), 2), gone)  # of two that vanish, that of which less is left
        if worst is None or seen > worst[0]:
            worst = (seen, measure)
    if worst is None or worst[0][0] < VANISHED:
        zeroed = max(finding.own, key=lambda m: m.zeroed, default=None) if few else None
        return _fell(born, zeroed, fmt) if zeroed is not None and zeroed.zeroed else None
    measure = worst[1]
    if measure.relative < fmt.unit_roundoff and not _alone(measure):
        return None
    return _fell(born, measure, fmt)


def came_small(born: Operation, finding: Finding, fmt: Format) -> Why | None:
    """What an operation leaves is off, and below the normal range, though it rounds nothing itself.

    A sum of subnormal numbers is exact: a state of them is lost where its terms were.
    """
    for measure in finding.results:
        if measure.small > VANISHED * measure.count and measure.relative >= fmt.unit_roundoff:
            return _fell(born, measure, fmt)
    return None


def _fell(born: Operation, measure: Measure, fmt: Format) -> Why:
    stored = measure.fixed and not measure.made
    whose = f"of the {'values of a weight or buffer' if stored else 'values'}"
    zeroed, small = measure.zeroed / measure.count, f"{measure.small / measure.count:.1%}"
    fell = f"{zeroed:.1%} {whose} fall to zero and {small}" if zeroed else f"{small} {whose}"
    return Why(
        "underflow",
        born,
        f"{fell} lie below the smallest normal number of {fmt.name}, "
        f"{fmt.smallest_normal:.2g}; their root mean square is {measure.value:.2g}",
        "stored values" if stored else None,
    )


def _alone(measure: Measure) -> bool:
    """Whether small values are all there is, or a good part of it."""
    return measure.small >= 0.25 * measure.count
