"""The metric of one run over all batches: as it came out, or as theory expects it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.prediction.theory_batch import TheoryBatch
from pytest_fp16.evaluation.agreement import Agreement
from pytest_fp16.evaluation.batch import Batch
from pytest_fp16.evaluation.expectation import (
    Flips,
    expected_flips,
    expected_right,
    flips_of,
    noisy,
)
from pytest_fp16.evaluation.parts import Parts
from pytest_fp16.evaluation.soundness import unsteady
from pytest_fp16.metric.own import UserTally, first_look, indifferent, lost_scores, tally_of
from pytest_fp16.metric.scores import Scores
from pytest_fp16.metric.tallies import Accuracy, RSquared, right
from pytest_fp16.subject import Evaluation
from pytest_fp16.task import Task
from pytest_fp16.theory.margin import margin, top_two


class MetricTotals:
    """The subject's metric of one run, whatever kind it is.

    Args:
        task: what counts as a decision.
        subject: with the user's own metric, if there is one.
        by_margin: weigh each flip by its margin, for want of labels.
    """

    def __init__(self, task: Task, subject: Evaluation, by_margin: bool = False) -> None:
        self.task = task
        self.tally: Accuracy | Agreement | RSquared | UserTally
        if subject.metric is not None:
            self.tally = tally_of(subject.metric)
        elif by_margin:
            self.tally = Agreement()
        elif task.decides:
            self.tally = Accuracy()
        else:
            self.tally = RSquared()
        #: None where a metric of the user's own says what counts, or nothing is decided by itself.
        self.parts = Parts() if subject.metric is None and task.kind != "embedding" else None

    def try_own(self, output: Tensor, labels: Any, n: int) -> list[str]:
        """Ask a metric of the user's own of the first batch, and of wrong outputs: what to warn of.

        Raises:
            DataError: it cannot say.
        """
        if not isinstance(self.tally, UserTally):
            return []
        remarks = unsteady(self.tally.metric, output, labels, n)
        if isinstance(self.tally, Scores):
            wrong = lost_scores(self.tally.metric, output, labels, n)
            self.tally.hear(wrong)
            remarks += indifferent(first_look(self.tally.metric, output, labels, n), wrong)
        return remarks

    def add(self, batch: Batch, output: Tensor, logits: Tensor) -> None:
        """Add what one run made of a batch: its raw and its canonical output."""
        if isinstance(self.tally, UserTally):
            self.tally.take(output, batch.raw_labels, batch.n, output is batch.output)
        elif isinstance(self.tally, RSquared):
            self._add_values(self.tally, batch, _values(logits))
        else:
            labels = _classes(batch)
            answered = right(logits, labels)
            self._add_answers(batch, labels, answered)
            if isinstance(self.tally, Agreement):
                self._add_flips(self.tally, batch, [flips_of(batch.logits, logits)])
                return
            self.tally.add(answered, batch.valid)
            if self.task.kind == "multilabel":
                self.tally.hear(labels[batch.valid], logits.argmax(-1)[batch.valid])

    def add_expected(self, batch: Batch, theory: TheoryBatch, chance: Tensor) -> None:
        """Add what theory expects of a batch; `chance` is each decision's probability to flip."""
        if isinstance(self.tally, (Agreement, Accuracy)):
            labels = _classes(batch)
            answered = expected_right(batch.logits, labels, theory, chance)
            self._add_answers(batch, labels, answered)
            if isinstance(self.tally, Accuracy):
                self.tally.add(answered, batch.valid)
                return
            self._add_flips(self.tally, batch, expected_flips(batch.logits, theory, chance))
        elif isinstance(self.tally, RSquared):
            values, variance = theory.average, theory.scatter
            if values is None:
                # σ belongs to a random direction of length one: D such directions make the output.
                values = theory.logits
                variance = theory.sigma[:, 0].double().square() * values.shape[-1]
            self._add_values(self.tally, batch, _values(values), variance)
        else:
            raw = self.task.raw(noisy(theory, self.task, batch.seed), batch.output.shape)
            if raw is not None:
                self.tally.take(raw, batch.raw_labels, batch.n, False)

    def _add_answers(self, batch: Batch, labels: Tensor, answered: Tensor) -> None:
        if self.parts is not None:
            classes = batch.logits.shape[-1]
            self.parts.add_answers(self.task, labels, answered, batch.valid, classes)

    def _add_values(
        self, tally: RSquared, batch: Batch, values: Tensor, variance: Tensor | None = None
    ) -> None:
        targets = _targets(batch)
        tally.add(values, targets, variance)
        if self.parts is not None:
            self.parts.add_values(values, targets)  # what rounding adds is known of all together

    def lost_parts(self, others: MetricTotals) -> list[str]:
        """Classes or outputs of this run, the reference's, that are lost whole in another's."""
        if self.parts is None or others.parts is None:
            return []
        return self.parts.lost(others.parts)

    def answers_one(self, others: MetricTotals) -> bool:
        """Whether another run answers one class alone, where this one answers several."""
        if self.parts is None or others.parts is None:
            return False
        return self.parts.one_left(others.parts)

    def _add_flips(self, tally: Agreement, batch: Batch, flips: Iterable[Flips]) -> None:
        tally.add(margin(batch.logits, *top_two(batch.logits)), batch.top, batch.valid)
        for leads, weights in flips:
            counts = batch.valid & (weights > 0)
            tally.add_flips(leads[counts], batch.top[counts], weights[counts])

    @property
    def value(self) -> float:
        """The metric so far."""
        return self.tally.value


def _values(logits: Tensor) -> Tensor:
    values = logits.flatten(1)
    return values.masked_fill(values.isnan(), torch.inf)


def _classes(batch: Batch) -> Tensor:
    return batch.top if batch.labels is None else batch.labels


def _targets(batch: Batch) -> Tensor:
    return batch.logits.flatten(1) if batch.labels is None else batch.labels.flatten(1)
