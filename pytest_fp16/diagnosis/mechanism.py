"""Why: what happened at the origin, with the numbers that show it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pytest_fp16.diagnosis.bounds import (
    came_small,
    fell_as_stored,
    form_of_constant,
    out_of_range,
    vanished,
    vanishing_constant,
)
from pytest_fp16.diagnosis.comparison import Comparison
from pytest_fp16.diagnosis.digits import (
    AHEAD,
    absorbed,
    cancelled,
    cancelled_in_places,
    counting,
    imprecise,
)
from pytest_fp16.diagnosis.domain import with_domain
from pytest_fp16.diagnosis.findings import ADDITIONS
from pytest_fp16.diagnosis.origin import Origin
from pytest_fp16.diagnosis.replay import Diverged
from pytest_fp16.diagnosis.stop import Raised, given_dtypes
from pytest_fp16.diagnosis.twin_run import Operation
from pytest_fp16.diagnosis.why import Why, format_of
from pytest_fp16.engine.emulation.wording import first_line, mechanism_of, told, variant_of
from pytest_fp16.engine.source import raised_by_program
from pytest_fp16.report.model import Culprit

#: What stands between the cast of an operand and the operation that takes it: a broadcast product
#: casts, then copies into the shape its kernel takes.
_ON_THE_WAY = ("_to_copy", "clone", "_unsafe_view")
#: Part of the squared damage born at the origin that passes through an operation that carries it.
_THROUGH = 0.5


def stopped(found: Raised, dtype_name: str) -> Culprit:
    """The culprit where the program raised."""
    said = first_line(found.error)
    mechanism = mechanism_of(told(found.error))
    evidence = f"it raised {told(found.error)}"
    variant = variant_of(told(found.error))
    if mechanism == "mask-inf":
        evidence = f"a constant beyond the range of {dtype_name}: {said}"
        variant = form_of_constant(found.operation, found.constant)
    elif found.anyway and (mechanism == "precision-loss" or _refuses(found, variant)):
        mechanism, variant = "unsupported-op", "refused by the program"
        evidence += "; exact values of that dtype stop it as well"
    given = given_dtypes(found.error) if mechanism == "unsupported-op" else {}
    if len(given) > 1:  # which words of the program's own need not tell
        variant = "mixed dtypes"
    elif given and "float32" not in given:
        variant = "refused by the program"
    elif given and variant != "mixed dtypes":
        variant = "own statement"
    if given:
        what = (f"{dtype} ({', '.join(names)})" for dtype, names in given.items())
        evidence += f"; it was given {' and '.join(what)}"
    return Culprit(
        module=found.module,
        operation=found.operation,
        mechanism=mechanism,
        evidence=evidence,
        source=found.source,
        variant=variant,
    )


def _refuses(found: Raised, variant: str | None) -> bool:
    """Whether a statement of the program's own refuses a dtype, in words that ATen could use."""
    return variant is None and raised_by_program(found.error)


def misled(found: Raised, error: BaseException, watched: list[Operation]) -> Culprit | None:
    """The culprit where the program raised for what an earlier operation made of its values.

    Args:
        found: where it raised; `misled` is that operation.
        error: what the candidate itself raised.
        watched: the program up to there, side by side with its exact twin.
    """
    if found.misled is None:
        return None
    born = watched[found.misled.index]
    if born.finding is None:
        return None
    culprit = _why(born, watched, lost=False).culprit()
    at = found.operation if found.operation == watched[-1].name else "the program"
    evidence = f"{culprit.evidence}; so {at} raised {told(error)}"
    return culprit.model_copy(update={"evidence": evidence})


def worth_watching(origin: Origin) -> set[int]:
    """Indices of the operations that `explain` needs measured.

    The origin, additions behind it, and what makes NaN or infinity of finite values.
    """
    first = origin.operation.index
    behind = origin.operations[first : first + AHEAD]
    follower = _after_casts(origin.operations, first)
    lost = set() if origin.lost is None else {origin.lost}
    return {first, follower} | lost | {o.index for o in behind if o.name in ADDITIONS}


def _after_casts(operations: list[Operation], first: int) -> int:
    """The index of what follows an operation, past casts and copies of its operands."""
    following = range(first + 1, len(operations))
    return next((i for i in following if operations[i].name not in _ON_THE_WAY), first)


def carrier(comparison: Comparison, origin: Origin) -> Callable[[Sequence[Operation]], bool]:
    """Tells whether what was born at the origin does its damage through results of operations.

    It does not where the program goes round it: what is left of a difference may be all wrong, and
    yet be added to the very value that was taken off, as a logarithm of a sum of exponentials does.
    """

    damage, born = origin.damage, origin.operation.index

    def carries(operations: Sequence[Operation]) -> bool:
        if any(o.index <= born for o in operations):
            return True
        try:
            came = (
                damage.of(comparison.healed(born + 1)) ** 2
                - damage.of(comparison.healed(born)) ** 2
            )
            those = {o.index for o in operations}
            before, after = comparison.healed(min(those) + 1), comparison.repaired(those)
            return damage.of(before) ** 2 - damage.of(after) ** 2 >= _THROUGH * came
        except Diverged:
            return decides(operations[0].index)
        except Exception:  # it cannot be played so
            return True

    def decides(index: int) -> bool:
        """Whether what that result leads to, such as the end of a loop, does the damage."""
        try:
            return 1 - damage.of(comparison.but_for(index)) ** 2 >= _THROUGH
        except Exception:
            return True

    return carries


def explain(
    origin: Origin,
    watched: list[Operation],
    carries: Callable[[Sequence[Operation]], bool] = lambda _: True,
) -> Culprit | None:
    """The culprit where the outputs are wrong.

    Args:
        origin: where it was born.
        watched: the same program side by side with its exact twin; the operations from the origin
            on carry what was measured.
        carries: whether the damage passes through operations behind the origin.
    """
    first = origin.operation.index
    if first >= len(watched):
        return None
    born = _consumer(watched, first)
    measured = born.finding.results if born.finding is not None else []
    sound = bool(measured) and not any(m.lost or m.error for m in measured)
    if born.finding is None or (first == 0 and sound):
        return None  # what the program does for its dtype is no error of its first operation
    culprit = _why(born, watched, bool(origin.damage.lost.any()), carries).culprit()
    if origin.lost is None and culprit.mechanism == "eps-underflow" and born.name in ADDITIONS:
        # What guards a quotient or a logarithm leaves NaN or infinity where it is lost.
        culprit = culprit.model_copy(update={"variant": culprit.variant or "coefficient"})
    if origin.lost is not None and first < origin.lost < len(watched):
        lost = watched[origin.lost]
        led = with_domain(culprit, lost)
        culprit = led if led is not culprit and carries((lost,)) else culprit
    merged = origin.damage.merged
    if merged is None or culprit.mechanism != "precision-loss":
        return culprit
    what = f"{int(merged.sum())} of {merged.numel()} decisions looked at are between numbers that "
    what += f"{format_of(born.finding).name} cannot tell apart; {culprit.evidence}"
    return culprit.model_copy(update={"evidence": what, "variant": "merged outputs"})


def because(born: Operation, watched: list[Operation]) -> Culprit | None:
    """Why an operation, and none behind it, did what was measured of it."""
    if born.finding is None:
        return None
    return _why(born, watched, False, lambda those: those[0] is born).culprit()


def _consumer(watched: list[Operation], first: int) -> Operation:
    """The origin; for a cast that autocast put before an operation, that operation."""
    found, follower = watched[first], watched[_after_casts(watched, first)]
    finding = found.finding
    if found.name != "_to_copy" or finding is None or not finding.results:
        return found
    lost = any(m.lost for m in finding.own) or vanished(found, finding, format_of(finding))
    same = follower.finding is not None and follower.source == found.source
    return found if lost or not same else follower


def _why(
    born: Operation,
    watched: list[Operation],
    lost: bool,
    carries: Callable[[Sequence[Operation]], bool] = lambda _: True,
) -> Why:
    """The first rule that applies; `lost` says that outputs became NaN or infinite."""
    finding = born.finding
    assert finding is not None, "unreachable: the caller has looked"
    fmt = format_of(finding)
    fallen = [fell_as_stored] if lost else []
    for rule in (out_of_range, *fallen, vanishing_constant, counting, absorbed):
        why = rule(born, finding, fmt)
        if why is not None:
            return why
    for behind in (cancelled, cancelled_in_places):
        why = behind(born, watched)
        if why is not None and carries((why.operation, *why.beside)):
            return why
    why = vanished(born, finding, fmt, few=lost)
    return why or came_small(born, finding, fmt) or imprecise(born, finding, fmt)
