"""From what an evaluation has shown to the report of each precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_fp16.engine.canary import LARGE_DIFFERENCE
from pytest_fp16.engine.models import complex_tensors
from pytest_fp16.evaluation import verdict as rules
from pytest_fp16.evaluation.lane import Lane
from pytest_fp16.evaluation.ranges import beyond_range, sites_of
from pytest_fp16.evaluation.soundness import guesses
from pytest_fp16.report.message import generous
from pytest_fp16.report.model import Check, Report, Run, Verdict

if TYPE_CHECKING:
    from pytest_fp16.evaluation.run import EvaluationRun


#: Part of the budget that must be spent for a passing evaluation to be looked into.
SPENT = 0.5


def needs_diagnosis(report: Report, lucky: bool = False) -> bool:
    """Whether a report fails, only just passes, or passes by luck."""
    if report.verdict == "not equivalent":
        return True
    metric = report.metric
    close = metric is not None and metric.loss > SPENT * metric.budget
    return report.verdict == "equivalent" and (close or lucky)


def is_due(lane: Lane, report: Report) -> bool:
    """Whether the report of a lane needs a diagnosis."""
    return needs_diagnosis(report, rules.luck(lane) is not None)


def is_doubtful(lane: Lane) -> bool:
    """Whether a pass says little: its decisions were lucky, or it stores what it cannot hold."""
    return rules.luck(lane) is not None or any(s.surprising for s in lane.candidate.stored)


def _losses(totals: list[float], decisions: int) -> tuple[float | None, float | None]:
    if not decisions or not any(totals):
        return None, None
    return totals[0] / decisions, totals[1] / decisions


def report_of(run: EvaluationRun, lane: Lane) -> Report:
    """The report of one precision."""
    metric = rules.metric_of(
        run.subject, run.totals, lane.outcome.metric, run.settings.budget, run.labelled
    )
    measured = None if lane.done else metric
    made = rules.checks(lane, measured, run.totals)
    outcome = lane.outcome
    verdict: Verdict = "equivalent" if all(c.passed for c in made) else "not equivalent"
    if measured is not None and rules.doubtful(measured, run.totals):
        verdict = "inconclusive" if all(c.passed for c in made[:-1]) else verdict
    why = guesses(run.task, run.totals.tally, run.classes) if run.labelled else None
    if verdict == "equivalent" and why is not None:
        made.append(Check(name="better than chance", passed=False, detail=why))
        verdict = "inconclusive"
    if lane.no_memory is not None:
        verdict, made = "inconclusive", []
    losses = _losses(outcome.loss, outcome.decisions) if run.labelled else (None, None)
    paper = run.task.kind == "classification" and outcome.decisions > 0
    return Report(
        name=run.subject.name,
        kind="evaluation",
        task=run.task.kind,
        precision=lane.precision.name,
        verdict=verdict,
        checks=made,
        metric=measured,
        inputs=run.inputs,
        decisions=outcome.decisions,
        flips=outcome.flips if run.task.decides and not lane.done else None,
        ties=outcome.ties if run.task.decides and not lane.done else None,
        forecast=rules.forecast(lane, metric),
        certified=rules.certified(lane),
        delta_max=outcome.delta_max if paper else None,
        gamma_median=rules.median(outcome.gammas) if paper else None,
        loss_reference=losses[0],
        loss_candidate=losses[1],
        standardised=rules.standardised_of(lane),
        sites=sites_of(lane),
        least_robust=rules.least_robust(lane),
        warnings=_warnings(run, lane, verdict, measured),
        error=lane.failure or lane.no_memory,
        run=_run_facts(run, lane),
    )


def _warnings(run: EvaluationRun, lane: Lane, verdict: Verdict, metric: Any) -> list[str]:
    said = [*run.warnings, *lane.warnings]
    canary = lane.canary
    if canary is not None and canary.error is not None and lane.failure is None:
        said.append(f"{canary.text}; the verdict speaks for {lane.candidate.target}")
    elif canary is not None and (canary.difference or 0) > LARGE_DIFFERENCE:
        said.append(f"emulation and this device's own kernels part: {canary.text}")
    witness, precision_ = lane.witness, lane.precision
    idle = witness is not None and not witness.dtypes[precision_.dtype_name]
    if witness is not None and idle and lane.failure is None:
        others = [n for n, count in witness.dtypes.items() if count and n != precision_.dtype_name]
        ran = f": all ran in {' and '.join(others)}" if others else ", nor in another format"
        said.append(f"no operation computed in {precision_.dtype_name}{ran}")
    if not precision_.mixed and (names := complex_tensors(lane.candidate.model)):
        said.append(
            f"{', '.join(names)} stays complex, as with model.half() or model.bfloat16(); "
            f"model.to({precision_.dtype}) would make it real and lose the imaginary part"
        )
    said += lane.outcome.beside.warnings()
    said += beyond_range(lane.candidate.stored, lane.precision)
    wide = generous(metric, rules.usual(run.totals)) if metric is not None else None
    said += [wide] if wide is not None else []
    if verdict == "equivalent":
        said += [w for w in (rules.luck(lane), rules.mass_ties(lane)) if w]
        if metric is not None and metric.loss > SPENT * metric.budget:
            share = metric.loss / metric.budget
            said.append(f"{share:.0%} of the budget is spent")
    return said


def _run_facts(run: EvaluationRun, lane: Lane) -> Run:
    witness, canary = lane.witness, lane.canary
    flags = {}
    if run.device.type == "cuda":
        matmul = torch.backends.cuda.matmul
        flags["fp16_reduced_precision_reduction"] = bool(
            matmul.allow_fp16_reduced_precision_reduction
        )
        flags["bf16_reduced_precision_reduction"] = bool(
            matmul.allow_bf16_reduced_precision_reduction
        )
    return Run(
        device=str(run.device),
        target=lane.candidate.target,
        mode=lane.mode,  # type: ignore[arg-type]
        dtypes=dict(witness.dtypes) if witness else {},
        islands=list(witness.float32_modules) if witness and not lane.precision.mixed else [],
        canary=canary.text if canary else "",
        unsupported=[canary.text] if canary and canary.unsupported else [],
        deterministic=run.deterministic,
        reduction_flags=flags,
    )
