"""The theory pass: per decision, the predicted margin, σ and worst-case bound, from one trace.

For each chunk of inputs the 16-bit program is traced in float32 arithmetic (`Trace`), and one
reverse-mode pass from the margins gives every site's contribution. Where that cannot be done
(decisions per position, custom kernels without a gradient, outputs that depend on the whole
batch), the trace is repeated with random rounding errors instead.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pytest_fp16.engine.batching import PRIMES, chunks, take
from pytest_fp16.engine.emulate import UnsupportedOperation
from pytest_fp16.engine.models import Location, autocast, call_as_is, main_output
from pytest_fp16.engine.randomness import seed_everything
from pytest_fp16.engine.shadow import Shadow, wrap_inputs
from pytest_fp16.engine.sites import SiteKey, SiteTotals
from pytest_fp16.engine.trace import Trace
from pytest_fp16.precision import Precision
from pytest_fp16.subject import Evaluation
from pytest_fp16.task import Task

#: Repeated runs with random rounding where a reverse pass does not apply.
NOISE_RUNS = 8
#: "probable" means every margin above this many σ.
PROBABLE_SIGMAS = 4.0
#: A competitor this many bounds of the runner-up away is taken as cleared without its own pass.
SCREEN = 4.0
#: Extra backward passes for inputs with more than one near competitor.
EXTRA_COMPETITORS = 2
_CHUNK_BYTES = 512 * 2**20
_AGREEMENT = 0.05


@dataclass
class TheoryBatch:
    """What theory says about one batch; float32 tensors of shape [N, P] unless noted.

    Attributes:
        logits: predicted logits of the candidate, [N, P, C] (or values [N, D]).
        margin: predicted margin g + b of the reference's top class over its runner-up.
        sigma: predicted standard deviation of that margin.
        bound: first-order worst case, or None where only random rounding was possible.
        bounded, probable: certified in that sense, bool.
        overflowed, undecided: inputs that overflow somewhere, that lie near a discrete decision;
            bool, [N].
        noisy_logits: with random rounding, predicted logits of each run, [R, N, P, C].
    """

    logits: Tensor
    margin: Tensor
    sigma: Tensor
    bound: Tensor | None
    bounded: Tensor
    probable: Tensor
    overflowed: Tensor
    undecided: Tensor
    noisy_logits: Tensor | None = None


@dataclass
class TheoryPass:
    """The theory of one candidate, fed batch by batch.

    Attributes:
        model: the candidate's own copy, cast as the candidate is.
        precision, target, device: how it runs.
        subject, task: how it is called, and what counts as a decision.
        totals: running totals per site.
    """

    model: nn.Module
    precision: Precision
    target: str
    device: torch.device
    subject: Evaluation
    task: Task
    totals: dict[SiteKey, SiteTotals] = field(default_factory=dict)
    method: str = "adjoint"
    notes: list[str] = field(default_factory=list)
    opaque: set[str] = field(default_factory=set)
    dtypes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.where = Location(self.model)
        self.constants: dict[int, tuple[Tensor, Tensor]] = {}
        self.chunk = PRIMES[-1]
        self.started = False
        if self.task.many or self.task.batchwise:
            self.method = "random rounding"
            self.notes.append(
                "decisions per position or between inputs: σ from repeated runs with random rounding"
            )

    def run(self, inputs: Any, n: int, reference: Tensor, seed: int) -> TheoryBatch:
        """Theory for one batch of n inputs with the reference's canonical logits [N, P, C]."""
        if self.method == "adjoint":
            try:
                if not self.started:
                    self._start(inputs, n, reference, seed)
                return self._adjoint_batch(inputs, n, reference, seed)
            except _NotDifferentiableError as reason:
                self._fall_back(str(reason))
        return self._noise_batch(inputs, n, reference, seed)

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
        **options: Any,
    ) -> tuple[Trace, Tensor]:
        """Trace one chunk; its canonical logits in float32, with their graph."""
        trace = Trace(
            batch=batch,
            device=self.device,
            target=self.target,
            where=self.where,
            totals=self.totals,
            constants=self.constants,
            noise=noise,
            **options,
        )
        self.where.reset()
        seed_everything(seed)
        cast = None if self.precision.mixed else self.precision.dtype
        traced = wrap_inputs(inputs, cast)
        with torch.no_grad(), autocast(self.precision, self.device, self.target), trace:
            output = call_as_is(self.model, traced, self.subject.forward)
        main = main_output(output)
        values = main.inner if isinstance(main, Shadow) else main
        with torch.enable_grad():
            canonical = self.task.canonical(values.float())
        self.opaque |= trace.opaque
        for name, count in trace.dtypes.items():
            self.dtypes[name] = max(self.dtypes.get(name, 0), count)
        return trace, canonical

    def _trace_part(
        self, inputs: Any, n: int, indices: list[int], seed: int, **options: Any
    ) -> tuple[Trace, Tensor]:
        """Trace some inputs of a batch.

        Raises:
            _NotDifferentiableError: the model does not run on a part of a batch.
        """
        try:
            return self.trace(take(inputs, n, indices), len(indices), seed, **options)
        except UnsupportedOperation:
            raise
        except Exception as error:  # if the 16-bit program fails, the whole batch will show it
            raise _NotDifferentiableError(
                f"the model does not run on a part of a batch ({type(error).__name__})"
            ) from error

    def _start(self, inputs: Any, n: int, reference: Tensor, seed: int) -> None:
        """Size the chunks, and check on a few inputs that σ does not depend on the batch."""
        self.started = True
        few = 5 if n >= 7 else 1
        trace, canonical = self._trace_part(inputs, n, list(range(few)), seed)
        if trace.severed:
            names = ", ".join(sorted(trace.severed))
            raise _NotDifferentiableError(f"no gradient passes {names}")
        per_input = 4 * 3 * trace.site_values / few
        self.chunk = max(p for p in PRIMES if p == 5 or p * per_input <= _CHUNK_BYTES)
        alone = self._backward(trace, canonical, reference[:few], few)[0]
        values = canonical.detach()[:few]
        self.totals.clear()
        if n == 1:
            return
        indices, kept = chunks(n, self.chunk)[0]
        trace, canonical = self._trace_part(inputs, n, indices, seed)
        together = self._backward(trace, canonical, reference[:kept], kept)[0]
        self.totals.clear()
        differs = (alone - together[:few]).abs() > _AGREEMENT * alone
        if trace.owners.shared or bool(differs.any()) or _differ(values, canonical[:few]):
            raise _NotDifferentiableError("the error of an input depends on its batch")

    # -- reverse mode -------------------------------------------------------------------------

    def _adjoint_batch(self, inputs: Any, n: int, reference: Tensor, seed: int) -> TheoryBatch:
        parts = []
        for indices, kept in chunks(n, self.chunk):
            trace, canonical = self._trace_part(inputs, n, indices, seed, detailed=not self.totals)
            rows = reference[indices[:kept]]
            sigma, bound = self._backward(trace, canonical, rows, kept, record=True)
            parts.append(self._judge(trace, canonical, rows, kept, sigma, bound))
        return _concatenate(parts)

    def _backward(
        self, trace: Trace, canonical: Tensor, reference: Tensor, kept: int, record: bool = False
    ) -> tuple[Tensor, Tensor]:
        """σ and bound of the runner-up's margin, [kept, 1] each."""
        seeds = torch.zeros_like(canonical)
        seeds[:kept] = self.task.seeds(reference)
        sigma, bound = self._pass(trace, canonical, seeds, record)
        return sigma[:kept].unsqueeze(1), bound[:kept].unsqueeze(1)

    def _pass(
        self, trace: Trace, canonical: Tensor, seeds: Tensor, record: bool = False
    ) -> tuple[Tensor, Tensor]:
        contributions = trace.contributions
        contributions.reset()
        if not trace.leaves or not canonical.requires_grad:
            if trace.leaves:
                raise _NotDifferentiableError("the outputs carry no gradient")
            return contributions.sigma, contributions.bound
        finite = torch.isfinite(canonical)
        try:
            with torch.enable_grad():
                torch.autograd.grad(
                    torch.where(finite, canonical, torch.zeros_like(canonical)),
                    trace.leaves,
                    seeds * finite,
                    retain_graph=True,
                    allow_unused=True,
                )
        except RuntimeError as error:
            raise _NotDifferentiableError(
                f"no reverse pass ({str(error).splitlines()[0][:80]})"
            ) from None
        if record:
            for key, (square, absolute) in contributions.by_site.items():
                self.totals[key].variance += float(square.nan_to_num(0, 0, 0).sum()) / 12
                self.totals[key].worst += float(absolute.nan_to_num(0, 0, 0).sum()) / 2
        return contributions.sigma, contributions.bound

    def _judge(
        self,
        trace: Trace,
        canonical: Tensor,
        reference: Tensor,
        kept: int,
        sigma: Tensor,
        bound: Tensor,
    ) -> TheoryBatch:
        """Certificates of one chunk, with extra passes for competitors that come near."""
        logits = canonical.detach()[:kept]
        margin = self.task.margins(logits, reference)
        undecided = trace.undecided[:kept]
        if not self.task.decides:
            none = torch.zeros_like(margin, dtype=torch.bool)
            return TheoryBatch(
                logits, margin, sigma, bound, none, none, trace.overflowed[:kept], undecided
            )
        bounded = (margin > bound) & ~undecided.unsqueeze(1)
        probable = (margin > PROBABLE_SIGMAS * sigma) & ~undecided.unsqueeze(1)
        top = reference.argmax(-1, keepdim=True)
        gaps = (logits.gather(-1, top) - logits).scatter(-1, top, torch.inf)
        runner_up = reference.scatter(-1, top, -torch.inf).argmax(-1, keepdim=True)
        gaps = gaps.scatter(-1, runner_up, torch.inf)
        for _ in range(EXTRA_COMPETITORS):
            gap, rival = gaps.min(-1, keepdim=True)
            needy = bounded.unsqueeze(-1) & (gap < SCREEN * bound.unsqueeze(-1))
            if not bool(needy.any()):
                break
            seeds = torch.zeros_like(canonical)
            one = torch.zeros_like(logits).scatter(-1, top, 1.0).scatter(-1, rival, -1.0)
            seeds[:kept] = one * needy
            rival_sigma, rival_bound = (
                v[:kept].unsqueeze(1) for v in self._pass(trace, canonical, seeds)
            )
            need = needy.squeeze(-1)
            bounded &= ~need | (gap.squeeze(-1) > rival_bound)
            probable &= ~need | (gap.squeeze(-1) > PROBABLE_SIGMAS * rival_sigma)
            gaps = gaps.scatter(-1, rival, torch.inf)
        bounded &= gaps.amin(-1) >= SCREEN * bound
        return TheoryBatch(
            logits, margin, sigma, bound, bounded, probable, trace.overflowed[:kept], undecided
        )

    # -- random rounding ----------------------------------------------------------------------

    def _noise_batch(self, inputs: Any, n: int, reference: Tensor, seed: int) -> TheoryBatch:
        generator = torch.Generator(device=self.device).manual_seed(seed)
        trace, plain = self.trace(inputs, n, seed, adjoint=False, detailed=not self.totals)
        plain = plain.detach()
        runs = [self.trace(inputs, n, seed, noise=generator)[1].detach() for _ in range(NOISE_RUNS)]
        margin = self.task.margins(plain, reference)
        errors = torch.stack([self.task.margins(r, reference) for r in runs]) - margin
        # Divided by R − 2: then the mean square of errors over σ is one although σ is itself estimated.
        sigma = (errors.square().sum(0) / (NOISE_RUNS - 2)).sqrt()
        undecided = (
            trace.undecided[:n] if len(trace.undecided) == n else torch.zeros(n, dtype=torch.bool)
        )
        probable = (
            margin > PROBABLE_SIGMAS * sigma
            if self.task.decides
            else torch.zeros_like(margin, dtype=torch.bool)
        )
        return TheoryBatch(
            logits=plain,
            margin=margin,
            sigma=sigma,
            bound=None,
            bounded=torch.zeros_like(margin, dtype=torch.bool),
            probable=probable,
            overflowed=trace.overflowed,
            undecided=undecided,
            noisy_logits=torch.stack(runs),
        )


def _differ(alone: Tensor, together: Tensor) -> bool:
    """Whether predicted logits change with the batch, by more than the order of float32 sums."""
    finite = alone.isfinite() & together.detach().isfinite()
    gap = torch.where(finite, alone - together.detach(), torch.zeros_like(alone)).abs()
    scale = torch.where(finite, alone, torch.zeros_like(alone)).abs().amax()
    return bool((gap > 1e-3 * scale).any())


class _NotDifferentiableError(Exception):
    """A reverse pass cannot be made; random rounding can."""


def _concatenate(parts: list[TheoryBatch]) -> TheoryBatch:
    def join(name: str) -> Any:
        values = [getattr(p, name) for p in parts]
        return None if values[0] is None else torch.cat(values)

    return TheoryBatch(
        *(
            join(n)
            for n in (
                "logits",
                "margin",
                "sigma",
                "bound",
                "bounded",
                "probable",
                "overflowed",
                "undecided",
            )
        )
    )
