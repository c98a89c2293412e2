"""The theory pass: per decision, the predicted margin, σ and worst-case bound, from one trace.

For each chunk of inputs the 16-bit program is traced in float32 arithmetic (`Trace`), and one
reverse-mode pass from the margins gives every site's contribution. Where that cannot be done
(decisions per position, custom kernels without a gradient, outputs that depend on the whole
batch), the trace is repeated with random rounding errors instead.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pytest_fp16.engine.batching import PRIMES, chunks, copied, take
from pytest_fp16.engine.emulation.refusal import UnsupportedOperation
from pytest_fp16.engine.models import Location, autocast, call_as_is
from pytest_fp16.engine.outputs import main_output
from pytest_fp16.engine.prediction.certificates import Certifier
from pytest_fp16.engine.prediction.decision_errors import decision_errors
from pytest_fp16.engine.prediction.random_rounding import noise_batch
from pytest_fp16.engine.prediction.reverse import NotDifferentiableError, backward
from pytest_fp16.engine.prediction.rivals import Rivals, measured_screen
from pytest_fp16.engine.prediction.theory_batch import TheoryBatch, concatenate, differ
from pytest_fp16.engine.prediction.theory_sharing import Sharing
from pytest_fp16.engine.randomness import seed_everything
from pytest_fp16.engine.tracing.decisions import Errors
from pytest_fp16.engine.tracing.recorder import Recorder
from pytest_fp16.engine.tracing.shadow import Shadow, wrap_inputs
from pytest_fp16.engine.tracing.sites import SiteKey, SiteTotals, Sums
from pytest_fp16.engine.tracing.trace import Trace
from pytest_fp16.engine.untouched import untouched
from pytest_fp16.precision import Precision
from pytest_fp16.subject import Evaluation
from pytest_fp16.task import Task
from pytest_fp16.theory.rounding import FORMATS, Format

_CHUNK_BYTES = 512 * 2**20
#: Inputs in a chunk, at most, unless a site has so few values that calling its kernels costs more
#: than running them.
_CHUNK = 61
_FEW_VALUES = 2**16
_AGREEMENT = 0.05
#: Share of inputs near a discrete decision above which their errors are no longer exceptions.
_MOST_UNDECIDED = 0.5


@dataclass(eq=False)
class TheoryPass:
    """The theory of one candidate, fed batch by batch.

    Attributes:
        model: the candidate's own copy, cast as the candidate is.
        precision, target, device: how it runs.
        subject, task: how it is called, and what counts as a decision.
        carries: the model carries something from one batch to the next.
        totals: running totals per site.
    """

    model: nn.Module
    precision: Precision
    target: str
    device: torch.device
    subject: Evaluation
    task: Task
    carries: bool = False
    totals: dict[SiteKey, SiteTotals] = field(default_factory=dict)
    method: str = "adjoint"
    notes: list[str] = field(default_factory=list)
    opaque: set[str] = field(default_factory=set)
    dtypes: dict[str, int] = field(default_factory=dict)

    #: Others whose rounding sites may be the same: see `theory_sharing`.
    followers: list[TheoryPass] = field(default_factory=list)
    pending: tuple[int, list[TheoryBatch]] | None = None
    compared: bool = False
    errors: Errors = field(default_factory=list)

    def __post_init__(self) -> None:
        self.where = Location(self.model)
        self.constants: dict[int, tuple[Tensor, Tensor]] = {}
        self.chunk = _CHUNK
        self.screen = torch.empty(0)
        self.started = False
        self.row: torch.Size | None = None  # of canonical logits, for one input
        if self.task.many or self.task.batchwise:
            self.method = "random rounding"
            self.notes.append(
                "decisions per position or between inputs: σ from repeated runs, rounded at random"
            )

    def run(self, inputs: Any, n: int, reference: Tensor, seed: int) -> TheoryBatch:
        """Theory for one batch of n inputs with the reference's canonical logits [N, P, C]."""
        shared, self.pending = self.pending, None
        for theory in (self, *self.followers):
            theory.row = reference.shape[1:]
        if self.method == "adjoint":
            try:
                if shared is not None and shared[0] == seed:
                    return self._decided(concatenate(shared[1]))
                if not self.started:
                    self._start(inputs, n, reference, seed)
                return self._decided(self._adjoint_batch(inputs, n, reference, seed))
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

    # -- one trace ----------------------------------------------------------------------------

    def trace(
        self,
        inputs: Any,
        batch: int,
        seed: int,
        noise: torch.Generator | None = None,
        collect: bool = False,
        **options: Any,
    ) -> tuple[Trace, Tensor]:
        """Trace one chunk; its canonical logits in float32, with their graph."""
        recorder = Recorder(
            batch=batch,
            device=self.device,
            where=self.where,
            totals=self.totals,
            noise=noise,
            formats=self.formats,
            **options,
        )
        trace = Trace(recorder, self.target, self.constants, self.errors, collect)
        trace.mixed = self.precision.mixed
        self.where.reset()
        seed_everything(seed)
        cast = None if self.precision.mixed else self.precision.dtype
        traced = wrap_inputs(copied(inputs), cast)
        # Each of the traces of a batch begins with what was carried up to that batch.
        kept = untouched(self.model, weights=False) if self.carries else nullcontext()
        with torch.no_grad(), autocast(self.precision, self.device, self.target), kept, trace:
            output = call_as_is(self.model, traced, self.subject.forward)
        main = main_output(output)
        values = main.inner if isinstance(main, Shadow) else main
        with torch.enable_grad():
            canonical = self.task.canonical(values.float())
        self.opaque |= trace.opaque
        for name, count in trace.dtypes.items():
            self.dtypes[name] = max(self.dtypes.get(name, 0), count)
        return trace, canonical

    def trace_part(
        self, inputs: Any, n: int, indices: list[int], seed: int, **options: Any
    ) -> tuple[Trace, Tensor]:
        """Trace some inputs of a batch.

        Raises:
            NotDifferentiableError: the model does not run on a part of a batch, or its outputs
                there are not those inputs'.
        """
        try:
            part = self.trace(take(inputs, n, indices), len(indices), seed, **options)
        except UnsupportedOperation:
            raise
        except Exception as error:  # if the 16-bit program fails, the whole batch will show it
            raise NotDifferentiableError(
                f"the model does not run on a part of a batch ({type(error).__name__})"
            ) from error
        row = part[1].shape[1:] if self.row is None else self.row
        if part[1].shape != (len(indices), *row):  # not one row, as it was, for each input
            raise NotDifferentiableError("a part of a batch does not give its part of the outputs")
        return part

    def _start(self, inputs: Any, n: int, reference: Tensor, seed: int) -> None:
        """Size the chunks, and check on a few inputs that σ does not depend on the batch."""
        self.started = True
        few = 5 if n >= 7 else 1
        trace, canonical = self.trace_part(inputs, n, list(range(few)), seed)
        if trace.doubts.decisions:
            self.learn_decisions(inputs, n, seed)
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
            return
        indices, kept = chunks(n, min(self.chunk, _CHUNK))[0]
        trace, canonical = self.trace_part(inputs, n, indices, seed)
        _require_one_path(trace)
        together = self._sigma(trace, canonical, reference[:kept])
        self.totals.clear()
        differs = (alone - together[:few]).abs() > _AGREEMENT * alone
        if trace.recorder.owners.shared or bool(differs.any()) or differ(values, canonical[:few]):
            raise NotDifferentiableError("the error of an input depends on its batch")

    def learn_decisions(self, inputs: Any, n: int, seed: int) -> None:
        """Predict, on the first few inputs, the error of what the model decides on."""
        self.errors = decision_errors(self, inputs, n, list(range(5 if n >= 7 else 1)), seed)
        self.totals.clear()

    def _sigma(self, trace: Trace, canonical: Tensor, reference: Tensor) -> Tensor:
        sums = backward(trace, canonical, self.task.seeds(reference))[self.format]
        return sums.sigma[: len(reference)].unsqueeze(1)

    # -- reverse mode -------------------------------------------------------------------------

    @property
    def format(self) -> Format:
        """The 16-bit format of the precision."""
        return FORMATS[self.precision.dtype]

    @property
    def formats(self) -> tuple[Format, ...]:
        """This format first, then those of the followers."""
        return tuple(dict.fromkeys((self.format, *(f.format for f in self.followers))))

    @property
    def certifier(self) -> Certifier:
        """Judges a chunk of this precision."""
        return Certifier(self.task, self.format, self.screen)

    def _adjoint_batch(self, inputs: Any, n: int, reference: Tensor, seed: int) -> TheoryBatch:
        parts = []
        sharing = Sharing(self, seed)
        for indices, kept in chunks(n, self.chunk):
            trace, canonical = self.trace_part(inputs, n, indices, seed, detailed=not self.totals)
            _require_one_path(trace)
            rows = reference[indices[:kept]]
            sums = backward(trace, canonical, self.task.seeds(rows))[self.format]
            self.record(sums)
            rivals = Rivals(trace, canonical, rows)
            sharing.chunk(trace, canonical, rivals, (inputs, n, indices, rows))
            parts.append(self.certifier.judge(trace, canonical, rows, sums, rivals))
        sharing.hand_over()
        return concatenate(parts)

    def record(self, sums: Sums) -> None:
        """Add a pass's sums to the running totals of the sites."""
        for key, (square, absolute) in sums.by_site.items():
            self.totals[key].variance += float(square.nan_to_num(0, 0, 0).sum()) / 12
            self.totals[key].worst += float(absolute.nan_to_num(0, 0, 0).sum()) / 2


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
