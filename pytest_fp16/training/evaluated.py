"""What evaluating a training's own weights tells of a loss that no gradient explains.

A model may lose its metric where it is evaluated, and not where it is trained: it rounds what it is
given, or computes what it returns in another way. And a gradient scaler skips one step after the
other, once weights have grown beyond what a format bears: such a run ends where nothing is said. An
evaluation's diagnosis names the operation.
"""

from __future__ import annotations

from pytest_fp16.engine.training.runs import Runs
from pytest_fp16.engine.training.train import RunResult, trained
from pytest_fp16.evaluation.examined import examine_evaluation
from pytest_fp16.precision import REFERENCE, Precision
from pytest_fp16.report.figures import plural
from pytest_fp16.report.model import Culprit, Report
from pytest_fp16.subject import Evaluation
from pytest_fp16.training.pairs import Pairs

#: The share of a training's loss that has to be there without any training in 16 bits.
SHARE = 0.5


def vague(culprit: Culprit | None) -> bool:
    """Whether a culprit says no more than that something is lost, or that gradients are others."""
    if culprit is None:
        return True
    unnamed = culprit.operation in ("", "backward") and culprit.variant is None
    return unnamed and culprit.mechanism == "precision-loss"


def lost_when_evaluated(runs: Runs, pairs: Pairs) -> Culprit | None:
    """The culprit of the evaluation, where it alone costs half of what the training lost.

    Or where it alone is not finite, at the end of a run.
    """
    if pairs.broke is not None:
        return _lost_in_the_end(runs, pairs, pairs.broke[1])
    if pairs.look is None or not pairs.pairs:
        return None
    report = _evaluated(runs, pairs, REFERENCE, pairs.worst[0].seed)
    if report is None:
        return None
    metric, culprit = report.metric, report.culprit
    if metric is None or culprit is None or not metric.loss >= SHARE * pairs.look.mean:
        return None
    what = (
        f"32-bit weights have {metric.name} {metric.candidate:.3g} evaluated in 16 bits, "
        f"{metric.reference:.3g} in 32; {culprit.evidence}"
    )
    return culprit.model_copy(update={"evidence": what})


def _lost_in_the_end(runs: Runs, pairs: Pairs, result: RunResult) -> Culprit | None:
    """What makes the outputs of a trained model NaN or infinite, where no step has ended a run."""
    if result.ended != "nan" or result.failed_at is not None:
        return None
    report = _evaluated(runs, pairs, pairs.precision, result.seed)
    if report is None or report.culprit is None or report.verdict != "not equivalent":
        return None
    skipped = f", {plural(result.lost, 'step')} having been skipped" if result.lost else ""
    what = f"in the end of the run of seed {result.seed}{skipped}: {report.culprit.evidence}"
    return report.culprit.model_copy(update={"evidence": what})


def _evaluated(runs: Runs, pairs: Pairs, by: Precision, seed: int) -> Report | None:
    """The report of the model that was trained in a precision; None where it has none.

    What cannot be evaluated apart from its training stays unexplained.
    """
    given = runs.subject_for(pairs.precision)  # with what a plan keeps in float32
    try:
        model = trained(given, by, seed, runs.state(seed), runs.place).float()
        subject = Evaluation(
            *(model, given.eval_data, True, given.task, given.metric, given.forward),
            ignore_index=given.ignore_index,
            name=given.name,
        )
        alone = {"precisions": (pairs.precision.name,), "plan": None, "json": None}
        return examine_evaluation(subject, runs.settings.with_(**alone))[0]
    except Exception:
        return None
