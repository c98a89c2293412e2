"""From what an evaluation has shown to the report of each precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_fp16.engine.canary import LARGE_DIFFERENCE
from pytest_fp16.engine.models import complex_tensors
from pytest_fp16.evaluation import verdict as rules
from pytest_fp16.evaluation.evidence import share
from pytest_fp16.evaluation.foreseen import by_chance, forecast
from pytest_fp16.evaluation.parts import told
from pytest_fp16.evaluation.precision_run import PrecisionRun
from pytest_fp16.evaluation.ranges import beyond_range, harmless_overflows, sites_of
from pytest_fp16.evaluation.soundness import explained, guesses
from pytest_fp16.report.message import generous
from pytest_fp16.report.model import Check, Metric, Report, Run, Verdict
from pytest_fp16.theory.rounding import FORMATS

if TYPE_CHECKING:
    from pytest_fp16.evaluation.run import EvaluationRun


#: Part of the budget that must be spent for a passing evaluation to be looked into.
SPENT = 0.5


def needs_diagnosis(report: Report) -> bool:
    """Whether a report fails, only just passes, or passes by luck."""
    if report.verdict == "not equivalent":
        return True
    return report.verdict == "equivalent" and (is_close(report.metric) or report.luck is not None)


def is_close(metric: Metric | None) -> bool:
    """Whether more of a budget is spent than is passed over in silence; half of it is not more."""
    return metric is not None and metric.loss > SPENT * metric.budget * (1 + 1e-9)


def is_doubtful(precision_run: PrecisionRun) -> bool:
    """Whether a pass says little: its decisions were lucky, or it stores what it cannot hold."""
    return rules.luck(precision_run) is not None or any(
        s.surprising for s in precision_run.candidate.stored
    )


def _losses(totals: list[float], decisions: int) -> tuple[float | None, float | None]:
    if not decisions or not any(totals):
        return None, None
    return totals[0] / decisions, totals[1] / decisions


def report_of(run: EvaluationRun, precision_run: PrecisionRun) -> Report:
    """The report of one precision."""
    metric = rules.metric_of(
        run.subject, run.totals, precision_run.outcome.metric, run.settings.budget, run.labelled
    )
    measured = None if precision_run.done else metric
    verdict, made = _judged(run, precision_run, measured)
    sites = sites_of(precision_run)
    foreseen = forecast(precision_run, metric, run.totals)
    of_a_pass = []
    if verdict == "equivalent":
        of_a_pass += by_chance(precision_run, foreseen)
        of_a_pass += harmless_overflows(sites, precision_run.precision)
        of_a_pass += rules.more_flips(made, precision_run)
    outcome = precision_run.outcome
    losses = _losses(outcome.loss, outcome.decisions) if run.labelled else (None, None)
    paper = run.task.kind == "classification" and outcome.decisions > 0
    return Report(
        name=run.subject.name,
        kind="evaluation",
        task=run.task.kind,
        precision=precision_run.precision.name,
        verdict=verdict,
        checks=made,
        metric=measured,
        inputs=run.inputs,
        decisions=outcome.decisions,
        flips=outcome.flips if run.task.decides and not precision_run.done else None,
        ties=outcome.ties if run.task.decides and not precision_run.done else None,
        forecast=foreseen,
        certified=rules.certified(precision_run),
        delta_max=outcome.delta_max if paper else None,
        gamma_median=rules.median(outcome.gammas) if paper else None,
        loss_reference=losses[0],
        loss_candidate=losses[1],
        standardised=rules.standardised_of(precision_run),
        sites=sites,
        least_robust=rules.least_robust(precision_run),
        luck=rules.luck(precision_run) if verdict == "equivalent" else None,
        warnings=[*_warnings(run, precision_run, verdict, measured), *of_a_pass],
        error=precision_run.failure or precision_run.no_memory,
        run=_run_facts(run, precision_run),
    )


def _judged(
    run: EvaluationRun, precision_run: PrecisionRun, metric: Metric | None
) -> tuple[Verdict, list[Check]]:
    """The verdict, and the checks that it rests on."""
    if precision_run.no_memory is not None:
        return "inconclusive", []
    made = rules.checks(precision_run, metric, run.totals)
    verdict: Verdict = "equivalent" if all(c.passed for c in made) else "not equivalent"
    if metric is not None and rules.doubtful(metric, run.totals):
        verdict = "inconclusive" if all(c.passed for c in made[:-1]) else verdict
    why = guesses(run.task, run.totals.tally, run.classes) if run.labelled else None
    if verdict == "equivalent" and why is not None:
        return "inconclusive", [*made, Check(name="better than chance", passed=False, detail=why)]
    own = explained(made, share(precision_run.outcome.moved), run.wanders)
    if verdict == "not equivalent" and own is not None:
        return "inconclusive", [*made, Check(name="deterministic", passed=False, detail=own)]
    return verdict, made


def _warnings(
    run: EvaluationRun, precision_run: PrecisionRun, verdict: Verdict, metric: Any
) -> list[str]:
    said = [*run.warnings, *precision_run.warnings]
    canary = precision_run.canary
    if canary is not None and canary.error is not None and precision_run.failure is None:
        said.append(f"{canary.text}; the verdict speaks for {precision_run.candidate.target}")
    elif canary is not None and (canary.difference or 0) > LARGE_DIFFERENCE:
        said.append(f"emulation and this device's own kernels part: {canary.text}")
    observer, precision_ = precision_run.observer, precision_run.precision
    idle = observer is not None and not observer.dtypes[precision_.dtype_name]
    if observer is not None and idle and precision_run.failure is None:
        others = [n for n, count in observer.dtypes.items() if count and n != precision_.dtype_name]
        ran = f": all ran in {' and '.join(others)}" if others else ", nor in another format"
        said.append(f"no operation computed in {precision_.dtype_name}{ran}")
    if not precision_.mixed and (names := complex_tensors(precision_run.candidate.model)):
        said.append(
            f"{', '.join(names)} stays complex, as with model.half() or model.bfloat16(); "
            f"model.to({precision_.dtype}) would make it real and lose the imaginary part"
        )
    said += precision_run.outcome.beside.warnings()
    if metric is not None and (shapes := precision_run.outcome.reshaped):
        said.append(f"in 16 bits outputs have the shape {shapes}: {metric.name} alone judges them")
    said += beyond_range(precision_run.candidate.stored, precision_run.precision)
    if precision_run.precision.low:
        said += precision_run.outcome.entering.warnings(FORMATS[precision_run.precision.dtype])
    if metric is not None:
        wide = generous(metric, rules.usual(run.totals))
        said += [wide] if wide is not None else []
    if verdict == "equivalent":
        said += [w for w in (rules.luck(precision_run), rules.mass_ties(precision_run)) if w]
        if lost := told(run.totals.lost_parts(precision_run.outcome.metric)):
            said.append(f"what the reference tells apart is lost, if it means anything: {lost}")
        if metric is not None and is_close(metric):
            share = metric.loss / metric.budget
            said.append(f"{share:.0%} of the budget is spent")
    return said


def _run_facts(run: EvaluationRun, precision_run: PrecisionRun) -> Run:
    observer, canary = precision_run.observer, precision_run.canary
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
        target=precision_run.candidate.target,
        mode=precision_run.mode,  # type: ignore[arg-type]
        dtypes=dict(observer.dtypes) if observer else {},
        islands=list(observer.float32_modules)
        if observer and not precision_run.precision.mixed
        else [],
        canary=canary.text if canary else "",
        unsupported=[canary.text] if canary and canary.unsupported else [],
        deterministic=run.deterministic,
        judged=run.judged,
        reduction_flags=flags,
    )
