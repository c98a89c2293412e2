"""From a training that failed to culprit, mechanism and a cure that was tried."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import replace
from statistics import mean, stdev
from typing import TYPE_CHECKING, NamedTuple

from pytest_fp16.diagnosis.cures import LITTLE
from pytest_fp16.diagnosis.custom_functions import advised
from pytest_fp16.diagnosis.proposal import Proposal
from pytest_fp16.diagnosis.second_defect import second_defect
from pytest_fp16.diagnosis.silent import silently_lost
from pytest_fp16.diagnosis.stale_training import fresh_casts, stale_in_a_step
from pytest_fp16.diagnosis.training_cures import proposals
from pytest_fp16.diagnosis.training_price import price_of
from pytest_fp16.diagnosis.watched_run import culprit_of, watched_run, when
from pytest_fp16.diagnosis.weight_decay import vanished_decay
from pytest_fp16.engine.copies import make_model
from pytest_fp16.engine.emulation.wording import mechanism_of, of_the_step, variant_where
from pytest_fp16.engine.gradients.origins.found import Found
from pytest_fp16.engine.source import raised_at
from pytest_fp16.engine.training.train import RunResult
from pytest_fp16.precision import REFERENCE
from pytest_fp16.report.model import Culprit, Cure
from pytest_fp16.theory.budget import allowed_loss, within
from pytest_fp16.theory.limits import largest

if TYPE_CHECKING:
    from pytest_fp16.engine.gradients.check import GradientFindings
    from pytest_fp16.engine.training.runs import Runs
    from pytest_fp16.training.pairs import Pairs

#: Cures a diagnosis may try, each with two seeds at most; most that fail do so within a step. A
#: line, its function, its module and that one's parent leave room for three other precisions.
TRIES = 7
#: Of updates so many must be lost to rounding for what float32 weights cure to be laid to that.
UPDATES = 0.1


def diagnose_training(
    runs: Runs, pairs: Pairs, findings: GradientFindings | None
) -> tuple[Culprit | None, Cure | None]:
    """What is at fault in a training that is not equivalent, and a cure that was tried.

    The gradient check's culprit is taken where it raised an alarm. Else a run that broke is made
    again up to the step that broke it, which is watched; and a loss of metric alone is laid to what
    the check had let pass, to what leaves the range unseen, or else to what the successful cure
    changed.
    """
    culprit = findings.culprit if findings is not None else None
    if culprit is None and pairs.broke is not None:
        culprit = _watched(runs, pairs, pairs.broke[1])
    elif culprit is None and findings is not None and findings.suspect is not None:
        culprit = _of_a_loss(pairs, findings.suspect)
    elif culprit is None:
        culprit = _silent(runs, pairs)
        if culprit is None:
            decay = vanished_decay(runs, pairs.precision, pairs.worst[0].seed)
            culprit = _of_a_loss(pairs, decay)
    scale = findings.loss_scale if findings is not None else None
    subject = runs.subject_for(pairs.precision)
    model = make_model(subject.model)
    stale = stale_in_a_step(runs, pairs.precision, pairs.worst[1].seed)
    others = proposals(subject, model, pairs.precision, culprit, scale)
    every = itertools.chain(fresh_casts(stale), others)
    vain: list[str] = []
    chosen = _chosen(runs, pairs, itertools.islice(every, TRIES), culprit, vain)
    if chosen is None:
        if vain:
            pairs.notes.append(f"cures that were tried and did not pass: {'; '.join(vain)}")
        advice = advised(culprit, pairs.precision, runs.place.target)
        return culprit or _unexplained(pairs), advice
    proposal, cure = chosen
    left = second_defect(runs, pairs.precision, proposal)
    pairs.notes += [left] if left is not None else []
    if proposal.kind == "fresh casts":
        return stale, cure
    return culprit or _attributed(pairs, proposal, findings), cure


def _chosen(
    runs: Runs,
    pairs: Pairs,
    every: Iterable[Proposal],
    culprit: Culprit | None,
    vain: list[str],
) -> tuple[Proposal, Cure] | None:
    """The first cure that is verified, or mends the culprit; else the first that loses nothing.

    What mends the culprit, and is merely not settled, is likelier its cure than others. One that
    leaves little in 16 bits gives way to another precision.
    """
    promising = dear = None
    for proposal in every:
        if dear is not None and proposal.precision is None:
            continue
        cure = _tried(runs, pairs, proposal, vain)
        if cure is None or _by_other_means(runs, pairs, proposal):
            continue
        aimed = culprit is not None and proposal.points_to == culprit.module
        leaves = cure.price is not None and cure.price.float32_share > LITTLE
        if dear is None and leaves and proposal.precision is None and (cure.verified or aimed):
            dear = proposal, cure
        elif cure.verified or aimed:
            return proposal, cure
        promising = promising or (proposal, cure)
    return dear or promising


def _tried(runs: Runs, pairs: Pairs, proposal: Proposal, vain: list[str]) -> Cure | None:
    """The cure, if training loses nothing with it: with the worst seed and another one, on average.

    One run that does not break may be luck, and one that loses a little more may be none. It is
    verified where the rules of a verdict have nothing against it. What loses too much is added to
    `vain`, with how nearly it passed.
    """
    references = _references(runs, pairs)
    budget = _allowed(runs, pairs, references)
    wanted, metric, made = mean(r.metric for r in references), [], []
    for reference in references:
        result = _cured(runs, pairs, proposal, reference.seed)
        metric.append(result.metric)
        made.append((reference, result))
        # Of those that follow, the best that can be hoped for is that they lose nothing.
        hoped = mean([*metric, *(r.metric for r in references[len(metric) :])])
        if result.ended != "finished":
            vain.append(f"{proposal.description} (seed {reference.seed} ended: {result.ended})")
            return None
        if not within(wanted - hoped, budget, wanted):
            seeds = " and ".join(str(r.seed) for r in references[: len(metric)])
            known = mean(r.metric for r in references[: len(metric)])
            how = f"{mean(metric):.3g}, reference {known:.3g}"
            vain.append(f"{proposal.description} ({how}, budget {budget:.2g}, seed {seeds})")
            return None
    unsettled = pairs.unsettled(runs, made, budget)
    return Cure(
        kind=proposal.kind,
        modules=proposal.modules,
        precision=proposal.precision.name if proposal.precision is not None else None,
        verified=unsettled is None,
        description=proposal.description,
        verdict="equivalent" if unsettled is None else "inconclusive",
        unsettled=unsettled or "",
        metric=mean(metric),
        reference=wanted,
        budget=budget,
        seeds=[reference.seed for reference in references],
        price=price_of(runs, pairs.precision, references[0].seed, proposal),
    )


def _by_other_means(runs: Runs, pairs: Pairs, proposal: Proposal) -> bool:
    """Whether a cure helps as well without what it is said to mend."""
    if proposal.control is None:
        return False
    other = replace(proposal, amendment=proposal.control, control=None)
    return _tried(runs, pairs, other, []) is not None


def _references(runs: Runs, pairs: Pairs) -> list[RunResult]:
    """The 32-bit runs a cure is held against: that of the worst seed, then one of another."""
    worst, _ = pairs.worst
    if runs.settings.seeds == 1:
        return [worst]
    known = next((r for r, _ in pairs.pairs if r.seed != worst.seed), None)
    other = known or runs.run(REFERENCE, worst.seed + 1)
    return [worst, other] if other.ended == "finished" else [worst]


def _cured(runs: Runs, pairs: Pairs, proposal: Proposal, seed: int) -> RunResult:
    if proposal.precision is not None:
        return runs.run(proposal.precision, seed)
    return runs.fresh(pairs.precision, seed, proposal.amendment, proposal.subject)


def _allowed(runs: Runs, pairs: Pairs, references: list[RunResult]) -> float:
    """The loss that a cure may show: the budget of the last look.

    Before any it is the default one of these runs, and no less than twice the resolution.
    """
    if pairs.look is not None:
        return pairs.look.budget
    score, metrics = references[0].score, [r.metric for r in references]
    resolution = 2 * score.resolution if score is not None else 0.0
    usual = largest(resolution, stdev(metrics) if len(metrics) > 1 else None)
    return allowed_loss(runs.settings.budget, metrics[0], usual)[0]


def _silent(runs: Runs, pairs: Pairs) -> Culprit | None:
    """What left the range in the run that lost most, though it stayed finite."""
    try:
        found = silently_lost(runs, pairs.precision, pairs.worst[1].seed)
    except Exception:  # the verdict stands whether or not the run lets itself be watched
        return None
    return _of_a_loss(pairs, found)


def _of_a_loss(pairs: Pairs, found: Culprit | None) -> Culprit | None:
    """What is known of it, behind what was lost."""
    if found is None:
        return None
    return found.model_copy(update={"evidence": f"{_lost(pairs)}; {found.evidence}"})


def _watched(runs: Runs, pairs: Pairs, result: RunResult) -> Culprit | None:
    """Run again up to the step that broke it, and watch that step."""
    if result.ended == "diverged" or (result.failed_at is None and result.ended != "raised"):
        return None
    try:
        found = _replayed(runs, pairs, result)
        if found is None:  # a buffer is looked at when its epoch is over, and was lost before
            found = _replayed(runs, pairs, result, whole=True)
    except Exception:  # the verdict stands whether or not the failure lets itself be watched
        found = None
    if result.ended == "raised" and not isinstance(found, Found):
        return _raised(result, found if isinstance(found, _Raised) else _Raised())
    if not isinstance(found, Found):
        return None
    return culprit_of(found, pairs.precision, result.seed, result.failed_at)


class _Raised(NamedTuple):
    """Where an error came from: a module, ``"<loss>"`` or ``"<optimizer>"``; the user's line."""

    module: str = ""
    operation: str = ""
    source: str | None = None


def _replayed(
    runs: Runs, pairs: Pairs, result: RunResult, whole: bool = False
) -> Found | _Raised | None:
    """What a second run shows at the step that broke the first, or in the whole of its epoch."""
    if result.failed_at is None:
        return None
    failed = result.failed_at
    whole_epoch = failed[0] if whole else None
    seen = watched_run(
        runs, pairs.precision, result.seed, lambda at: at == failed or at[0] == whole_epoch, failed
    )
    if seen is None:
        return None
    origin, error = seen.origin, seen.error
    if error is None:
        return origin.cause
    raised = _Raised(origin.failed_in, origin.raised_by, raised_at(error))
    return origin.behind(error) or raised


def _raised(result: RunResult, where: _Raised) -> Culprit:
    said = result.error or ""
    return Culprit(
        module="<optimizer>" if of_the_step(said) else where.module,
        operation=where.operation,
        mechanism=mechanism_of(said),
        evidence=said + when(result.seed, result.failed_at),
        source=where.source,
        variant=variant_where(said, where.operation),
    )


def _attributed(pairs: Pairs, proposal: Proposal, findings: GradientFindings | None) -> Culprit:
    """The culprit a cure points to, where nothing else named one."""
    module, mechanism = proposal.points_to, proposal.mechanism
    lost = findings.figures.get("updates_lost") if findings is not None else None
    if mechanism == "absorption" and lost is not None and lost < UPDATES:
        module, mechanism = "", "precision-loss"  # another precision mends much else
    if pairs.broke is not None and pairs.broke[1].ended == "nan" and mechanism == "absorption":
        module, mechanism = "", "overflow"  # what is merely lost beside another stays finite
    elif pairs.broke is None and mechanism == "overflow":
        mechanism = "underflow"  # it is the range that helps, and nothing became infinite
    # Another precision mends much at once.
    much = "; which part of it matters was not found" if proposal.precision is not None else ""
    return Culprit(
        module=module,
        operation=proposal.operation,
        mechanism=mechanism,
        evidence=f"{_lost(pairs)}; gone with the cure ({proposal.description}){much}",
    )


def _unexplained(pairs: Pairs) -> Culprit:
    return Culprit(module="", operation="", mechanism="precision-loss", evidence=_lost(pairs))


def _lost(pairs: Pairs) -> str:
    if pairs.broke is not None:
        _, result = pairs.broke
        return f"the run of seed {result.seed} ended: {result.error or result.ended}"
    if pairs.look is None or not math.isfinite(pairs.look.mean):
        return "the run broke"
    return f"mean loss {pairs.look.mean:.3g} of the metric over {pairs.look.n} seed(s)"
