"""A whole evaluation: data drawn once, every precision beside the reference, a report for each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from operator import length_hint
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine import advice
from pytest_fp16.engine.batching import (
    count_inputs,
    holds,
    require_kept,
    split_batch,
    take,
    to_device,
)
from pytest_fp16.engine.canary import INPUTS
from pytest_fp16.engine.containers import all_tensors
from pytest_fp16.engine.device import effective_target, resolve_device, run_mode
from pytest_fp16.engine.emulation.wording import misses_a_gradient
from pytest_fp16.engine.models import taking_gradients
from pytest_fp16.engine.untouched import State, untouched
from pytest_fp16.engine.use import called
from pytest_fp16.errors import DataError, FP16Error, ModelError
from pytest_fp16.evaluation.batch import Batch
from pytest_fp16.evaluation.candidates import Candidates
from pytest_fp16.evaluation.evidence import moved, share
from pytest_fp16.evaluation.passes import Passes
from pytest_fp16.evaluation.precision_run import PrecisionRun
from pytest_fp16.evaluation.soundness import (
    after_the_data,
    handed_on,
    require_better_than_chance,
    require_data,
    require_finite,
    require_label_each,
    require_no_nan,
    require_same_kind,
    require_use,
)
from pytest_fp16.evaluation.totals import MetricTotals
from pytest_fp16.metric.scores import Scores
from pytest_fp16.metric.tallies import Accuracy
from pytest_fp16.planned import kept_by, plan_of
from pytest_fp16.precision import precision
from pytest_fp16.progress import Progress
from pytest_fp16.settings import Settings, require_meaning
from pytest_fp16.subject import Evaluation
from pytest_fp16.task import require_like
from pytest_fp16.telling import NotProbabilitiesError, are_probabilities, read_labels, task_of

_SEED = 1729


class EvaluationRun:
    """The reference and each precision's run over one pass through the data.

    Args:
        subject: the model and its data.
        settings: how to check it.
        progress: told how far the work is.
        keep: modules to keep in float32, by precision; None for those of the plan.
        test: id of the test that asks, by which the plan knows it; empty: the subject's name.
        predict: hold the candidates against theory, which costs the most.
    """

    def __init__(
        self,
        subject: Evaluation,
        settings: Settings,
        progress: Progress | None,
        keep: Mapping[str, tuple[str, ...]] | None = None,
        test: str = "",
        predict: bool = True,
    ) -> None:
        require_data(subject.data)
        self.subject, self.settings = subject, settings
        self.plan, self.keep = plan_of(settings, test) if keep is None else None, dict(keep or {})
        self.passes = Passes(progress, subject.name)
        self.predict = predict
        self.device = resolve_device(settings.device)
        self.mode = run_mode(settings, self.device)
        self.target = effective_target(settings, self.device, self.mode)
        self.probabilities = True  # for what looks like them
        self.wanders = 0.0  # by how much of its variance the reference differs from itself
        self.differentiates = False  # the model takes gradients of its own
        self.taken: Any = None  # a batch that labels were taken out of, which the model may miss

    def execute(self) -> None:
        """Draw the data once and take every batch through the reference and each run.

        Where the first batch has misled, a second time.
        """
        try:
            self._execute()
        except NotProbabilitiesError:
            self.probabilities = False
            self._execute()

    def _execute(self) -> None:
        self.runs: list[PrecisionRun] = []
        self.inputs = self.beyond = self.left_out = 0  # these: outputs past comparing, batches
        self.candidates = Candidates(self.subject, self.device, self.target)
        self.reference = self.candidates.reference
        trained = "the model was in training mode; it was evaluated in eval mode"
        self.warnings = [trained] if self.candidates.was_training else []
        if self.plan is not None:
            for name in self.settings.precisions:
                self.keep[name] = kept_by(self.plan, self.subject.name, name, self.reference.model)
        self.candidates.keep = self.keep
        self.passes.total = length_hint(self.subject.data) or None
        for number, batch in enumerate(advice.explained(self._batches(), self.subject.data)):
            for one in self.runs:
                one.take(batch)
            self.inputs += batch.n
            self.passes.done(number + 1)
        self.warnings += after_the_data(self)

    def rewind(self) -> None:
        """What models have carried along, and their caches, are as they were before the data."""
        self.initial.restore()
        for one in self.runs:
            one.initial.restore()

    def _batches(self) -> Iterator[Batch]:
        for number, raw in enumerate(self.subject.data):
            inputs, labels = split_batch(raw, self.subject.holds_labels)
            self.taken = raw if labels is not None else None
            if isinstance(labels, Tensor):
                labels = labels.cpu()
            n = count_inputs(inputs, labels)
            if n == 0:
                self.left_out += any(t.numel() for t in all_tensors(inputs))
                continue
            inputs = to_device(inputs, self.device)
            if not self.runs:
                self.initial = State(self.reference.model, weights=False)
            elif self.candidates.habits.lasting:
                for one in self.runs:
                    one.follow(self.reference.model)
            output = self._reference_output(inputs, _SEED + number)
            self.candidates.look([self.initial, *(one.initial for one in self.runs)])
            own = output.dim() and self.subject.metric is not None
            if own or (output.dim() and holds(inputs, output.shape[0])):
                n = output.shape[0]  # its labels may come in any number: all boxes in one table
            beside = self.reference.beside
            require_label_each(inputs, labels, n, output)
            if not self.runs:
                self._begin(inputs, output, labels, n, _SEED + number)
            require_like(output, self.shape, number)
            if self.task.threshold and not are_probabilities(output):
                raise NotProbabilitiesError
            require_same_kind(self.labelled, labels, number)
            batch = self._batch(inputs, output, labels, n, _SEED + number)
            batch.beside = beside
            self.beyond += int((batch.logits.isnan() | (batch.logits == math.inf)).sum())
            self.totals.add(batch, batch.output, batch.logits)
            if isinstance(self.totals.tally, Scores):
                require_finite(self.totals.value)
            yield batch

    def _reference_output(self, inputs: Any, seed: int) -> Tensor:
        try:
            return self.reference.outputs(inputs, seed).cpu()
        except FP16Error:
            raise
        except Exception as error:
            if misses_a_gradient(error) and not self.differentiates:
                return self._differentiated(inputs, seed)
            raise ModelError(
                f"the model raises in float32 already: {advice.raised(error)}; "
                + advice.of_batch(error, inputs, self.subject.labelled, self.taken)
            ) from error

    def _differentiated(self, inputs: Any, seed: int) -> Tensor:
        """From now on, run with gradients recorded: the model takes some on its own."""
        self.differentiates = True
        if not self.runs:
            self.initial.restore()  # from what the run that failed has carried along
        self.subject = replace(self.subject, forward=taking_gradients(self.subject.forward))
        self.candidates.subject = self.reference.subject = self.subject
        for one in self.runs:  # it need not have done so in the batches before
            one.call_as(self.subject)
        return self._reference_output(inputs, seed)

    # -- the first batch ----------------------------------------------------------------------

    def _begin(self, inputs: Any, output: Tensor, labels: Any, n: int, seed: int) -> None:
        """Everything that can be refused is refused here, before long work starts."""
        subject, self.shape = self.subject, output.shape
        require_kept(inputs, subject.keep_inputs)
        if subject.metric is not None and labels is None:
            raise DataError("metric= needs labels; yield batches (inputs, labels)")
        self.judged = self.reference.beside.judged(output.shape)
        with advice.on_outputs(self.judged):
            self.task = task_of(subject, output, labels, n)
        if not self.probabilities:
            self.task = replace(self.task, threshold=0.0)
        self.classes = self.task.canonical(output).shape[-1]
        require_no_nan(output)
        self.warnings += self.reference.beside.unsure(output.shape, labels is not None)
        if subject.metric is None:
            self.warnings += advice.of_task(subject.task, self.task, labels, output)
        self.labelled = labels is not None and self.task.kind != "embedding"
        # Whoever sets a budget without labels sets it for flips, all alike.
        unset = self.settings.budget is None and subject.metric is None
        self.by_margin = unset and self.task.decides and not self.labelled
        self.totals = MetricTotals(self.task, subject, self.by_margin)
        if isinstance(self.totals.tally, Accuracy):
            require_meaning(self.settings.budget)
        self.warnings += self.totals.try_own(output, labels, n)
        if subject.metric is None and self.labelled:
            require_better_than_chance(self.task, output, labels, n)
        self._repeat(inputs, output, seed)
        whole = not self._runs_in_part(inputs, n, seed)
        few = inputs if whole else take(inputs, n, list(range(min(n, INPUTS))))
        if (before := self.candidates.own(few, inputs, output, seed)) is not None:
            self.initial, self.reference = before, self.candidates.reference
        writes = self.candidates.habits.writes
        with untouched(self.reference.model, weights=writes, since=self.initial):
            for name in self.settings.precisions:  # each begins as the reference began
                one = self._run_in(name)
                one.whole = whole
                if one.precision.casts:
                    one.warnings += handed_on(inputs)
                self.runs.append(one)
            self.warnings += self.candidates.remarks(few, seed)
        theories = [one.theory for one in self.runs if one.theory is not None]
        for i, leader in enumerate(theories if not self.candidates.habits.lasting else ()):
            leader.followers = theories[i + 1 :]

    def _run_in(self, name: str) -> PrecisionRun:
        rounds = precision(name).low
        candidate = self.candidates.made(name)
        predicted = self.candidates.made(name, like=candidate) if rounds and self.predict else None
        mode = self.mode if rounds else "native"
        one = PrecisionRun.start(candidate, predicted, self.task, mode, self.by_margin)
        if one.theory is not None:
            one.theory.tell = partial(self.passes.passed, name)
        return one

    def _repeat(self, inputs: Any, output: Tensor, seed: int) -> None:
        """Whether the reference repeats itself; or would, if it had not carried something along."""
        model, habits = self.reference.model, self.candidates.habits
        with untouched(model, weights=habits.writes), called(model) as calls:
            again = self._reference_output(inputs, seed)
        require_use(self.reference, calls, inputs, seed)
        self.deterministic = bool(torch.equal(again, output))
        if self.deterministic:
            return
        with untouched(model, weights=habits.writes, since=self.initial):
            anew = self._reference_output(inputs, seed)
        self.deterministic = bool(torch.equal(anew, output))
        if self.deterministic:
            self._carries()
            return
        decides = self.task.kind == "classification"
        runs = (self.task.canonical(o) if decides else o for o in (output, again))
        self.wanders = share(moved(*runs))
        largest = float((again - output).abs().max())
        self.warnings.append(
            f"the reference is not deterministic: two runs of one batch differ by {largest:.2g}"
        )

    def _carries(self) -> None:
        self.candidates.habits.carries = True
        said = "the model carries something from one batch to the next: its batches were run "
        self.warnings.append(f"{said}in order, and errors carried along are no part of σ")

    def _runs_in_part(self, inputs: Any, n: int, seed: int) -> bool:
        """Whether the reference takes a few inputs of a batch alone: a graph's nodes it may not."""
        if n <= INPUTS:
            return True
        carries = self.candidates.alone(take(inputs, n, list(range(INPUTS))), seed, self.initial)
        if carries and self.deterministic and not self.candidates.habits.carries:
            self._carries()
        return carries is not None

    def _batch(self, inputs: Any, output: Tensor, labels: Any, n: int, seed: int) -> Batch:
        logits = self.task.canonical(output)
        canonical = None
        if self.labelled:
            canonical = read_labels(self.subject, self.task, labels, output, logits)
        valid = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
        if canonical is not None and self.task.decides:
            valid = canonical != self.task.ignore_index
        if self.task.decides:
            valid &= ~logits.isnan().any(-1)
        parts = (logits, canonical, valid)
        return Batch(inputs, labels, n, self.inputs, output, *parts, seed)
