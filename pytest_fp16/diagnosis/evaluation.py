"""Diagnosis of an evaluation: culprit, mechanism and cure for one report."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from pytest_fp16.diagnosis.branches import branched
from pytest_fp16.diagnosis.comparison import FEW, Comparison, Sample, fewer
from pytest_fp16.diagnosis.cures import find_cure
from pytest_fp16.diagnosis.loops import repeated
from pytest_fp16.diagnosis.mechanism import carrier, explain, misled, stopped, worth_watching
from pytest_fp16.diagnosis.meeting import widened
from pytest_fp16.diagnosis.origin import Origin, find_origin
from pytest_fp16.diagnosis.padded import padded
from pytest_fp16.diagnosis.remedy import Remedy
from pytest_fp16.diagnosis.scan import defective, inflated, overflowing, unneeded, vanishing
from pytest_fp16.diagnosis.stale_weights import stale
from pytest_fp16.diagnosis.stop import Raised, entered, raised
from pytest_fp16.diagnosis.subnormal import below_range
from pytest_fp16.diagnosis.trials import Judge, Pricer, Trials
from pytest_fp16.engine.candidate import Candidate
from pytest_fp16.engine.device import is_out_of_memory
from pytest_fp16.evaluation.evidence import Kept
from pytest_fp16.report.model import Culprit, Cure, Report
from pytest_fp16.task import Task

#: What comes of the cast of a whole model and its inputs, which autocast leaves as they are.
_STORED = ("stored inputs", "stored digits", "infinite inputs", "infinite values")


@dataclass
class DiagnosisRequest:
    """What a diagnosis is handed.

    Attributes:
        report: the report so far; `siblings` are those of the other precisions, by name.
        candidate: the candidate with a remedy; the one that failed where nothing is changed.
        reference: the float32 model.
        kept: the inputs to look at.
        error: what the candidate raised, or None.
        judge: re-checks in full.
        price: tells what a cure costs.
        few: inputs to look at, at most.
    """

    report: Report
    siblings: dict[str, Report]
    candidate: Callable[[Remedy], Candidate]
    reference: nn.Module
    task: Task
    kept: Kept
    error: BaseException | None
    emulated: bool
    judge: Judge
    price: Pricer
    few: int = FEW

    def comparison(
        self,
        remedy: Remedy | None = None,
        kept: Kept | None = None,
        emulated: bool | None = None,
        every: bool = False,
    ) -> Comparison:
        """A few of the inputs that were kept (or every one), with a remedy; run as before."""
        kept = kept or self.kept
        if kept.whole or every:
            few = Sample(kept.inputs, kept.seed)
        else:
            few = fewer(kept.inputs, kept.n, kept.seed, kept.wrong, self.few)
        candidate = self.candidate(remedy or Remedy(self.report.precision))
        how = self.emulated if emulated is None else emulated
        return Comparison(candidate, self.reference, self.task, few, how)


@dataclass(frozen=True)
class Diagnosis:
    """What a diagnosis found.

    Attributes:
        culprit, cure: as far as they can be told.
        keep: modules that, kept in float32, make this very precision pass.
    """

    culprit: Culprit | None = None
    cure: Cure | None = None
    keep: tuple[str, ...] = ()


#: Where and why, before any cure is tried: the origin and the culprit, as far as there are any.
Explanation = tuple[Origin | Raised | None, Culprit | None]


def diagnose(request: DiagnosisRequest) -> Diagnosis:
    """The culprit and a cure, as far as they can be told."""
    found, culprit = explained(request)
    _let_go(request.error)
    _let_go(found.error if isinstance(found, Raised) else None)
    if culprit is None:
        return Diagnosis()
    trials = Trials(
        model=request.reference,
        precision=request.report.precision,
        judge=request.judge,
        rerun=request.comparison,
        price=request.price,
        siblings=request.siblings,
    )
    cure, keep = find_cure(trials, culprit, found if isinstance(found, Origin) else None)
    return Diagnosis(culprit, cure, keep)


def _let_go(error: BaseException | None) -> None:
    """Free what the frames of an exception hold: a failed pass may fill a device's memory.

    So may an earlier one, after which the pass was tried again.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def explained(request: DiagnosisRequest) -> Explanation:
    """The culprit, as far as it can be told; from one input where memory holds no more."""
    try:
        return _explained(request)
    except Exception as error:
        if not is_out_of_memory(error) or request.few == 1 or request.kept.whole:
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    request.few = 1
    return _explained(request)


def _explained(request: DiagnosisRequest) -> Explanation:
    comparison = request.comparison()
    found = find_origin(comparison, _shares(request.report))
    if request.error is not None and not isinstance(found, Raised):
        every = request.comparison(every=True)  # one of the others may be what stops the program
        again = find_origin(every)
        if isinstance(again, Raised):
            comparison, found = every, again
    if request.error is not None and not isinstance(found, Raised):
        # Emulation runs what this device's own kernels do not.
        native = request.comparison(emulated=False)
        found = find_origin(native)
        if not isinstance(found, Raised):
            # Nor does whatever follows a program, which takes layers of theirs apart.
            found = raised(request.error, comparison, entered(native))
    culprit = _culprit(request, comparison, found)
    # Of a mixed precision inputs come in float32, and the operation that takes them casts them.
    mixed = comparison.candidate.precision.mixed
    if culprit is not None and culprit.variant in _STORED and mixed:
        culprit = culprit.model_copy(update={"variant": None})
    return found, culprit


def _culprit(
    request: DiagnosisRequest, comparison: Comparison, found: Origin | Raised | None
) -> Culprit | None:
    if isinstance(found, Raised):
        return _led(request, comparison, found) or _refused(comparison, found)
    if _strays(request.report):
        culprit = defective(comparison.side_by_side(lambda i: True))
        if culprit is not None:
            return culprit
    spread = _largest_share(request.report)
    if found is None:
        return spread
    if found.unrounded:
        lost = None if found.lost is None else overflowing(comparison.side_by_side(lambda i: True))
        culprit = lost or padded(comparison, found.damage) or stale(comparison, found.damage)
        culprit = culprit or branched(comparison, request.comparison)
        if culprit is not None:
            return culprit
    if found.lost is None and not found.concentrated and spread is not None:
        return spread  # what a measurement could add is an overflow, and there is none
    watched = worth_watching(found)
    operations = comparison.side_by_side(watched.__contains__)
    culprit = explain(found, operations, carrier(comparison, found))
    if culprit is not None and culprit.source == found.operation.source:
        culprit = repeated(comparison, found, operations) or culprit
    if culprit is not None and culprit.mechanism == "precision-loss" and not culprit.variant:
        culprit = below_range(comparison, found, operations) or culprit
    index = found.operation.index
    lost_guard = culprit is not None and culprit.mechanism == "eps-underflow"
    if inflated(operations, index) or (lost_guard and unneeded(operations, index)):
        whole = comparison.side_by_side(lambda i: True)[:index]
        culprit = vanishing(whole) or culprit
    certain = culprit is not None and culprit.mechanism == "overflow"
    if not found.concentrated and spread is not None and not certain:
        return spread  # an overflow is a fact, though a clamp behind it may limit the damage
    return culprit or spread


def _refused(comparison: Comparison, found: Raised) -> Culprit:
    """The operation that stopped the program; of dtypes that met, with where one came from."""
    culprit = stopped(found, comparison.candidate.precision.dtype_name)
    came = widened(comparison) if culprit.variant == "mixed dtypes" else None
    if came is None:
        return culprit
    return culprit.model_copy(update={"evidence": f"{culprit.evidence}; {came}"})


def _led(request: DiagnosisRequest, comparison: Comparison, found: Raised) -> Culprit | None:
    """The operation whose rounding led the program where it raised."""
    if found.misled is None:
        return None
    born, before = found.misled.index, len(comparison.operations) - 1  # the last one has no result
    watched = comparison.side_by_side(lambda i: born <= i < max(before, born + 1))
    return misled(found, request.error or found.error, watched)


def _shares(report: Report) -> dict[tuple[str, str], float]:
    return {(s.module, s.operation): s.share for s in report.sites if s.share > 0}


def _strays(report: Report) -> bool:
    """Whether nothing is wrong but that errors are not those of an ideal emulation."""
    return [c.name for c in report.checks if not c.passed] == ["as predicted"]


def _largest_share(report: Report) -> Culprit | None:
    """Where many operations each do a little, the one that theory says does most."""
    shares: dict[str, float] = {}
    for site in report.sites:
        shares[site.module] = shares.get(site.module, 0.0) + site.share
    if not shares or max(shares.values()) <= 0:
        return None
    module = max(shares, key=lambda name: shares[name])
    largest = max((s for s in report.sites if s.module == module), key=lambda s: s.share)
    return Culprit(
        module=module,
        operation=largest.operation,
        mechanism="precision-loss",
        evidence=f"its rounding makes up {shares[module]:.0%} of the predicted variance of the "
        "decisions, more than any other module's",
        source=largest.source,
    )
