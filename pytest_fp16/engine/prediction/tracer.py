"""A candidate's program, traced chunk by chunk: where every prediction of its errors starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pytest_fp16.engine.batching import copied, take
from pytest_fp16.engine.emulation.refusal import UnsupportedOperation
from pytest_fp16.engine.models import Location, autocast, call_as_is, quiet
from pytest_fp16.engine.outputs import main_output
from pytest_fp16.engine.prediction.reverse import NotDifferentiableError
from pytest_fp16.engine.randomness import seed_everything
from pytest_fp16.engine.tracing.decisions import Errors
from pytest_fp16.engine.tracing.recorder import Recorder
from pytest_fp16.engine.tracing.shadow import Shadow, wrap_inputs
from pytest_fp16.engine.tracing.sites import SiteKey, SiteTotals
from pytest_fp16.engine.tracing.trace import Trace
from pytest_fp16.engine.untouched import Habits, untouched
from pytest_fp16.precision import Precision
from pytest_fp16.subject import Evaluation
from pytest_fp16.task import Task
from pytest_fp16.theory.rounding import FORMATS, Format


@dataclass(eq=False)
class Tracer:
    """Traces one candidate.

    Attributes:
        model: the candidate's own copy, cast as the candidate is.
        precision, target, device: how it runs.
        subject, task: how it is called, and what counts as a decision.
        habits: what the model does to itself.
        totals: running totals per site.
        opaque: operations that could not be looked into.
        dtypes: of the results that operations gave, and how many.
        errors: predicted ones of what the model decides on, once they are known.
    """

    model: nn.Module
    precision: Precision
    target: str
    device: torch.device
    subject: Evaluation
    task: Task
    habits: Habits = field(default_factory=Habits)
    totals: dict[SiteKey, SiteTotals] = field(default_factory=dict)
    opaque: set[str] = field(default_factory=set)
    dtypes: dict[str, int] = field(default_factory=dict)
    errors: Errors = field(default_factory=list)

    def __post_init__(self) -> None:
        self.where = Location(self.model)
        self.constants: dict[int, tuple[Tensor, Tensor]] = {}
        self._trained = [p for p in self.model.parameters() if p.requires_grad]
        self.row: torch.Size | None = None  # of canonical logits, for one input
        self.tell: Callable[[], object] = lambda: None  # called after each trace

    @property
    def format(self) -> Format:
        """The 16-bit format of the precision."""
        return FORMATS[self.precision.dtype]

    @property
    def formats(self) -> tuple[Format, ...]:
        """Every format whose spacing is recorded, this one first."""
        return (self.format,)

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
        trace.mixed, trace.writes = self.precision.mixed, self.habits.writes
        # Where weights are written to, casts that are kept matter. Elsewhere products with what may
        # get a gradient would lay inputs and steps in one dimension, and tell them no more apart.
        for parameter in self._trained:
            parameter.requires_grad_(self.habits.writes)
        self.where.reset()
        seed_everything(seed)
        cast = None if self.precision.mixed else self.precision.dtype
        traced = wrap_inputs(copied(inputs), cast, self.subject.keep_inputs)
        # Each of the traces of a batch begins with what was carried up to that batch, and without
        # what another has left in a cache: rounded there once, it would be rounded no more.
        kept = untouched(self.model, self.habits.writes, values=self.habits.lasting)
        context = autocast(self.precision, self.device, self.target)
        with torch.no_grad(), quiet(), context, kept, trace:
            output = call_as_is(self.model, traced, self.subject.forward)
            main = main_output(output)  # it may stack the logits of steps
        values = main.inner if isinstance(main, Shadow) else main
        with torch.enable_grad():
            canonical = self.task.canonical(values.float())
        self.opaque |= trace.opaque
        for name, count in trace.dtypes.items():
            self.dtypes[name] = max(self.dtypes.get(name, 0), count)
        self.tell()
        return trace, canonical

    @contextmanager
    def totals_apart(self) -> Iterator[None]:
        """Traces in here leave the totals alone, which are of runs without noise."""
        held, self.totals = self.totals, {}
        try:
            yield
        finally:
            self.totals = held

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
        except UnsupportedOperation as error:
            if len(indices) < n:  # a larger batch may take another kernel, as that of cdist does
                self.trace(inputs, n, seed)
                raise NotDifferentiableError(f"a part of a batch would stop: {error}") from error
            raise
        except Exception as error:  # if the 16-bit program fails, the whole batch will show it
            raise NotDifferentiableError(
                f"the model does not run on a part of a batch ({type(error).__name__})"
            ) from error
        row = part[1].shape[1:] if self.row is None else self.row
        if part[1].shape != (len(indices), *row):  # not one row, as it was, for each input
            raise NotDifferentiableError("a part of a batch does not give its part of the outputs")
        return part
