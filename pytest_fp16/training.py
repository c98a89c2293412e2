"""May this model be trained in 16 bits? The gradient check, then pairs of runs over seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from pytest_fp16.engine.device import resolve_device
from pytest_fp16.engine.gradients.check import GradientFindings, gradient_check
from pytest_fp16.engine.models import make_model
from pytest_fp16.engine.randomness import preserved_state
from pytest_fp16.engine.training.input import sound
from pytest_fp16.engine.training.order import preserved_generators
from pytest_fp16.engine.training.runs import Runs
from pytest_fp16.engine.training.train import RunResult
from pytest_fp16.errors import ModelError
from pytest_fp16.plan import Plan
from pytest_fp16.planned import extend, kept_by, plan_of, remarks, with_kept
from pytest_fp16.precision import PRECISIONS, REFERENCE, Precision
from pytest_fp16.progress import Progress
from pytest_fp16.report.model import Report
from pytest_fp16.settings import Settings
from pytest_fp16.subject import Training
from pytest_fp16.theory.seeds import Look, seeds_missing, sequential

#: A default budget that is more than this share of the metric itself is wide: a convention.
WIDE = 0.1


@dataclass
class Pairs:
    """The pairs of one precision, and what they say.

    Attributes:
        precision: of the candidate.
        pairs: (reference, candidate), one per seed, that can be compared.
        look: the last look at their losses; None before the first.
        broke: the candidate's run that ended where its 32-bit twin did not.
        unmade: why a run could not be made at all (no memory).
        missing: how many more seeds would settle it.
        notes: seeds that were left out, and why.
    """

    precision: Precision
    pairs: list[tuple[RunResult, RunResult]] = field(default_factory=list)
    look: Look | None = None
    broke: tuple[RunResult, RunResult] | None = None
    unmade: str | None = None
    missing: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        """Reference minus candidate, per pair."""
        return [r.metric - c.metric for r, c in self.pairs]

    @property
    def verdict(self) -> str:
        """``"equivalent"``, ``"not equivalent"`` or ``"inconclusive"``."""
        if self.broke is not None:
            return "not equivalent"
        if self.look is None or self.unmade is not None or self.look.outcome == "undecided":
            return "inconclusive"
        return self.look.outcome


def examine_training(
    subject: Training, settings: Settings, progress: Progress | None = None, test: str = ""
) -> list[Report]:
    """One report per precision of `settings`, in that order.

    The 32-bit run of a seed is shared by all of them. Seeds are added one by one until a precision
    is settled or the allowance is spent.

    Raises:
        FP16Error: the training cannot be compared; see `check`.
    """
    from pytest_fp16.engine.training.store import open_store
    from pytest_fp16.report.training import report_of

    device = resolve_device(settings.device)
    with preserved_state(), preserved_generators(subject.train_data, subject.eval_data):
        found = sound(subject, device)
        store = open_store(found.subject, settings, device)
        plan = plan_of(settings, test)
        planned = _planned(plan, found.subject) if plan is not None else None
        runs = Runs(found, settings, device, progress, store, planned)
        candidates = [PRECISIONS[name] for name in settings.precisions]
        forecasts = [_forecast(runs, precision, progress) for precision in candidates]
        every = [compare(runs, precision) for precision in candidates]
        reports = []
        for forecast, pairs in zip(forecasts, every, strict=True):
            culprit, cure = _diagnosis(runs, pairs, forecast)
            reports.append(report_of(runs, pairs, forecast, culprit, cure))
        return reports if plan is None else _held_against(plan, reports, found.subject)


def _planned(plan: Plan, subject: Training) -> dict[str, tuple[Training, tuple[str, ...]]]:
    """By precision: the training with the modules that the plan keeps, and their names."""
    model = make_model(subject.model)
    keep = {name: kept_by(plan, subject.name, name, model) for name in PRECISIONS}
    return {name: (with_kept(subject, kept), kept) for name, kept in keep.items() if kept}


def _held_against(plan: Plan, reports: list[Report], subject: Training) -> list[Report]:
    """Say what the plan did, and write down what new cures keep in float32."""
    model = make_model(subject.model)
    extend(plan, reports, {r.precision: _keeps(r) for r in reports})
    return [
        report.model_copy(update={"warnings": [*report.warnings, *remarks(plan, report, model)]})
        for report in reports
    ]


def _keeps(report: Report) -> tuple[str, ...]:
    cure = report.cure
    tried = cure is not None and cure.verified and cure.kind == "keep_in_float32"
    return tuple(cure.modules) if tried and cure is not None else ()


def _forecast(
    runs: Runs, precision: Precision, progress: Progress | None
) -> GradientFindings | None:
    if precision == REFERENCE:
        return None
    if progress is not None:
        progress(f"{runs.subject.name}: gradient check, {precision.name}", 0, runs.total)
    try:
        return gradient_check(runs.subject_for(precision), precision, runs.settings, runs.device)
    except torch.OutOfMemoryError:
        return None  # gradients of several batches are held at once; the runs need less


def _diagnosis(runs: Runs, pairs: Pairs, forecast: GradientFindings | None) -> tuple[Any, Any]:
    if pairs.verdict != "not equivalent":
        return None, None
    from pytest_fp16.diagnosis.training import diagnose_training

    return diagnose_training(runs, pairs, forecast)


def compare(runs: Runs, precision: Precision) -> Pairs:
    """Add pairs until they settle it, a run breaks, or the allowance is spent.

    Raises:
        ModelError: the 32-bit training itself fails.
    """
    pairs = Pairs(precision)
    allowance = runs.settings.seeds
    for seed in range(allowance):
        reference = runs.run(REFERENCE, seed)
        _require_reference(reference, pairs, seed)
        if reference.broke:
            continue
        candidate = runs.run(precision, seed)
        if _unmade(pairs, reference, candidate):
            return pairs
        if candidate.broke:
            pairs.broke = (reference, candidate)
            return pairs
        pairs.pairs.append((reference, candidate))
        pairs.look = _look(pairs, runs.settings)
        if pairs.look.outcome != "undecided":
            _require_steady(pairs)
            return pairs
    if pairs.look is not None:
        pairs.missing = seeds_missing(pairs.look, pairs.losses, allowance)
    return pairs


def _unmade(pairs: Pairs, *results: RunResult) -> bool:
    for result in results:
        if result.ended == "out of memory":
            pairs.unmade = f"{result.precision}, seed {result.seed}: {result.error}"
    return pairs.unmade is not None


def _require_reference(reference: RunResult, pairs: Pairs, seed: int) -> None:
    if not reference.broke:
        if not pairs.pairs and seed == 0:
            _require_learned(reference, pairs)
        return
    said = reference.error or f"it ended in: {reference.ended}"
    if seed == 0:
        raise ModelError(
            f"the 32-bit training itself fails, so there is nothing to compare with: {said} "
            f"(seed {seed}); repair it first"
        )
    pairs.notes.append(f"seed {seed} was left out: the 32-bit training fails there ({said})")


def _require_learned(reference: RunResult, pairs: Pairs) -> None:
    """A model that learned nothing in 32 bits cannot show what 16 bits would lose."""
    score = reference.score
    if score is None or score.majority is None or not math.isfinite(score.value):
        return
    if score.value <= score.majority + score.resolution:
        pairs.notes.append(
            f"the 32-bit training is near chance: accuracy {score.value:.1%}, the commonest label "
            f"alone {score.majority:.1%}; a verdict on it says little, train longer"
        )


def _require_steady(pairs: Pairs) -> None:
    """A default budget is two spreads of the 32-bit runs; one that is wide lets anything pass."""
    look = pairs.look
    if look is None or look.outcome != "equivalent" or look.reference_spread is None:
        return
    size = abs(sum(r.metric for r, _ in pairs.pairs) / len(pairs.pairs))
    if look.budget > WIDE * size:
        pairs.notes.append(
            f"the 32-bit runs themselves differ by {look.reference_spread:.2g} over seeds "
            f"(standard deviation), so that a loss of {look.budget:.2g} would pass; steady the "
            "training, or set a budget"
        )


def _look(pairs: Pairs, settings: Settings) -> Look:
    references = [r for r, _ in pairs.pairs]
    scores = [r.score for r in references if r.score is not None]
    metrics = [r.metric for r in references]
    budget = settings.budget
    if isinstance(budget, str):
        budget = float(budget.rstrip("%")) / 100 * abs(sum(metrics) / len(metrics))
    resolution = sum(s.resolution for s in scores) / len(scores)
    grain = max(s.grain for s in scores)
    return sequential(pairs.losses, metrics, resolution, settings.seeds, budget, grain)


def training_step_functions(
    subject: Training, precision: Precision, settings: Settings
) -> tuple[Any, Any]:
    """Two functions that make one training step each, at 32-true and at `precision`.

    Each has a model and optimizer of its own, from the same weights, and steps over the first
    batch of `train_data` again and again: for timing. Seeds and global state are the caller's.
    """
    from pytest_fp16.engine.training.order import ordered
    from pytest_fp16.engine.training.trainee import Trainee, initial_state

    device = resolve_device(settings.device)
    with preserved_state(), preserved_generators(subject.train_data):
        found = sound(subject, device)
        place = Runs(found, settings, device).place
        state = initial_state(found.subject, 0)
        batch = next(iter(ordered(found.subject.train_data, 0, 0)))
        trainees = [Trainee(found.subject, p, 0, state, place) for p in (REFERENCE, precision)]

    def step_of(trainee: Trainee) -> Any:
        trainee.model.train()

        def step() -> float:
            with torch.enable_grad(), trainee.installed():
                return trainee.step(batch, last=True)

        return step

    return step_of(trainees[0]), step_of(trainees[1])
