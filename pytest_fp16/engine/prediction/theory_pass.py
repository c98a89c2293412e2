"""The theory pass: per decision, the predicted margin, σ and worst-case bound, from one trace.

For each chunk of inputs the 16-bit program is traced in float32 arithmetic (`Trace`), and one
reverse-mode pass from the margins gives every site's contribution. Where that cannot be done
(decisions per position, custom kernels without a gradient, outputs that depend on the whole
batch), the trace is repeated with random rounding errors instead.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.batching import FEWEST, PRIMES, chunks
from pytest_fp16.engine.prediction.certificates import Certifier, clear_rivals
from pytest_fp16.engine.prediction.decision_errors import learn_decisions
from pytest_fp16.engine.prediction.first_order import require_first_order, settle_steep
from pytest_fp16.engine.prediction.random_rounding import noise_batch
from pytest_fp16.engine.prediction.reverse import NotDifferentiableError, backward
from pytest_fp16.engine.prediction.rivals import Rivals, measured_screen
from pytest_fp16.engine.prediction.theory_batch import TheoryBatch, concatenate, differ
from pytest_fp16.engine.prediction.theory_sharing import Sharing
from pytest_fp16.engine.prediction.tracer import Tracer
from pytest_fp16.engine.tracing.sites import Sums
from pytest_fp16.engine.tracing.trace import Trace
from pytest_fp16.theory.rounding import Format

_CHUNK_BYTES = 512 * 2**20
#: Inputs in a chunk, at most, unless a site has so few values that calling its kernels costs more
#: than running them.
_CHUNK = 131
_FEW_VALUES = 2**16
#: Part by which σ of an input may differ alone and in a batch, and the part of σ that its logits
#: may be moved by: such a shift adds as much to a root mean square.
_AGREEMENT = 0.05
_SHIFT = ((1 + _AGREEMENT) ** 2 - 1) ** 0.5
#: Share of inputs near a discrete decision above which their errors are no longer exceptions.
_MOST_UNDECIDED = 0.5


@dataclass(eq=False)
class TheoryPass(Tracer):
    """The theory of one candidate, fed batch by batch.

    Attributes:
        method: how σ is found now.
        notes: why it is not found otherwise.
    """

    method: str = "adjoint"
    notes: list[str] = field(default_factory=list)

    #: Others whose rounding sites may be the same: see `theory_sharing`.
    followers: list[TheoryPass] = field(default_factory=list)
    pending: tuple[int, TheoryBatch] | None = None
    compared: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.chunk = _CHUNK
        self.screen = torch.empty(0)
        self.started: bool | None = None  # whether the model wrote to its weights when it was
        if self.task.many or self.task.batchwise:
            self.method = "random rounding"
            self.notes.append(
                "decisions per position or between inputs: σ from repeated runs, rounded at random"
            )

    def run(self, inputs: Any, n: int, reference: Tensor, seed: int) -> TheoryBatch:
        """Theory for one batch of n inputs with the reference's canonical logits [N, P, C]."""
        try:
            return self._run(inputs, n, reference, seed)
        finally:  # as large as the reference: other precisions have their turn now
            for theory in (self, *self.followers):
                theory.constants.clear()

    def _run(self, inputs: Any, n: int, reference: Tensor, seed: int) -> TheoryBatch:
        shared, self.pending = self.pending, None
        for theory in (self, *self.followers):
            theory.row = reference.shape[1:]
        if self.method == "adjoint":
            try:
                if shared is not None and shared[0] == seed:
                    said = shared[1]
                else:
                    if self.started is not self.habits.writes:  # errors may depend on the batch
                        self._start(inputs, n, reference, seed)
                    said = self._adjoint_batch(inputs, n, reference, seed)
                return settle_steep(self, self._decided(said), inputs, n, reference, seed)
            except NotDifferentiableError as reason:
                self._fall_back(str(reason))
        return noise_batch(self, inputs, n, reference, seed)

    def _decided(self, said: TheoryBatch) -> TheoryBatch:
        """The same, unless discrete decisions inside the model are open for too many inputs.

        An open decision may flip an answer, which counts as half a flip; what it does to values
        (such as to swap two of them) can only be seen. So it is where a gradient is infinite, or
        infinity times zero, although values are not: a root at zero, 0/0 behind a guard.

        Raises:
            NotDifferentiableError: they are, and what hangs on them has no gradient.
        """
        if bool((said.margin.isfinite() & ~said.sigma.isfinite()).any()):
            raise NotDifferentiableError("the gradient of some inputs is not finite")
        if not self.task.decides and _beyond_first_order(said):
            raise NotDifferentiableError("the errors of some inputs would exceed all values")
        most = _MOST_UNDECIDED if self.task.decides else 0.0
        if float(said.undecided.float().mean()) > most:
            share = "most" if self.task.decides else "some"
            raise NotDifferentiableError(
                f"{share} inputs lie near a discrete decision inside the model"
            )
        return said

    def _fall_back(self, reason: str) -> None:
        self.method = "random rounding"
        self.notes.append(f"{reason}: σ from repeated runs with random rounding")
        self.totals.clear()

    def _start(self, inputs: Any, n: int, reference: Tensor, seed: int) -> None:
        """Size the chunks, and check on a few inputs that σ does not depend on the batch."""
        self.started = self.habits.writes
        few = 5 if n >= 7 else 1
        trace, canonical = self.trace_part(inputs, n, list(range(few)), seed)
        if trace.doubts.decisions:
            learn_decisions(self, inputs, n, seed)
        if trace.severed:
            names = ", ".join(sorted(trace.severed))
            raise NotDifferentiableError(f"no gradient passes {names}")
        self.chunk = _chunk_size(trace, few)
        alone = self._sigma(trace, canonical, reference[:few])
        values = canonical.detach()[:few]
        self.screen = measured_screen(self, trace, canonical, reference[:few])
        for follower in self.followers:
            follower.screen = self.screen
        self.totals.clear()
        if n == 1:
            part = (inputs, n, [0], reference)
            require_first_order(self, part, seed, (trace, canonical), alone)
            return
        indices, kept = chunks(n, min(self.chunk, _CHUNK))[0]
        del trace, canonical  # as below
        trace, canonical = self.trace_part(inputs, n, indices, seed)
        _require_one_path(trace)
        together = self._sigma(trace, canonical, reference[:kept])
        self.totals.clear()
        both = min(few, kept)  # a chunk that is padded may hold fewer inputs of its own
        alone, values = alone[:both], values[:both]
        differs = (alone - together[:both]).abs() > _AGREEMENT * alone
        moved = differ(values, canonical[:both], _SHIFT * alone)
        if trace.recorder.owners.shared or bool(differs.any()) or moved:
            raise NotDifferentiableError("the error of an input depends on its batch")
        part = (inputs, n, indices, reference[:kept])
        require_first_order(self, part, seed, (trace, canonical), together)

    def _sigma(self, trace: Trace, canonical: Tensor, reference: Tensor) -> Tensor:
        sums = backward(trace, canonical, self.task.seeds(reference))[self.format]
        return sums.sigma[: len(reference)].unsqueeze(1)

    # -- reverse mode -------------------------------------------------------------------------

    @property
    def formats(self) -> tuple[Format, ...]:
        """This format first, then those of the followers."""
        return tuple(dict.fromkeys((self.format, *(f.format for f in self.followers))))

    @property
    def certifier(self) -> Certifier:
        """Judges a chunk of this precision."""
        return Certifier(self.task, self.format, self.screen)

    def _adjoint_batch(self, inputs: Any, n: int, reference: Tensor, seed: int) -> TheoryBatch:
        parts, cuts = [], chunks(n, self.chunk, min(n, FEWEST))
        sharing = Sharing(self, seed)
        for indices, kept in cuts:
            trace, canonical = self.trace_part(inputs, n, indices, seed, detailed=not self.totals)
            _require_one_path(trace)
            rows = reference[indices[:kept]]
            sums = backward(trace, canonical, self.task.seeds(rows))[self.format]
            self.record(sums)
            sharing.chunk(trace, canonical, (inputs, n, indices, rows))
            parts.append(self.certifier.judge(trace, canonical, rows, sums))
            whole = (trace, canonical) if len(cuts) == 1 else None
            del trace, canonical  # with all they hold, before as much is made again
        said = concatenate(parts)
        again = partial(self.trace_part, inputs, n, seed=seed)
        rivals = Rivals(again, self.chunk, whole)
        shared = sharing.said()
        mine = [(self.certifier, said), *((f.certifier, its) for f, its in shared)]
        clear_rivals(mine, reference, rivals)
        for follower, its in shared:  # only now: clearing may end in random rounding
            follower.pending = (seed, its)
        return said

    def record(self, sums: Sums) -> None:
        """Add a pass's sums to the running totals of the sites."""
        for key, square in sums.by_site.items():
            self.totals[key].variance += float(square.nan_to_num(0, 0, 0).sum()) / 12


def _beyond_first_order(said: TheoryBatch) -> bool:
    """Whether a predicted error is larger than values are: a slope that holds for no such step.

    A ratio such as a / (a + 1e-3) near zero is steep and ends at one. Errors of margins need no
    such look: a flip costs one at most.
    """
    values = said.logits.flatten(1).double().nan_to_num(0, 0, 0).square().sum(1)
    errors = said.sigma[:, 0].double().square() * said.logits[0].numel()
    return bool((errors > values.mean()).any())


def _require_one_path(trace: Trace) -> None:
    """Raise NotDifferentiableError where rounding may lead the program another way."""
    if trace.doubts.branches:
        raise NotDifferentiableError("the program branches on a value that rounding could change")


def _chunk_size(trace: Trace, n: int) -> int:
    """Inputs per chunk, told from a trace of n of them."""
    per_input = trace.recorder.values / n
    per_site = per_input / max(1, len(trace.recorder.signature))
    held = (p for p in PRIMES if p == 5 or p * 4 * 3 * per_input <= _CHUNK_BYTES)
    return max(p for p in held if p <= _CHUNK or p * per_site <= _FEW_VALUES)
