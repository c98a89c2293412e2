"""What to do: cures in order of cost, each applied and judged by a full re-check."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from pytest_fp16.diagnosis.advice import advice, brought, fitting, in_float32
from pytest_fp16.diagnosis.branches import branched
from pytest_fp16.diagnosis.origin import Origin, find_origin
from pytest_fp16.diagnosis.remedy import Remedy
from pytest_fp16.diagnosis.trials import Trials
from pytest_fp16.diagnosis.untried import untried
from pytest_fp16.errors import FP16Error
from pytest_fp16.report import figures
from pytest_fp16.report.model import Culprit, Cure, CureKind, Price, Report, Verdict

#: Damage left on the few inputs at which a full re-check is worth its time.
HEALED = 0.5
#: Further modules kept one after another, where one is not enough.
ROUNDS = 4

#: Full re-checks that sets of several lines leave to other precisions.
_OTHERS = 2
#: A share of the arithmetic in float32 that leaves nothing to gain: no cure.
_EVERYTHING = 0.99
#: A share that leaves so little that whatever passes with less is preferred.
_DEAR = 0.9

#: Mechanisms that more digits cure.
_DIGITS = ("cancellation", "absorption", "precision-loss")


def find_cure(
    trials: Trials, culprit: Culprit, origin: Origin | None
) -> tuple[Cure, tuple[str, ...]]:
    """The first cure that passes a full re-check and leaves enough in 16 bits to be worth it.

    Where none does, the first that passes and leaves something; or advice.

    Returns:
        The cure, and the modules that make the failing precision itself pass (for a plan).
    """
    hint, vain = advice(culprit), ""
    passed: list[Remedy] = []
    dear: tuple[Cure, tuple[str, ...]] | None = None
    for kind, remedy in _candidates(trials, culprit, origin):
        if any(_includes(remedy, other) for other in passed):
            continue  # no cheaper: the allowance is for others
        report = trials.judged(remedy)
        if report is None or not report.equivalent:
            trials.line_failed |= kind == "upcast" and bool(remedy.lines) and report is not None
            continue
        price = trials.price(remedy)
        share = 0.0 if price is None else price.float32_share
        if share < _EVERYTHING:
            said = _described(trials, remedy, culprit, hint[1])
            found = _verified(trials, kind, remedy, report, said, price)
            if share < _DEAR:
                return found
            dear = dear or found
        else:
            vain = " (what was tried passes only with the whole model in float32)"
        passed.append(remedy)
    advised = _advised(trials, hint, vain)
    if advised.verdict is None:
        advised = advised.model_copy(update={"untried": untried(trials, culprit, advised.kind)})
    return dear or (advised, ())


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
        description=description,
        verdict=report.verdict,
        flips=report.flips,
        metric=report.metric.candidate if report.metric else None,
        price=price,
    )
    return cure, remedy.keep if own else ()


def _advised(trials: Trials, hint: tuple[CureKind, str], vain: str) -> Cure:
    """Advice, and what came of what was tried: how far it falls short."""
    known = trials.line_failed and hint[0] == "upcast"
    vain = vain or " (by itself not enough)" * known
    kept = trials.shortfall(lambda remedy: bool(remedy.keep))
    if not vain and kept is not None:
        names = ", ".join(kept[0].keep)
        vain = f" ({names} in float32 alone is not enough{_won(kept[1])})"
    verdict: Verdict | None = "not equivalent" if known else None
    advised = Cure(kind=hint[0], verified=False, description=hint[1] + vain, verdict=verdict)
    line = trials.shortfall(lambda remedy: len(remedy.lines) == 1) if known else None
    if line is None:  # on a few inputs alone, or with others
        return advised
    metric = line[1].metric
    numbers = {"flips": line[1].flips, "metric": metric.candidate if metric else None}
    return advised.model_copy(update=numbers)


def _won(report: Report) -> str:
    """The metric that a remedy gave which is not enough."""
    if report.metric is None:
        return ""
    value = figures.metric_value(report.metric, report.metric.candidate)
    return f": {report.metric.name} {value}{figures.unit(report.metric)}"


def _includes(remedy: Remedy, other: Remedy) -> bool:
    """Whether a remedy keeps in float32 what another does, and more."""
    alike = remedy.precision == other.precision and not other.lines
    return alike and set(other.keep) < set(remedy.keep)


def _candidates(
    trials: Trials, culprit: Culprit, origin: Origin | None
) -> Iterator[tuple[CureKind, Remedy]]:
    if culprit.variant == "stale weight":
        yield "fresh casts", Remedy(trials.precision, anew=True)
    kept = None
    narrowed = Remedy(trials.precision, lines=_line(culprit), meeting="narrowed")
    mixed_dtypes = culprit.variant == "mixed dtypes" and bool(narrowed.lines)
    if mixed_dtypes and _heals(trials, narrowed, origin):  # it leaves everything in 16 bits
        yield "upcast", narrowed
    for keep in _sets(trials, culprit, origin):
        kept = keep
        yield "keep_in_float32", Remedy(trials.precision, keep)
    if _may_be_fitted(culprit) and _heals(trials, replace(narrowed, meeting="fitted"), origin):
        yield "mask constant", replace(narrowed, meeting="fitted")
    for remedy in _lines(trials, culprit, origin):
        yield "upcast", remedy
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
    mask = culprit.mechanism == "mask-inf" and culprit.variant in (None, "bound")
    return mask and culprit.source is not None


def _lines(trials: Trials, culprit: Culprit, origin: Origin | None) -> Iterator[Remedy]:
    """The culprit's line, and with it whatever line is the origin once that is in float32.

    Several leave an allowance for other precisions.
    """
    lines = _line(culprit)
    if lines and culprit.variant == "mixed dtypes":
        remedy = Remedy(trials.precision, lines=lines, meeting="widened")
        if _heals(trials, remedy, origin):
            yield remedy
            return
    while lines and len(lines) <= ROUNDS and (len(lines) == 1 or trials.budget > _OTHERS):
        remedy = Remedy(trials.precision, lines=lines)
        left = _left(trials, remedy, origin)
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
        if _heals(trials, Remedy(trials.precision, keep), origin):
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


def _heals(trials: Trials, remedy: Remedy, origin: Origin | None) -> bool:
    """Whether the few inputs come out (nearly) right; where that is not known, yes."""
    return _left(trials, remedy, origin) < HEALED


def _left(trials: Trials, remedy: Remedy, origin: Origin | None) -> float:
    """The damage left on the few inputs; infinite where the remedy cannot be applied."""
    try:
        output = trials.rerun(remedy, None).run()
    except Exception as error:  # or does not run
        if remedy.lines and trials.error is None:
            trials.error = error.with_traceback(None)  # whose frames hold tensors
        return math.inf
    return 0.0 if origin is None else origin.damage.of(output)


def _described(trials: Trials, remedy: Remedy, culprit: Culprit, hint: str) -> str:
    names = ", ".join(remedy.keep)
    if remedy.anew:
        return hint
    if remedy.meeting == "fitted":
        return fitting(culprit)
    if remedy.meeting:
        return f"{hint}: {brought(remedy.meeting, culprit)}"
    if remedy.lines:
        first, *others = remedy.lines
        more = f", and what is computed at {' and '.join(others)}" * bool(others)
        instead = f" (or {hint})" * (culprit.variant == "another constant")
        return (
            f"{in_float32(culprit)} at {first}{more}, and cast back only where a layer takes the "
            f"result{instead}"
        )
    several = len(remedy.keep) > 1 and culprit.module in remedy.keep
    instead = f"{culprit.module} alone is not enough; there, {hint}" if several else f"or {hint}"
    if remedy.precision == trials.precision:
        return f"keep {names} in float32 ({instead})"
    kept = f" with {names} kept in float32" if names else ""
    return f"run in {remedy.precision}{kept} ({instead})"
