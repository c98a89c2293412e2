"""Pairs of runs, one per seed: added until they settle a verdict."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import count, islice
from statistics import fmean, stdev

from pytest_fp16.engine.training.runs import Runs
from pytest_fp16.engine.training.train import RunResult
from pytest_fp16.engine.training.untaught import learned_nothing, remarked, unmoved
from pytest_fp16.errors import ModelError
from pytest_fp16.metric.own import gained
from pytest_fp16.precision import PRECISIONS, REFERENCE, Precision
from pytest_fp16.report.figures import loss_of
from pytest_fp16.settings import Settings
from pytest_fp16.theory.budget import allowed_loss, allows_a_class, beyond_gain
from pytest_fp16.theory.limits import largest
from pytest_fp16.theory.seeds import Look, sequential
from pytest_fp16.theory.seeds_ahead import further_runs, seeds_missing
from pytest_fp16.training.classes import lost_in_all

#: A default budget that is more than this share of the metric itself is wide: a convention.
WIDE = 0.1
#: Seeds with which a 32-bit training learns nothing before no others are tried.
UNTAUGHT = 2


@dataclass
class Pairs:
    """The pairs of one precision, and what they say.

    Attributes:
        precision: of the candidate.
        pairs: (reference, candidate), one per seed, that can be compared.
        further: 32-bit runs of further seeds, which tell the budget better.
        look: the last look at their losses; None before the first.
        broke: the candidate's run that ended where its 32-bit twin did not.
        unmade: why a run could not be made at all (no memory).
        missing: how many more seeds would settle it.
        start: the metric of the weights that training starts from; None where it is not known.
        drift: why the runs are no trainings of one kind; see `engine.training.repeats`.
        notes: seeds that were left out, and why.
        asked: whether the budget is the user's own.
    """

    precision: Precision
    pairs: list[tuple[RunResult, RunResult]] = field(default_factory=list)
    further: list[RunResult] = field(default_factory=list)
    look: Look | None = None
    broke: tuple[RunResult, RunResult] | None = None
    unmade: str | None = None
    missing: int = 0
    start: float | None = None
    drift: str | None = None
    notes: list[str] = field(default_factory=list)
    asked: bool = False

    @property
    def losses(self) -> list[float]:
        """Reference minus candidate, per pair."""
        return [r.metric - c.metric for r, c in self.pairs]

    @property
    def worst(self) -> tuple[RunResult, RunResult]:
        """The pair a cure has to mend: the one that broke, or else that with the largest loss."""
        return self.broke or max(self.pairs, key=lambda pair: pair[0].metric - pair[1].metric)

    @property
    def verdict(self) -> str:
        """``"equivalent"``, ``"not equivalent"`` or ``"inconclusive"``."""
        if self.drift is not None:
            return "inconclusive"
        if self.broke is not None:
            return "not equivalent"
        if self.look is None or self.unmade is not None or self.look.outcome == "undecided":
            return "inconclusive"
        if self.look.outcome == "equivalent" and self.proves_nothing is not None:
            return "inconclusive"
        return "not equivalent" if self.lost else self.look.outcome

    @property
    def lost(self) -> str:
        """Classes that no 16-bit run learns, in words; a wide budget of the user's allows that."""
        allowed = self.look is not None and allows_a_class(self.look.budget, self.asked)
        return "" if allowed else lost_in_all(self.pairs)

    @property
    def proves_nothing(self) -> str | None:
        """Why runs that lost nothing prove nothing."""
        return self.elsewhere or self.untaught or self.gained or self.idle

    @property
    def elsewhere(self) -> str | None:
        """Why runs prove nothing of a format: nothing of their first steps was computed in it."""
        ran = [c.dtypes for _, c in self.pairs if c.dtypes]
        wanted = self.precision.dtype_name
        if not ran or not self.precision.low or any(dtypes.get(wanted) for dtypes in ran):
            return None
        others = sorted(set().union(*ran))
        ask = "does the step enter an autocast of its own, or switch it off?"
        if self.precision.mixed and {"float16", "bfloat16"}.isdisjoint(others):
            ask = (
                "is there no operation that autocast casts (a matrix product, a convolution), or "
                "does the step switch it off?"
            )
        return (
            f"nothing was computed in {wanted}: all ran in {' and '.join(others)}, so these runs "
            f"prove nothing about it; {ask}"
        )

    @property
    def untaught(self) -> str | None:
        """Why runs that lost nothing prove nothing: their 32-bit twins had learned nothing."""
        made = [*self.pairs, *([self.broke] if self.broke is not None else [])]
        return learned_nothing([r.score for r, _ in made])

    @property
    def idle(self) -> str | None:
        """Why the budget is none: a training that does nothing, or half of it, would pass too."""
        if self.start is None or self.look is None:
            return None
        mean = fmean(r.metric for r, _ in self.pairs)
        return unmoved(self.start, mean, self.look.budget, self.wide, self.name)

    @property
    def name(self) -> str:
        """The metric's; empty where no run has a score."""
        return next((r.score.name for r, _ in self.pairs if r.score is not None), "")

    @property
    def wide(self) -> bool:
        """Whether a default budget, two spreads of the 32-bit runs, lets nearly anything pass."""
        if self.look is None or self.look.reference_spread is None:
            return False
        return self.look.budget > WIDE * abs(fmean(r.metric for r, _ in self.pairs))

    @property
    def usual(self) -> float:
        """The default budget that these runs give, whatever the user's."""
        runs = [*(r for r, _ in self.pairs), *self.further]
        spread = stdev(r.metric for r in runs) if len(runs) > 1 else None
        return largest(self.look.resolution if self.look is not None else 0.0, spread)

    @property
    def gained(self) -> str | None:
        """Why a metric of the user's own that gained proves nothing: its sign may be wrong."""
        scores = [r.score for r, _ in self.pairs if r.score is not None]
        if self.look is None or not scores or not scores[0].own:
            return None
        if not beyond_gain(-self.look.mean, self.look.budget, self.usual):
            return None
        return gained(scores[0].name, -self.look.mean, self.look.budget)

    def unsettled(
        self, runs: Runs, tried: list[tuple[RunResult, RunResult]], budget: float
    ) -> str | None:
        """Why runs of a cure that lose no more than a budget settle nothing; None where they do.

        A verdict would not take them for an equivalence either. And where they gain more than half
        of what training brings in 32 bits, it is too brief for so few seeds to tell.
        """
        precision = PRECISIONS[tried[0][1].precision]  # a cure's may be another one than failed
        trial = Pairs(precision, tried, start=runs.start(r.seed for r, _ in tried))
        trial.look = replace(_look(trial, runs.settings), budget=budget)
        trial.asked = runs.settings.budget is not None
        if trial.proves_nothing is not None or trial.lost or trial.start is None:
            return trial.proves_nothing or trial.lost or None
        gain, brought = -trial.look.mean, fmean(r.metric for r, _ in tried) - trial.start
        if gain <= max(budget, brought / 2):
            return None
        return (
            "it gains more than half of what training brings in 32 bits, which is too brief for so "
            "few seeds to tell; train longer, or apply it and check again"
        )


def compare(runs: Runs, precision: Precision, wary: bool = False) -> Pairs:
    """Add pairs until they settle it, a run breaks, or the allowance is spent.

    Then, where the budget is what is not known well enough, further 32-bit runs.

    Args:
        runs: makes them.
        precision: of the candidate.
        wary: a failure is expected, which may strike in some runs and not in the first: nothing
            but the whole allowance shows an equivalence.

    Raises:
        ModelError: the 32-bit training itself fails.
    """
    pairs = Pairs(precision, asked=runs.settings.budget is not None)
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
        untaught = pairs.untaught is not None
        if pairs.look.outcome == "not equivalent" or (untaught and len(pairs.pairs) >= UNTAUGHT):
            return pairs
        if pairs.look.outcome == "equivalent" and not untaught and not wary:
            return _settled(pairs, runs)
    if pairs.untaught is not None:
        return pairs
    if pairs.look is not None and pairs.look.outcome == "equivalent":
        return _settled(pairs, runs)
    _sharpen(pairs, runs)
    if pairs.look is not None:
        pairs.missing = seeds_missing(pairs.look, pairs.losses, allowance)
    return _settled(pairs, runs)


def _sharpen(pairs: Pairs, runs: Runs) -> None:
    """Make 32-bit runs of further seeds, as long as the next look at them may settle it."""
    allowance = runs.settings.seeds
    seeds = count(allowance)
    while pairs.look is not None:
        more = further_runs(pairs.look, pairs.losses, allowance)
        if not more:
            return
        runs.further = max(runs.further, (pairs.look.further + 1) * allowance)
        for seed in islice(seeds, more):
            reference = runs.run(REFERENCE, seed)
            if _unmade(pairs, reference):
                return
            _require_reference(reference, pairs, seed)
            if not reference.broke:
                pairs.further.append(reference)
        pairs.look = _look(pairs, runs.settings, pairs.look.further + 1)


def _unmade(pairs: Pairs, *results: RunResult) -> bool:
    for result in results:
        if result.ended == "out of memory":
            pairs.unmade = f"{result.precision}, seed {result.seed}: {result.error}"
    return pairs.unmade is not None


def _require_reference(reference: RunResult, pairs: Pairs, seed: int) -> None:
    if not reference.broke:
        score = reference.score
        remark = remarked(score) if seed == 0 and score is not None else None
        if remark is not None and learned_nothing([score]) is None:
            pairs.notes.append(remark)
        return
    where = f" in epoch {at[0] + 1}, step {at[1] + 1}" if (at := reference.failed_at) else ""
    said = reference.error or f"it ended in: {reference.ended}{where}"
    if seed == 0:
        raise ModelError(
            f"the 32-bit training itself fails, so there is nothing to compare with: {said} "
            f"(seed {seed}); repair it first"
        )
    pairs.notes.append(f"seed {seed} was left out: the 32-bit training fails there ({said})")


def _settled(pairs: Pairs, runs: Runs) -> Pairs:
    """The pairs of an equivalence, held against where training started.

    So are those that a wide budget leaves undecided: it may be what no further seed settles.
    """
    look = pairs.look
    if look is None or look.outcome == "not equivalent":
        return pairs
    if look.outcome == "undecided" and not pairs.wide:
        return pairs
    pairs.start = runs.start(r.seed for r, _ in pairs.pairs)
    if pairs.wide and pairs.idle is None:
        spread = loss_of(pairs.name, look.reference_spread or 0.0)
        pairs.notes.append(
            f"the 32-bit runs themselves differ by {spread} over seeds (standard deviation), so "
            f"that a loss of {loss_of(pairs.name, look.budget)} would pass; steady the training, "
            "or set a budget"
        )
    return pairs


def _look(pairs: Pairs, settings: Settings, further: int = 0) -> Look:
    references = [*(r for r, _ in pairs.pairs), *pairs.further]
    scores = [r.score for r in references if r.score is not None]
    metrics = [r.metric for r in references]
    budget = None
    if settings.budget is not None:
        budget, _ = allowed_loss(settings.budget, sum(metrics) / len(metrics), 0.0)
    resolution = sum(s.resolution for s in scores) / len(scores)
    grain = max(s.grain for s in scores)
    return sequential(pairs.losses, metrics, resolution, settings.seeds, budget, grain, further)
