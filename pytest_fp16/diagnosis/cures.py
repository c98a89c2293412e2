"""What to do: cures in order of cost, each applied and judged by a full re-check."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pytest_fp16.diagnosis.advice import advice
from pytest_fp16.diagnosis.branches import branched
from pytest_fp16.diagnosis.cheaper import parts
from pytest_fp16.diagnosis.described import described
from pytest_fp16.diagnosis.origin import Origin, find_origin
from pytest_fp16.diagnosis.remedy import Remedy
from pytest_fp16.diagnosis.trials import HEALED, Trials
from pytest_fp16.diagnosis.uncast import comes_first, uncast
from pytest_fp16.diagnosis.untried import untried
from pytest_fp16.errors import FP16Error
from pytest_fp16.report import figures
from pytest_fp16.report.model import Culprit, Cure, CureKind, Price, Report, Verdict

#: Further modules kept one after another, where one is not enough.
ROUNDS = 4
#: Full re-checks that sets of several lines leave to other precisions.
_OTHERS = 2
#: A share of the arithmetic in float32 that leaves nothing to gain but memory: no cure by itself.
_EVERYTHING = 0.99
#: A share that leaves so little that another precision that passes with less is preferred.
LITTLE = 0.9
#: How much more than without it a cure may leave there, before a cheaper one is looked for.
_DEAR = 0.5

#: Mechanisms that more digits cure.
_DIGITS = ("cancellation", "absorption", "precision-loss")


def find_cure(
    trials: Trials, culprit: Culprit, origin: Origin | None
) -> tuple[Cure, tuple[str, ...]]:
    """The first cure that passes a full re-check and leaves enough in 16 bits to be worth it.

    Where none does, the first that passes and leaves something, then one by luck; or advice.

    Returns:
        The cure, and the modules that make the failing precision itself pass (for a plan).
    """
    vain = ""
    passed: list[Remedy] = []
    dear: tuple[float, Cure, tuple[str, ...]] | None = None
    reserve: list[tuple[Cure, tuple[str, ...]]] = []  # what passes by luck
    for kind, remedy in _candidates(trials, culprit, origin):
        if any(_includes(remedy, other) for other in passed):
            continue  # no cheaper: the allowance is for others
        if dear is not None and remedy.precision != trials.precision and dear[0] < LITTLE:
            continue
        report = trials.judged(remedy)
        if report is None or not report.equivalent:
            trials.line_failed |= kind == "upcast" and bool(remedy.lines) and report is not None
            continue
        price = trials.price(remedy)
        share = 0.0 if price is None else price.float32_share
        passed.append(remedy)
        if share >= _EVERYTHING and not trials.stores(remedy):
            vain = " (what was tried passes only with the whole model in float32)"
        elif dear is None or share < dear[0]:
            said = _beside_a_dearer(described(trials, remedy, culprit, origin), dear)
            found = _verified(trials, kind, remedy, report, said, price)
            if report.luck is not None:
                reserve.append(found)
                continue
            if price is None or share - (price.float32_share_before or 0.0) <= _DEAR:
                return found
            dear, trials.dear = (share, *found), remedy
    if dear is not None:
        return dear[1:]
    if reserve:
        return reserve[0]
    cure = _advised(trials, culprit, vain)
    if cure.verdict is None:
        cure = cure.model_copy(update={"untried": untried(trials, culprit, cure.kind)})
    return cure, ()


def _beside_a_dearer(said: str, dear: tuple[float, Cure, tuple[str, ...]] | None) -> str:
    """A cure in words, and the modules that pass, too, at a higher price."""
    if dear is None or not dear[1].modules:
        return said
    share = f"{figures.percent(dear[0])} of the arithmetic"
    other = f"{', '.join(dear[1].modules)} kept in float32 passes, too, with {share} there"
    untried = said.endswith(")") and said.rpartition(" (")[2].startswith("not tried: ")
    return f"{said[:-1]}; {other})" if untried else f"{said} ({other})"


def _verified(
    trials: Trials,
    kind: CureKind,
    remedy: Remedy,
    report: Report,
    description: str,
    price: Price | None,
) -> tuple[Cure, tuple[str, ...]]:
    """A cure that passed, and the modules that a plan may keep for it."""
    own = remedy.precision == trials.precision
    cure = Cure(
        kind=kind,
        modules=list(remedy.keep),
        precision=None if own else remedy.precision,
        verified=True,
        description=description if report.luck is None else f"{description}; with it {report.luck}",
        verdict=report.verdict,
        price=price,
        **_numbers(report),
    )
    return cure, remedy.keep if own else ()


def _advised(trials: Trials, culprit: Culprit, vain: str) -> Cure:
    """Advice, and what came of what was tried: how far it falls short."""
    kind, said = advice(culprit, not trials.inputs_failed)
    known = trials.line_failed and kind == "upcast"
    if known:
        vain = (
            f" (by itself not enough{'; what passes is the whole model in float32' * bool(vain)})"
        )
    kept = trials.shortfall(lambda remedy: bool(remedy.keep))
    if not vain and kept is not None:
        names = ", ".join(kept[0].keep)
        vain = f" ({names} in float32 alone is not enough{_won(kept[1])})"
    verdict: Verdict | None = "not equivalent" if known else None
    advised = Cure(kind=kind, verified=False, description=said + vain, verdict=verdict)
    line = trials.shortfall(lambda remedy: len(remedy.lines) == 1) if known else None
    if line is None:  # on a few inputs alone, or with others
        return advised
    return advised.model_copy(update=_numbers(line[1]))


def _numbers(report: Report) -> dict[str, Any]:
    """What came of a cure on all data."""
    numbers: dict[str, Any] = {"flips": report.flips, "decisions": report.decisions}
    if report.metric is None:
        return numbers
    return {**numbers, "metric": report.metric.candidate, "metric_name": report.metric.name}


def _won(report: Report) -> str:
    """The metric that a remedy gave which is not enough."""
    if report.metric is None:
        return ""
    value = figures.metric_value(report.metric, report.metric.candidate)
    return f": {report.metric.name} {value}{figures.unit(report.metric)}"


def _includes(remedy: Remedy, other: Remedy) -> bool:
    """Whether a remedy keeps in float32 what another does, and more."""
    alike = remedy.precision == other.precision
    alike &= not (other.lines or other.buffers or other.inputs)
    return alike and set(other.keep) < set(remedy.keep)


def _candidates(
    trials: Trials, culprit: Culprit, origin: Origin | None
) -> Iterator[tuple[CureKind, Remedy]]:
    if culprit.variant == "stale weight":
        yield "fresh casts", Remedy(trials.precision, anew=True)
    if culprit.variant == "fast path":
        yield "no fast path", Remedy(trials.precision, unpacked=True)
    if comes_first(culprit):
        yield from uncast(trials, culprit, origin)
    kept = None
    narrowed = Remedy(trials.precision, lines=_line(culprit), meeting="narrowed")
    mixed_dtypes = culprit.variant == "mixed dtypes" and bool(narrowed.lines)
    if mixed_dtypes and trials.heals(narrowed, origin):  # it leaves everything in 16 bits
        yield "upcast", narrowed
    if _may_be_fitted(culprit) and trials.heals(replace(narrowed, meeting="fitted"), origin):
        yield "mask constant", replace(narrowed, meeting="fitted")  # as this does
    for keep in _sets(trials, culprit, origin):
        kept = keep
        yield "keep_in_float32", Remedy(trials.precision, keep)
    for remedy in _lines(trials, culprit, origin):
        yield "upcast", remedy
    if trials.dear is not None:
        for keep in parts(trials, trials.dear, origin):
            yield "keep_in_float32", Remedy(trials.precision, keep)
    if not comes_first(culprit):
        yield from uncast(trials, culprit, origin)
    name, _, mode = trials.precision.partition("-")
    mixed = f"{name}-mixed"
    if mode == "true":
        yield "mixed", Remedy(mixed)
    if name == "16":
        yield "bfloat16", Remedy(f"bf16-{mode}")
    alone = kept or ((culprit.module,) if culprit.module else None)
    if mode == "true" and alone is not None:
        yield "keep_in_float32", Remedy(mixed, alone)
    if name == "16" and mode == "true":
        yield "bfloat16", Remedy("bf16-mixed")
    if name == "bf16" and culprit.mechanism in _DIGITS:  # float16 has three more bits
        yield "float16", Remedy(f"16-{mode}")
        if mode == "true":
            yield "float16", Remedy("16-mixed")


def _may_be_fitted(culprit: Culprit) -> bool:
    """Whether a constant of the culprit's line is what does not fit, by itself."""
    mask = culprit.mechanism == "mask-inf" and culprit.variant in (None, "bound", "large constant")
    return mask and culprit.source is not None


def _lines(trials: Trials, culprit: Culprit, origin: Origin | None) -> Iterator[Remedy]:
    """The culprit's line, and with it whatever line is the origin once that is in float32.

    Several leave an allowance for other precisions.
    """
    lines = () if culprit.variant == "padding" else _line(culprit)  # which float32 does not mend
    if lines and culprit.variant == "mixed dtypes":
        remedy = Remedy(trials.precision, lines=lines, meeting="widened")
        if trials.heals(remedy, origin):
            yield remedy
            return
    while lines and len(lines) <= ROUNDS and (len(lines) == 1 or trials.budget > _OTHERS):
        remedy = Remedy(trials.precision, lines=lines)
        left = trials.left(remedy, origin)
        if left < HEALED:
            yield remedy
        trials.line_failed |= HEALED <= left < math.inf
        more = _next_line(trials, remedy)
        if more is None or more in lines:
            return
        lines = (*lines, more)


def _line(culprit: Culprit) -> tuple[str, ...]:
    return (culprit.source,) if culprit.source else ()


def _next_line(trials: Trials, remedy: Remedy) -> str | None:
    try:
        found = find_origin(trials.focused(remedy)(remedy))
    except Exception:  # it does not run so
        return None
    if found is None:
        return None
    return found.operation.source if isinstance(found, Origin) else found.source


def _sets(trials: Trials, culprit: Culprit, origin: Origin | None) -> Iterator[tuple[str, ...]]:
    """Sets of modules that heal the few inputs, small ones first."""
    module = culprit.module
    if not module or module not in trials.names:
        return
    tried: set[tuple[str, ...]] = set()
    for keep in _larger(trials, module):
        if keep in tried:
            continue
        tried.add(keep)
        if trials.heals(Remedy(trials.precision, keep), origin):
            yield keep


def _larger(trials: Trials, module: str) -> Iterator[tuple[str, ...]]:
    """The culprit, more and more with it, then its parent; each is made when it is asked for."""
    yield (module,)
    yield from _grown(trials, module)
    if parent := module.rpartition(".")[0]:
        yield (parent,)
        yield from _grown(trials, parent)


def _grown(trials: Trials, module: str) -> Iterator[tuple[str, ...]]:
    """The culprit and whatever is the origin once it is kept, with others of its kind."""
    keep: tuple[str, ...] = (module,)
    alike = _alike(trials, module)
    for _ in range(ROUNDS):
        remedy = Remedy(trials.precision, keep)
        rerun = trials.focused(remedy)
        try:
            remedied = rerun(remedy)
            found = find_origin(remedied, module_alone=True)
        except FP16Error:
            return
        if found is None:
            return
        at = found.operation.module if isinstance(found, Origin) else found.module
        unrounded = isinstance(found, Origin) and found.unrounded
        branch = branched(remedied, rerun) if unrounded else None
        if branch is not None:
            at, alike = branch.module, _alike(trials, branch.module)  # all of its kind do that
        if not at or at in keep:
            return
        more = [n for n in alike if n not in keep] if at in alike else []
        keep = tuple(dict.fromkeys([*keep, at, *more]))
        yield keep


def _alike(trials: Trials, module: str) -> list[str]:
    kind = type(trials.names[module])
    if kind.__module__.startswith("torch."):
        return []
    return [name for name, other in trials.names.items() if type(other) is kind]
