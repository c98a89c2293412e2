"""What a check remembers of the batches it has seen: totals, never the data itself.

`Prediction` gathers what theory says of each, `Outcome` what the candidate really did, and how far
that is from what theory said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_fp16.engine.prediction.theory_batch import TheoryBatch
from pytest_fp16.evaluation.batch import Batch
from pytest_fp16.evaluation.beside import Beside
from pytest_fp16.evaluation.entering import Entering
from pytest_fp16.evaluation.expectation import flip_chance, open_chance
from pytest_fp16.evaluation.totals import MetricTotals
from pytest_fp16.metric.own import UserTally
from pytest_fp16.task import Task
from pytest_fp16.theory.flips import FlipCount
from pytest_fp16.theory.margin import (
    certified_by_lemma,
    classification_tolerance,
    flips_and_ties,
    floating_point_error,
    hidden,
    lost_values,
)
from pytest_fp16.theory.standardised import (
    FLOAT32_NOISE,
    GRANTED_SPREAD,
    ErrorTotals,
    mean_allowed,
    spread_allowed,
)

#: What is as large as this hides a class: ``finfo.min`` is another number in every format.
_AS_GOOD_AS_INFINITE = torch.finfo(torch.float32).max / 16
#: Inputs named of those that went wrong.
NAMED = 32
#: Inputs named of those that nearly went wrong.
NEAREST = 8
#: Inputs kept for the diagnosis to look at.
KEPT = 8


@dataclass
class Prediction:
    """What theory says of all batches.

    Attributes:
        flips: distribution of the number of flips; its σ includes the granted model error.
        not_finite: outputs that leave the range although the reference's do not.
        kept_finite: probability that no run rounded at random loses an output.
        nearest: the inputs with the smallest margin over σ, (that ratio, position in the data).
    """

    metric: MetricTotals
    flips: FlipCount = field(default_factory=FlipCount)
    expected_flips: float = 0.0
    decisions: int = 0
    bounded: int = 0
    probable: int = 0
    bounds_known: bool = True
    overflows: int = 0
    undecided: int = 0
    not_finite: int = 0
    kept_finite: float = 1.0
    sigmas: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    nearest: list[tuple[float, int]] = field(default_factory=list)

    def add(self, batch: Batch, theory: TheoryBatch) -> None:
        """Add the theory of one batch."""
        self.overflows += int(theory.overflowed.sum())
        self.undecided += int(theory.undecided.sum())
        self.not_finite += int(lost_values(batch.logits, theory.logits).sum())
        if theory.noisy_lost is not None:
            self.kept_finite *= 1 - float(theory.noisy_lost.float().mean())
        chance = torch.zeros_like(theory.margin, dtype=torch.float64)
        if batch.n and self.metric.task.decides:
            valid = batch.valid
            open_ = theory.undecided.unsqueeze(1).expand_as(valid)
            wide = flip_chance(batch.logits, theory, GRANTED_SPREAD)
            wide = torch.where(open_, wide.maximum(open_chance(batch.logits, theory)), wide)
            chance = flip_chance(batch.logits, theory, 1.0)
            self.flips.add(wide[valid].numpy())
            self.expected_flips += float(chance[valid].sum())
            self.decisions += int(valid.sum())
            self.bounded += int((theory.bounded & valid).sum())
            self.probable += int((theory.probable & valid).sum())
            self.bounds_known &= theory.bound is not None
            self._add_nearest(batch, theory)
            self.margins.append(float(theory.margin[valid].median()) if valid.any() else math.nan)
        self.sigmas.append(float(theory.sigma.median()))
        self.metric.add_expected(batch, theory, chance)

    def _add_nearest(self, batch: Batch, theory: TheoryBatch) -> None:
        ratio = (theory.margin / theory.sigma).nan_to_num(nan=torch.inf)
        smallest = ratio.masked_fill(~batch.valid, torch.inf).amin(1)
        values, places = smallest.topk(min(NEAREST, batch.n), largest=False)
        found = zip(values.tolist(), places.tolist(), strict=True)
        several = [(value, batch.first + i) for value, i in found if value < math.inf]
        self.nearest = sorted([*self.nearest, *several])[:NEAREST]


@dataclass(frozen=True)
class Kept:
    """A few inputs of one batch, for the diagnosis.

    Attributes:
        inputs: n of them, on the device, float32.
        wrong: positions among them of those that went wrong.
        seed: the random state of the batch's runs.
        whole: they are a whole batch, which cannot be cut.
    """

    inputs: Any
    n: int
    wrong: list[int]
    seed: int
    whole: bool = False


def share(sums: Sequence[float]) -> float:
    """The first of two sums as a share of the second; 0 where that is none."""
    return sums[0] / sums[1] if sums[1] > 0 else 0.0


def moved(was: Tensor, now: Tensor) -> tuple[float, float]:
    """Squared errors of finite outputs, and the squares of their spread; both are sums."""
    finite = (was.abs() < _AS_GOOD_AS_INFINITE) & (now.abs() < _AS_GOOD_AS_INFINITE)
    finite &= now.abs() != torch.finfo(torch.float16).max
    if not finite.any():
        return 0.0, 0.0
    was, now = was[finite].double(), now[finite].double()
    return float((now - was).square().sum()), float((was - was.mean()).square().sum())


@dataclass
class Outcome:
    """What the candidate did on all batches.

    Attributes:
        ties: decisions that tie in the candidate, and do not in the reference.
        astray: inputs of the last batch that went wrong, and behind them those that tie.
        beside: what became of outputs that are not judged.
        entering: what of the inputs became infinite as they were cast.
        reshaped: the shapes of outputs that are not as the reference's, of the first such batch.
    """

    metric: MetricTotals
    errors: ErrorTotals = field(default_factory=ErrorTotals)
    inputs: int = 0
    decisions: int = 0
    flips: int = 0
    ties: int = 0
    not_finite: int = 0
    certified: int = 0
    delta_max: float = 0.0
    gammas: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=lambda: [0.0, 0.0])
    moved: list[float] = field(default_factory=lambda: [0.0, 0.0])
    wrong_inputs: list[int] = field(default_factory=list)
    astray: list[int] = field(default_factory=list)
    beside: Beside = field(default_factory=Beside)
    entering: Entering = field(default_factory=Entering)
    reshaped: str = ""
    kept: Kept | None = None

    def add(self, batch: Batch, output: Tensor, logits: Tensor, theory: TheoryBatch | None) -> None:
        """Add the candidate's raw and canonical output of one batch."""
        self.inputs += batch.n
        lost = lost_values(batch.output, output)
        self.not_finite += int(lost.sum())
        wrong = lost > 0
        tied = torch.zeros_like(wrong)
        self.metric.add(batch, output, logits)
        self._add_moved(batch, output, logits)
        if self.metric.task.decides:
            flips, ties = flips_and_ties(logits, batch.top)
            own = flips_and_ties(batch.logits, batch.top)[1]  # nothing that 16 bits did
            flips, ties = flips & batch.valid, ties & batch.valid & ~own
            self.decisions += int(batch.valid.sum())
            self.flips += int(flips.sum())
            self.ties += int(ties.sum())
            wrong |= flips.any(1)
            tied = ties.any(1) & ~wrong
            if self.metric.task.kind == "classification":
                self._paper(batch, logits)
        if theory is not None:
            self.errors.add(*standardised(self.metric.task, batch, logits, theory))
        places = wrong.nonzero().flatten().tolist()
        self.astray = [*places, *tied.nonzero().flatten().tolist()]
        room = NAMED - len(self.wrong_inputs)
        self.wrong_inputs += [batch.first + i for i in places[:room]]

    def strays(self, flips_allowed: int) -> bool:
        """Whether errors, or flips, are more than theory allows."""
        errors = self.errors
        if not errors.count:
            return False
        wide = errors.spread > spread_allowed(errors.inputs)
        if wide or abs(errors.mean) > mean_allowed(errors.inputs):
            return True
        return self.metric.task.decides and self.flips > flips_allowed

    def take_reshaped(self, batch: Batch, output: Tensor) -> None:
        """Take outputs of another shape than the reference's, which a metric of the user's may."""
        shapes = f"{tuple(output.shape)}, where 32-true gives {tuple(batch.output.shape)}"
        self.reshaped = self.reshaped or shapes
        if not self.incomparable:
            self.inputs += batch.n
            self.not_finite += int((~output.isfinite()).sum())
            self.metric.add(batch, output, output)

    @property
    def incomparable(self) -> bool:
        """Whether shapes differ, and nothing is there that takes any shape."""
        return bool(self.reshaped) and not isinstance(self.metric.tally, UserTally)

    def _add_moved(self, batch: Batch, output: Tensor, logits: Tensor) -> None:
        """Squared errors, and the spread beside which they are seen, of outputs that count."""
        was, now = batch.output, output
        if self.metric.task.kind == "classification":
            was, now = batch.logits[batch.valid], logits[batch.valid]
            masked = hidden(was) | hidden(now)
            if masked.any():
                was, now = was[~masked], now[~masked]
        error, spread = moved(was, now)
        self.moved[0] += error
        self.moved[1] += spread

    def _paper(self, batch: Batch, logits: Tensor) -> None:
        """δ, Γ, the lemma, and the cross-entropy of both runs."""
        valid = batch.valid
        if not valid.any():
            return
        delta = floating_point_error(batch.logits, logits)[valid]
        self.delta_max = max(self.delta_max, float(delta.nan_to_num(nan=1.0).max()))
        self.certified += int((certified_by_lemma(batch.logits, logits) & valid).sum())
        self.gammas.append(float(classification_tolerance(batch.logits)[valid].median()))
        if batch.labels is not None:
            targets = batch.labels[valid]
            for i, run in enumerate((batch.logits, logits)):
                loss = torch.nn.functional.cross_entropy(run[valid], targets, reduction="sum")
                self.loss[i] += float(loss)


def standardised(
    task: Task, batch: Batch, logits: Tensor, theory: TheoryBatch
) -> tuple[np.ndarray[Any, Any], int, int]:
    """Actual over predicted error of the margins where theory claims something.

    Returns:
        The standardised errors, how many of them exceed the worst-case bound, and in how many
        inputs they were taken.
    """
    actual = task.margins(logits, batch.logits) - theory.margin
    noise = FLOAT32_NOISE * task.magnitude(theory.logits)
    sigma = theory.sigma
    usable = actual.isfinite() & sigma.isfinite() & ~theory.undecided.unsqueeze(1)
    if batch.valid.shape == actual.shape:
        usable &= batch.valid
    z = actual / (sigma.square() + noise.square()).sqrt().clamp(min=1e-30)
    exceeded = 0
    if theory.bound is not None:
        exceeded = int((actual.abs() > theory.bound + noise)[usable].sum())
    return z[usable].double().cpu().numpy(), exceeded, int(usable.any(1).sum())
