"""The report of a training: what the pairs of runs say, in the schema's words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from pytest_fp16.report.message import generous
from pytest_fp16.report.model import Certified, Check, Forecast, Metric, Report, Run
from pytest_fp16.theory.budget import LARGEST, allowed_loss
from pytest_fp16.theory.margin import (
    certified_by_lemma,
    classification_tolerance,
    floating_point_error,
)
from pytest_fp16.theory.seeds_ahead import MOST
from pytest_fp16.training.remarks import warnings_of

if TYPE_CHECKING:
    from pytest_fp16.engine.gradients.check import GradientFindings
    from pytest_fp16.engine.training.runs import Runs
    from pytest_fp16.engine.training.train import RunResult
    from pytest_fp16.precision import Precision
    from pytest_fp16.theory.seeds import Look
    from pytest_fp16.training.pairs import Pairs

#: Further seeds that hardly anybody will make: what else settles it is said as well.
_MANY = 30

_ENDS = {
    "nan": "ended in NaN or infinity",
    "infinite loss": "has a loss that is infinite up to the end, though its weights and gradients "
    "are finite:",
    "diverged": "diverged",
    "collapsed scale": "lost its loss scale, as step after step was skipped,",
    "raised": "raised an error",
    "out of memory": "ran out of memory",
    "finished": "finished",
}


def report_of(
    runs: Runs, pairs: Pairs, forecast: GradientFindings | None, culprit: Any, cure: Any
) -> Report:
    """The report of one precision."""
    task = runs.valid.task
    paper = _paper(pairs) if task.kind == "classification" else {}
    first = pairs.broke or (pairs.pairs[0] if pairs.pairs else None)
    error = pairs.broke[1].error if pairs.broke else None
    metric = _metric(runs, pairs)
    return Report(
        name=runs.subject.name,
        kind="training",
        task=task.kind,
        precision=pairs.precision.name,
        verdict=pairs.verdict,  # type: ignore[arg-type]
        checks=_checks(pairs),
        metric=metric,
        inputs=first[0].score.inputs if first and first[0].score else 0,
        forecast=_forecast(forecast),
        certified=Certified(measured=paper.get("certified")),
        delta_max=paper.get("delta_max"),
        gamma_median=paper.get("gamma_median"),
        loss_reference=_final_loss(first[0]) if first else None,
        loss_candidate=_final_loss(first[1]) if first else None,
        culprit=culprit,
        cure=cure,
        warnings=[*warnings_of(runs, pairs, forecast), *_wide(metric, pairs)],
        error=error,
        run=_run(runs, pairs.precision, first[1] if first else None),
        training=_facts(runs, pairs, forecast, paper),
    )


def _wide(metric: Metric | None, pairs: Pairs) -> list[str]:
    """That a budget of the user's is many times the default one."""
    if metric is None or pairs.look is None:
        return []
    said = generous(metric, pairs.usual)
    return [said] if said is not None else []


def _final_loss(result: RunResult) -> float | None:
    return result.losses[-1] if result.losses else None


def _checks(pairs: Pairs) -> list[Check]:
    checks = []
    shown = pairs.broke or (pairs.pairs[-1] if pairs.pairs else None)
    if shown is not None and shown[1].dtypes:
        checks.append(_ran(pairs, shown[1]))
    if pairs.broke is not None:
        checks.append(Check(name="finite", passed=False, detail=how_it_ended(pairs.broke[1])))
    elif pairs.pairs:
        detail = f"all {len(pairs.pairs)} runs finished with finite weights and outputs"
        checks.append(Check(name="finite", passed=True, detail=detail))
    if lost := pairs.lost:
        checks.append(Check(name="each class or output", passed=False, detail=lost))
    if pairs.drift is not None:
        checks.append(Check(name="same over seeds", passed=False, detail=pairs.drift))
    elif pairs.look is not None:
        passed = pairs.look.outcome == "equivalent" and pairs.verdict != "inconclusive"
        checks.append(Check(name="same over seeds", passed=passed, detail=_over_seeds(pairs)))
    elif pairs.unmade:
        checks.append(Check(name="same over seeds", passed=False, detail=pairs.unmade))
    return checks


def _ran(pairs: Pairs, result: RunResult) -> Check:
    wanted = pairs.precision.dtype_name
    count = result.dtypes.get(wanted, 0)
    state = ", ".join(result.state_dtypes.get("parameters", []))
    moments = ", ".join(result.state_dtypes.get("optimizer", [])) or "none"
    detail = (
        f"{count} of {sum(result.dtypes.values())} results of the first step were {wanted}; "
        f"parameters {state}, optimizer state {moments}"
    )
    return Check(name="16 bit ran", passed=count > 0, detail=detail)


def how_it_ended(result: RunResult) -> str:
    """A sentence: which run ended how, where, and with what error."""
    where = ""
    if result.failed_at is not None:
        where = f" in epoch {result.failed_at[0] + 1}, step {result.failed_at[1] + 1}"
    if result.ended == "infinite loss":
        where = f"{where.replace(' in', ' from', 1)} on"
    error = f" ({result.error})" if result.error else ""
    return (
        f"the {result.precision} run of seed {result.seed} {_ENDS[result.ended]}{where}{error}; "
        f"its 32-bit twin {'has none' if result.ended == 'infinite loss' else 'did not'}"
    )


def _over_seeds(pairs: Pairs) -> str:
    look = pairs.look
    assert look is not None
    proves_nothing = pairs.proves_nothing
    if pairs.verdict == "inconclusive" and proves_nothing is not None:
        return proves_nothing
    limits = f"95 % limits {look.lower:.3g} to {look.upper:.3g}"
    if not math.isfinite(look.lower):
        limits = "no limits yet"
    text = f"mean loss {look.mean:.3g} over {look.n} pair(s), {limits}, budget {look.budget:.3g}"
    if pairs.further and look.budget > look.resolution:
        text += f" (the spread of {look.runs} 32-bit runs)"
    if pairs.verdict == "inconclusive" and pairs.missing:
        text += f"; {_what_settles(look, pairs.missing)}"
    return text


def _what_settles(look: Look, missing: int) -> str:
    """How to come to a verdict: more seeds, but for data or a budget that none could settle."""
    if look.grain > LARGEST:  # more than a default budget has for want of data
        return (
            f"one decision of eval_data alone is {100 * look.grain:.3g} points: evaluate on more "
            "data, which settles more than seeds do"
        )
    if missing >= MOST:
        return "no number of seeds settles a mean loss that lies on its budget: set another budget"
    said = f"about {missing} more seed(s) would settle it: seeds={look.n + missing}"
    return said if missing < _MANY else f"{said}; a wider budget= takes fewer"


def _metric(runs: Runs, pairs: Pairs) -> Metric | None:
    compared = pairs.pairs or ([pairs.broke] if pairs.broke else [])
    scores = [r.score for r, _ in compared if r.score is not None]
    if not scores:
        return None
    reference = sum(r.metric for r, _ in compared) / len(compared)
    candidate = sum(c.metric for _, c in compared) / len(compared)
    if pairs.broke is not None:
        reference, candidate = pairs.broke[0].metric, pairs.broke[1].metric
    budget, origin = allowed_loss(runs.settings.budget, reference, scores[0].resolution)
    if pairs.look is not None:
        budget = pairs.look.budget
    return Metric(
        name=scores[0].name,
        reference=reference,
        candidate=candidate,
        loss=reference - candidate,
        budget=budget,
        budget_origin=origin,  # type: ignore[arg-type]
        labelled=True,
    )


def _forecast(findings: GradientFindings | None) -> Forecast | None:
    if findings is None:
        return None
    return Forecast(
        verdict=findings.verdict,  # type: ignore[arg-type]
        reason=findings.reason,
        method="gradient check",
        metric_loss=math.nan,
        flips_expected=math.nan,
        flips_allowed=0,
        notes=list(findings.notes),
    )


def _paper(pairs: Pairs) -> dict[str, float]:
    """The paper's δ against Γ between the trained pairs, and the share its lemma certifies."""
    deltas, gammas, certified = [], [], []
    for reference, candidate in pairs.pairs:
        if reference.score is None or candidate.score is None:
            continue
        one, two = reference.score.predictions, candidate.score.predictions
        if one.shape != two.shape or not one.numel():
            continue
        deltas.append(floating_point_error(one, two))
        gammas.append(classification_tolerance(one))
        certified.append(certified_by_lemma(one, two))
    if not deltas:
        return {}
    delta, gamma = torch.cat(deltas), torch.cat(gammas)
    return {
        "delta_max": float(delta.max()),
        "delta_median": float(delta.median()),
        "gamma_median": float(gamma.median()),
        "certified": float(torch.cat(certified).double().mean()),
    }


def _run(runs: Runs, precision: Precision, result: RunResult | None) -> Run:
    canary = runs.canary(precision)
    return Run(
        device=str(runs.device),
        target=runs.place.target,
        mode=runs.mode,  # type: ignore[arg-type]
        dtypes=result.dtypes if result is not None else {},
        canary=canary.text if canary else "",
        unsupported=[canary.text] if canary and canary.unsupported else [],
    )


def _facts(
    runs: Runs, pairs: Pairs, forecast: GradientFindings | None, paper: dict[str, float]
) -> dict[str, Any]:
    every = [*pairs.pairs, *([pairs.broke] if pairs.broke else [])]
    look = pairs.look
    return {
        "seeds": [r.seed for r, _ in every],
        "allowance": runs.settings.seeds,
        "reference_metrics": [r.metric for r, _ in every],
        "further_reference_metrics": [r.metric for r in pairs.further],
        "candidate_metrics": [c.metric for _, c in every],
        "losses": [r.metric - c.metric for r, c in every],
        # The word "nan" would be read back from JSON as the number.
        "ended": ["not finite" if c.ended == "nan" else c.ended for _, c in every],
        "mean_loss": look.mean if look else None,
        "lower": look.lower if look else None,
        "upper": look.upper if look else None,
        "budget": look.budget if look else None,
        "seeds_missing": pairs.missing,
        "skipped_steps": [c.skipped for _, c in every],
        "loss_scale": [c.scale for _, c in every],
        "epoch_losses": {
            "reference": [r.losses for r, _ in every],
            "candidate": [c.losses for _, c in every],
        },
        "paper": paper,
        "gradient_check": dict(forecast.figures) if forecast is not None else {},
    }
