"""A candidate that strays from theory, beside an ideal emulation of the same batches."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from pytest_fp16.engine.candidate import Candidate
from pytest_fp16.engine.emulation.wording import first_line
from pytest_fp16.engine.prediction.theory_batch import TheoryBatch, require_shape
from pytest_fp16.engine.untouched import State, untouched
from pytest_fp16.evaluation.batch import Batch
from pytest_fp16.evaluation.evidence import standardised
from pytest_fp16.task import Task
from pytest_fp16.theory.margin import flips_and_ties
from pytest_fp16.theory.standardised import ErrorTotals

#: Inputs an ideal emulation may be run on to tell correlated rounding from a defect.
MOST = 2000


@dataclass
class SecondLook:
    """Candidate and ideal emulation on the batches where the candidate strayed from theory."""

    task: Task
    candidate: ErrorTotals = field(default_factory=ErrorTotals)
    ideal: ErrorTotals = field(default_factory=ErrorTotals)
    flips: int = 0
    ideal_flips: int = 0
    inputs: int = 0

    def take(
        self,
        candidate: Candidate,
        batch: Batch,
        said: TheoryBatch,
        logits: Tensor,
        before: State,
    ) -> list[str]:
        """Run a batch through an ideal emulation, to set the candidate beside it.

        Args:
            candidate: the model that strayed.
            batch, said, logits: the batch, what theory says of it, what the candidate gave.
            before: what the model kept before the batch.

        Returns:
            What to warn of.
        """
        if self.inputs > MOST:
            return []
        try:
            with untouched(candidate.model, weights=candidate.habits.writes, since=before):
                output = candidate.outputs(
                    batch.inputs, batch.seed, emulated=True, opaque="rounded"
                )
            require_shape(output, batch.output)
        except Exception as error:
            self.inputs = MOST + 1
            return [f"no second look by emulation: {first_line(error)}"]
        self.add(batch, said, logits, self.task.canonical(output.cpu()))
        return []

    def add(self, batch: Batch, said: TheoryBatch, logits: Tensor, ideal: Tensor) -> None:
        """Add the canonical logits of both on one batch, [N, P, C]."""
        self.inputs += batch.n
        self.candidate.add(*standardised(self.task, batch, logits, said))
        self.ideal.add(*standardised(self.task, batch, ideal, said))
        if self.task.decides:
            self.flips += int((flips_and_ties(logits, batch.top)[0] & batch.valid).sum())
            self.ideal_flips += int((flips_and_ties(ideal, batch.top)[0] & batch.valid).sum())
