"""What evaluating a 32-bit training's own weights tells of a loss that no gradient explains.

A model may lose its metric where it is evaluated, and not where it is trained: it rounds what it is
given, or computes what it returns in another way. An evaluation's diagnosis names the operation.
"""

from __future__ import annotations

from pytest_fp16.engine.training.runs import Runs
from pytest_fp16.engine.training.train import trained
from pytest_fp16.evaluation.examined import examine_evaluation
from pytest_fp16.precision import REFERENCE
from pytest_fp16.report.model import Culprit
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
    """The culprit of the evaluation, where it alone costs half of what the training lost."""
    if pairs.broke is not None or pairs.look is None or not pairs.pairs:
        return None
    seed = pairs.worst[0].seed
    given = runs.subject_for(pairs.precision)  # with what a plan keeps in float32
    try:
        model = trained(given, REFERENCE, seed, runs.state(seed), runs.place)
        subject = Evaluation(
            *(model, given.eval_data, True, given.task, given.metric, given.forward),
            ignore_index=given.ignore_index,
            name=given.name,
        )
        alone = {"precisions": (pairs.precision.name,), "plan": None, "json": None}
        report = examine_evaluation(subject, runs.settings.with_(**alone))[0]
    except Exception:
        return None  # what cannot be evaluated apart from its training stays unexplained
    metric, culprit = report.metric, report.culprit
    if metric is None or culprit is None or not metric.loss >= SHARE * pairs.look.mean:
        return None
    what = (
        f"32-bit weights have {metric.name} {metric.candidate:.3g} evaluated in 16 bits, "
        f"{metric.reference:.3g} in 32; {culprit.evidence}"
    )
    return culprit.model_copy(update={"evidence": what})
