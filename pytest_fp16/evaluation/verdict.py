"""The verdict of an evaluation: named checks, each able to fail on its own, and the forecast."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

from pytest_fp16.evaluation.agreement import Agreement
from pytest_fp16.evaluation.parts import told
from pytest_fp16.evaluation.precision_run import PrecisionRun
from pytest_fp16.evaluation.soundness import require_finite
from pytest_fp16.evaluation.totals import MetricTotals
from pytest_fp16.metric.own import UserTally, gained
from pytest_fp16.metric.tallies import metric_name
from pytest_fp16.report.figures import plural
from pytest_fp16.report.model import Certified, Check, Metric, Standardised
from pytest_fp16.subject import Evaluation
from pytest_fp16.theory.budget import allowed_loss, allows_a_class, beyond_gain, clamp, within
from pytest_fp16.theory.standardised import mean_allowed, spread_allowed

#: A candidate whose errors exceed an ideal emulation's by this factor has more than correlation.
BEYOND_IDEAL = 1.25
#: Outputs that moved by more than this, relative to their spread, survived by luck.
LUCK = 0.1
#: Beyond this share of exact ties the order of the classes decides.
MANY_TIES = 0.05


def checks(
    precision_run: PrecisionRun, metric: Metric | None, reference: MetricTotals
) -> list[Check]:
    """Every check that could be made; the last is of the metric, where there is one."""
    if precision_run.failure is not None:
        return [
            Check(
                name="16 bit ran", passed=False, detail=f"the model raised {precision_run.failure}"
            )
        ]
    if precision_run.outcome.incomparable:
        ran = _sixteen_bit_ran(precision_run)
        detail = f"the outputs of a batch have the shape {precision_run.outcome.reshaped}"
        shape = Check(name="same shape", passed=False, detail=detail)
        return [shape] if ran is None else [ran, shape]
    made = [_sixteen_bit_ran(precision_run), _finite(precision_run)]
    if precision_run.prediction.metric is not None and precision_run.theory is not None:
        made.append(_as_predicted(precision_run))
    if metric is not None and (lost := lost_whole(metric, reference, precision_run.outcome.metric)):
        made.append(Check(name="each class or output", passed=False, detail=lost))
    if metric is not None:
        refused = refused_by(precision_run.outcome.metric)
        made.append(_good_enough(metric, doubtful(metric, reference), refused))
    return [c for c in made if c is not None]


def lost_whole(metric: Metric, reference: MetricTotals, others: MetricTotals) -> str:
    """The classes or outputs whose loss fails a run, in words; empty where none does.

    A wide budget of the user's allows much. Without labels nobody knows what a class means; but a
    run that answers one class alone has none left.
    """
    allowed = allows_a_class(metric.budget, metric.budget_origin != "default")
    if allowed or not (metric.labelled or reference.answers_one(others)):
        return ""
    return told(reference.lost_parts(others))


def _sixteen_bit_ran(precision_run: PrecisionRun) -> Check | None:
    """Autocast may find nothing to cast, and a model may cast all it reads; but read it must."""
    precision, observer = precision_run.precision, precision_run.observer
    if observer is None or not precision.low:
        return None
    low, wide = observer.dtypes[precision.dtype_name], observer.dtypes["float32"]
    detail = f"{low} operations gave {precision.dtype_name}, {wide} float32"
    others = [name for name in ("float16", "bfloat16") if observer.dtypes[name]]
    if low == 0 and (others or (wide and not precision.mixed and not observer.read)):
        what = f"it ran in {others[0]}, as the program asks" if others else "all ran in float32"
        detail += f"; {what}, so this run proves nothing about {precision.dtype_name}"
        return Check(name="16 bit ran", passed=False, detail=detail)
    return Check(name="16 bit ran", passed=True, detail=detail)


def _finite(precision_run: PrecisionRun) -> Check:
    lost = precision_run.outcome.not_finite
    detail = f"{lost} outputs are NaN or infinite where the reference is finite"
    return Check(name="finite", passed=lost == 0, detail=detail if lost else "no output was lost")


def _as_predicted(precision_run: PrecisionRun) -> Check:
    errors, outcome = precision_run.outcome.errors, precision_run.outcome
    if precision_run.forecast_failure or precision_run.forecast_missing or not errors.count:
        why = (
            precision_run.forecast_missing
            or precision_run.forecast_failure
            or "no error could be standardised"
        )
        return Check(name="as predicted", passed=True, detail=f"not judged: {why}")
    limits = [
        ("spread of error over σ", errors.spread, spread_allowed(errors.inputs)),
        ("mean of error over σ", abs(errors.mean), mean_allowed(errors.inputs)),
    ]
    if precision_run.task.decides:
        limits.append(("flips", outcome.flips, precision_run.prediction.flips.allowed()))
    broken = [(name, is_, most) for name, is_, most in limits if is_ > most]
    said = ", ".join(
        f"{name} {is_:.3g} (allowed {most:.3g})" for name, is_, most in broken or limits
    )
    if not broken:
        return Check(name="as predicted", passed=True, detail=said)
    beyond = f"; {errors.exceeded} of {errors.count} errors exceed the worst-case bound"
    if _shared_by_emulation(precision_run):
        # Correlated rounding, errors beyond first order, what a program clips or keeps: all of
        # the arithmetic, and of no kernel.
        said += f": an ideal emulation has it too{beyond if errors.exceeded else ''}"
        return Check(name="as predicted", passed=True, excused=True, detail=said)
    said += ": an ideal emulation does not have it, so an operation rounds or computes otherwise"
    return Check(name="as predicted", passed=False, detail=said + beyond)


def _shared_by_emulation(precision_run: PrecisionRun) -> bool:
    """Whether an ideal emulation of the same batches strays from theory as far as the candidate."""
    if precision_run.ideal:
        return True
    look = precision_run.second_look
    if not look.ideal.count or not look.candidate.count:
        return False
    candidate, ideal = look.candidate, look.ideal
    sampling = 3.3 / math.sqrt(ideal.inputs)
    return (
        candidate.spread <= BEYOND_IDEAL * ideal.spread * (1 + sampling)
        and abs(candidate.mean - ideal.mean) <= 0.25 + ideal.spread * sampling
        and look.flips <= look.ideal_flips + 3 * math.sqrt(look.ideal_flips + 1)
    )


def doubtful(metric: Metric, reference: MetricTotals) -> bool:
    """Whether a metric of the user's own gains so much that it says nothing: its sign may be wrong.

    Those of ours are what they are, and may gain.
    """
    if not isinstance(reference.tally, UserTally):
        return False
    error = reference.tally.standard_error
    return beyond_gain(-metric.loss, metric.budget, usual(reference), error)


def usual(reference: MetricTotals) -> float:
    """The default budget, whatever the user's."""
    tally = reference.tally
    if isinstance(tally, UserTally):
        return tally.usual()
    return clamp(tally.standard_error, tally.scale, tally.grain)


def refused_by(totals: MetricTotals) -> str | None:
    """What a metric of the user's own raised on outputs of 16 bits; None if nothing."""
    return totals.tally.refused if isinstance(totals.tally, UserTally) else None


def _good_enough(metric: Metric, doubted: bool, refused: str | None) -> Check:
    if refused is not None:
        detail = f"{refused}; of float32's outputs it gives {metric.reference:.4g}"
        return Check(name="good enough", passed=False, detail=detail)
    if doubted:
        detail = gained(metric.name, -metric.loss, metric.budget)
        return Check(name="good enough", passed=False, detail=detail)
    lost = f"{metric.name} {metric.candidate:.4g}, reference {metric.reference:.4g}: "
    lost += f"loss {metric.loss:.3g}, budget {metric.budget:.3g} ({metric.budget_origin})"
    passed = within(metric.loss, metric.budget, metric.reference)
    return Check(name="good enough", passed=passed, detail=lost)


def metric_of(
    subject: Evaluation,
    reference: MetricTotals,
    candidate: MetricTotals,
    budget: float | str | None,
    labelled: bool,
) -> Metric:
    """The metric of both runs, and what may be lost."""
    tally = reference.tally
    if isinstance(tally, UserTally):
        require_finite(tally.value)
    allowed, origin = allowed_loss(budget, tally.value, usual(reference))
    value = candidate.value
    loss = tally.value - value
    return Metric(
        name=metric_name(reference.task, subject.metric, labelled, isinstance(tally, Agreement)),
        reference=tally.value,
        candidate=value,
        loss=loss if not math.isnan(loss) else math.inf,
        budget=allowed,
        budget_origin=origin,  # type: ignore[arg-type]
        labelled=labelled or subject.metric is not None,  # which reads them, whatever the task
    )


def certified_by_theory(precision_run: PrecisionRun) -> Certified:
    """Bounded and probable shares of the decisions."""
    said = precision_run.prediction
    if not said.decisions:
        return Certified()
    bounded = said.bounded / said.decisions if said.bounds_known else None
    return Certified(bounded=bounded, probable=said.probable / said.decisions)


def certified(precision_run: PrecisionRun) -> Certified:
    """The two shares of theory, and the one the lemma gives with the measured δ."""
    outcome = precision_run.outcome
    known = precision_run.task.kind == "classification" and outcome.decisions > 0
    measured = outcome.certified / outcome.decisions if known else None
    return certified_by_theory(precision_run).model_copy(update={"measured": measured})


def standardised_of(precision_run: PrecisionRun) -> Standardised | None:
    """The standardised errors and their limits."""
    errors = precision_run.outcome.errors
    if not errors.count:
        return None
    return Standardised(
        count=errors.count,
        spread=errors.spread,
        spread_allowed=spread_allowed(errors.inputs),
        mean=errors.mean,
        mean_allowed=mean_allowed(errors.inputs),
        bound_exceeded=errors.exceeded,
        median_abs=errors.median_abs,
    )


def least_robust(precision_run: PrecisionRun) -> list[int]:
    """Positions of the inputs that went wrong, then of those whose margins are the smallest."""
    near = [position for _, position in precision_run.prediction.nearest]
    return list(dict.fromkeys([*precision_run.outcome.wrong_inputs, *near]))


def more_flips(checks: Iterable[Check], precision_run: PrecisionRun) -> list[str]:
    """The warning of a pass with more flips than theory allows."""
    flips, allowed = precision_run.outcome.flips, precision_run.prediction.flips.allowed()
    if flips <= allowed or not any(check.excused for check in checks):
        return []
    return [
        f"{plural(flips, 'flip')} are more than rounding explains ({allowed} allowed): an ideal "
        "emulation has them too, so that no kernel is at fault; the budget alone judges them"
    ]


def luck(precision_run: PrecisionRun) -> str | None:
    """The warning that decisions survived although the outputs are far off."""
    error, spread = precision_run.outcome.moved
    if not precision_run.task.decides or spread <= 0 or (error / spread) ** 0.5 <= LUCK:
        return None
    flips, ties = precision_run.outcome.flips, precision_run.outcome.ties
    how = "are not safe" if flips or ties else "survived by luck"
    tied = f" and {plural(ties, 'tie')}" if ties else ""
    return (
        f"the decisions {how}: the outputs moved by {(error / spread) ** 0.5:.0%} of their own "
        f"spread, with {plural(flips, 'flip')}{tied}; other data may not be so kind"
    )


def mass_ties(precision_run: PrecisionRun) -> str | None:
    """The warning that many decisions fall to the first of equal classes."""
    ties, decisions = precision_run.outcome.ties, precision_run.outcome.decisions
    if not decisions or ties <= MANY_TIES * decisions:
        return None
    said = f"{ties} of {decisions} decisions tie exactly in {precision_run.precision.dtype_name}"
    order = "argmax takes the first of the tied classes, so the metric depends on their order"
    return f"{said}: {order}"


def median(values: list[float]) -> float | None:
    """The median of the values that are numbers; None where there is none."""
    finite = [v for v in values if not math.isnan(v)]
    return statistics.median(finite) if finite else None
