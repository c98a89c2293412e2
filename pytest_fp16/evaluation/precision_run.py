"""One precision's way through the data: theory first, then the candidate, batch by batch."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from pytest_fp16.engine.canary import INPUTS, CanaryFindings, run_canary
from pytest_fp16.engine.candidate import Candidate, DtypeObserver
from pytest_fp16.engine.carried import carry_over
from pytest_fp16.engine.device import is_out_of_memory
from pytest_fp16.engine.emulation.autocast import held_policy
from pytest_fp16.engine.emulation.refusal import RefusedDtypes, UnsupportedOperation
from pytest_fp16.engine.emulation.wording import (
    first_line,
    is_trouble_with_dtypes,
    stops_the_program,
    told,
)
from pytest_fp16.engine.outputs import joined
from pytest_fp16.engine.prediction.theory_batch import OtherShapeError, TheoryBatch
from pytest_fp16.engine.prediction.theory_pass import TheoryPass
from pytest_fp16.engine.untouched import State, formats_of
from pytest_fp16.evaluation.batch import Batch, in_halves
from pytest_fp16.evaluation.evidence import KEPT, Kept, Outcome, Prediction
from pytest_fp16.evaluation.kept import enough_inputs, everything
from pytest_fp16.evaluation.second_look import SecondLook
from pytest_fp16.evaluation.totals import MetricTotals
from pytest_fp16.metric.own import UserTally
from pytest_fp16.precision import Precision
from pytest_fp16.subject import Evaluation
from pytest_fp16.task import Task
from pytest_fp16.theory.rounding import FORMATS


@dataclass
class PrecisionRun:
    """One candidate, the theory about it, and what both have shown so far.

    Attributes:
        failure: why the candidate could not run in 16 bits: a verdict.
        failure_error: the exception itself, for the diagnosis.
        forecast_failure: why theory says it cannot run.
        no_memory: why the run could not be made at all.
        theory: None where there is nothing to predict (32-true) or it could not be had.
        whole: a batch cannot be cut, as a graph's nodes cannot be had without its edges.
    """

    precision: Precision
    candidate: Candidate
    theory: TheoryPass | None
    task: Task
    mode: str
    prediction: Prediction
    outcome: Outcome
    failure: str | None = None
    failure_error: BaseException | None = None
    forecast_failure: str | None = None
    forecast_missing: str | None = None
    unfollowed: str | None = None
    no_memory: str | None = None
    warnings: list[str] = field(default_factory=list)
    canary: CanaryFindings | None = None
    observer: DtypeObserver | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        self.initial = self._state()
        self.second_look = SecondLook(self.task)

    def _state(self) -> State:
        """What the candidate keeps now, or at least what it has in its caches."""
        habits = self.candidate.habits
        return State(self.candidate.model, habits.writes, values=habits.lasting)

    @classmethod
    def start(
        cls,
        candidate: Candidate,
        theory_candidate: Candidate | None,
        task: Task,
        mode: str,
        by_margin: bool = False,
    ) -> PrecisionRun:
        """A run before its first batch; the theory pass has a model of its own.

        Flips are weighed by their margins if `by_margin`, see `MetricTotals`.
        """
        subject = candidate.subject
        theory = None
        if theory_candidate is not None:
            theory = TheoryPass(
                theory_candidate.model,
                candidate.precision,
                candidate.target,
                candidate.device,
                subject,
                task,
                habits=candidate.habits,
            )
        return cls(
            precision=candidate.precision,
            candidate=candidate,
            theory=theory,
            task=task,
            mode=mode,
            prediction=Prediction(MetricTotals(task, subject, by_margin)),
            outcome=Outcome(MetricTotals(task, subject, by_margin)),
        )

    @property
    def done(self) -> bool:
        """Whether more batches can change nothing."""
        ended = self.failure is not None or self.no_memory is not None
        return ended or self.outcome.incomparable

    def take(self, batch: Batch) -> None:
        """One batch: what theory says, then what the candidate does."""
        candidate = self.candidate
        held = held_policy(candidate.device.type, candidate.target)
        with held if self.precision.mixed else nullcontext():
            self._take(batch)

    def _take(self, batch: Batch) -> None:
        said = None if self.done else self._predict(batch)
        if self.done:
            return
        if self.canary is None and self.observer is None and not self.outcome.inputs:
            self._first(batch)
        if self.precision.casts and self.precision.low:
            keep = self.candidate.subject.keep_inputs
            self.outcome.entering.add(batch.inputs, FORMATS[self.precision.dtype], keep)
        before = self._state()
        output = None if self.done else self._run(batch)
        if output is None:
            if self.failure is not None and self.failure == self.unfollowed:
                # It was the program that stopped the theory pass.
                self.forecast_failure = f"cannot run: {self.failure}"
                self.forecast_missing = None
            if self.failure is not None:  # any of the inputs may be what stops the program
                self.outcome.kept = everything(batch, self.whole)
            return
        if output.shape != batch.output.shape:
            self.outcome.take_reshaped(batch, output)
            self.outcome.kept = everything(batch, whole=True)
            return
        logits = self.task.canonical(output)
        self.outcome.add(batch, output, logits, said)
        self.outcome.beside.add(batch.beside, self.candidate.beside)
        self.outcome.kept = self._kept(batch, output)
        allowed = self.prediction.flips.allowed
        if said is not None and not self.ideal and self.outcome.strays(allowed()):
            self.warnings += self.second_look.take(self.candidate, batch, said, logits, before)

    def follow(self, reference: nn.Module) -> None:
        """Before a batch: theory starts from what the reference has carried along until then."""
        if self.theory is not None:
            dtype = None if self.precision.mixed else self.precision.dtype
            own, theory = self.candidate, self.theory.model
            carry_over(reference, theory, dtype, own.habits.writes, formats_of(own.model))
            self.theory.followers.clear()  # each starts from weights of its own

    def call_as(self, subject: Evaluation) -> None:
        """From now on, candidate and theory are called as another subject says."""
        self.candidate.subject = subject
        if self.theory is not None:
            self.theory.subject = subject

    # -- theory -------------------------------------------------------------------------------

    def _predict(self, batch: Batch) -> TheoryBatch | None:
        if self.theory is None or self.forecast_failure or self.forecast_missing:
            return None
        theory = self.theory
        try:
            reference = batch.logits.to(theory.device)
            said = theory.run(batch.inputs, batch.n, reference, batch.seed).on_host()
        except Exception as error:
            if is_out_of_memory(error):
                self.forecast_missing = f"no memory for the theory pass ({first_line(error)})"
            elif isinstance(error, OtherShapeError):
                self._foresee_shape(str(error))
            elif isinstance(error, UnsupportedOperation) or stops_the_program(error):
                self.forecast_failure = f"cannot run: {told(error)}"
            else:
                self.unfollowed = told(error)
                self.forecast_missing = (
                    f"the theory pass cannot follow this model ({type(error).__name__}: "
                    f"{first_line(error)})"
                )
            return None
        self.prediction.add(batch, said)
        return said

    def _foresee_shape(self, said: str) -> None:
        if isinstance(self.prediction.metric.tally, UserTally):
            self.forecast_missing = said
        else:
            self.forecast_failure = said

    # -- the candidate ------------------------------------------------------------------------

    @property
    def ideal(self) -> bool:
        """Whether the candidate's run is an ideal emulation: each result rounded once, no more."""
        opaque = self.observer is not None and bool(self.observer.opaque)
        return self.mode == "emulated" and not opaque

    def _first(self, batch: Batch) -> None:
        """Before the first full batch: the canary, and the record of what dtypes run."""
        candidate = self.candidate
        self.observer = DtypeObserver(candidate.where)
        if self.mode == "native":
            return
        few = batch.n if self.whole else min(batch.n, INPUTS)
        canary = run_canary(candidate, batch.inputs, batch.n, batch.seed, self.observer, few)
        self.canary, error, emulation_error = canary, canary.error, canary.emulation_error
        on_target = candidate.target == candidate.device.type
        refused = canary.mixed_dtypes and not self.precision.mixed
        stopped = error is not None and is_trouble_with_dtypes(error)
        lacking = isinstance(emulation_error, (UnsupportedOperation, RefusedDtypes))
        lacking = lacking and not on_target
        if refused or ((canary.unsupported or stopped) and on_target):
            self._fail(error)
        elif lacking or canary.on_target:  # this device has the kernel, or other values
            self._fail(emulation_error)
        elif emulation_error is not None and error is None:
            # The device's own kernels run what emulation cannot: they are what counts.
            self.mode = "native"
            self.warnings.append(
                f"emulation cannot run this model ({first_line(emulation_error)}); "
                "the native kernels of this device were run instead"
            )

    def _fail(self, error: BaseException | None) -> None:
        if error is not None:
            self.failure = told(error)
            self.failure_error = error.with_traceback(error.__traceback__)

    def _run(self, batch: Batch) -> Tensor | None:
        observer = self.observer if self.mode == "native" and not self.outcome.inputs else None
        try:
            try:
                return self._outputs(batch, observer)
            except NotImplementedError as error:
                if observer is None:
                    raise
                output = self._outputs(batch, None)  # it may be the observer that was in the way
                self.observer = None
                self.warnings.append(f"what ran in 16 bits was not seen: {first_line(error)}")
                return output
        except Exception as error:
            if is_out_of_memory(error):
                self.no_memory = first_line(error)
            else:
                self._fail(error)
            return None

    def _outputs(self, batch: Batch, observer: DtypeObserver | None) -> Tensor:
        options: dict[str, Any] = {"emulated": self.mode == "emulated", "observer": observer}
        beside = []

        def run(inputs: Any) -> Tensor:
            made = self.candidate.outputs(inputs, batch.seed, **options)
            beside.append(self.candidate.beside)
            return made

        output = in_halves(run, batch, self.whole).cpu()
        self.candidate.beside = joined(beside)
        return output

    def _kept(self, batch: Batch, output: Tensor) -> Kept | None:
        """A few inputs, those that went wrong if any did, for the diagnosis to look at."""
        kept, wrong = self.outcome.kept, self.outcome.astray[:KEPT]
        if kept is not None and (kept.wrong or not wrong):
            return kept
        if self.whole:
            return everything(batch, True, wrong)
        emulated = self.mode == "emulated"
        return enough_inputs(batch, wrong, output, self.candidate, self.task, emulated)
