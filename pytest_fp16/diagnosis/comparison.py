"""The few inputs a diagnosis looks at, and the two programs on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pytest_fp16.diagnosis.replay import exact_results, healed, repaired, watched
from pytest_fp16.diagnosis.tape import Ref, Tape
from pytest_fp16.diagnosis.twin import Fate, Twin
from pytest_fp16.diagnosis.twin_run import Operation, Program, TwinRun
from pytest_fp16.engine.batching import map_inputs, take
from pytest_fp16.engine.candidate import Candidate
from pytest_fp16.engine.containers import map_tensors
from pytest_fp16.engine.emulation.emulate import Emulation, widen
from pytest_fp16.engine.emulation.operations import AUTOCAST, LOW
from pytest_fp16.engine.models import call_as_is, quiet
from pytest_fp16.engine.outputs import main_output
from pytest_fp16.engine.randomness import seed_everything
from pytest_fp16.engine.untouched import untouched
from pytest_fp16.task import Task

#: Inputs a diagnosis looks at.
FEW = 8


@dataclass(frozen=True)
class Sample:
    """Inputs to look at.

    Attributes:
        inputs: on the device, float32.
        seed: the random state of their runs.
    """

    inputs: Any
    seed: int


def fewer(inputs: Any, n: int, seed: int, wrong: list[int], most: int = FEW) -> Sample:
    """At most so many of n inputs, those that went wrong first."""
    rest = [i for i in range(n) if i not in set(wrong)]
    chosen = sorted([*wrong, *rest][:most])
    return Sample(take(inputs, n, chosen), seed)


class Comparison:
    """One candidate, its float32 twin, and a few inputs.

    Args:
        candidate: the candidate, cast as it runs.
        reference: the float32 model the candidate was made from, on the same device.
        task: how outputs are read.
        sample: the inputs.
        emulated: whether 16-bit operations are emulated or run in the device's own kernels.
    """

    def __init__(
        self, candidate: Candidate, reference: nn.Module, task: Task, sample: Sample, emulated: bool
    ) -> None:
        self.candidate = candidate
        self.task = task
        self.sample = sample
        self.where = candidate.where
        emulation = (
            Emulation(candidate.target, mixed=candidate.precision.mixed) if emulated else None
        )
        twins = _exact_twins(candidate.model, reference, candidate.habits.carries)
        self.program = Program(
            emulation,
            twins,
            self.where,
            writes=candidate.habits.writes,
            mixed=candidate.precision.mixed,
        )
        with torch.no_grad(), quiet():
            seed_everything(sample.seed)
            inputs = map_tensors(sample.inputs, torch.clone)  # a model may write into its input
            with untouched(reference, weights=candidate.habits.writes):
                output = call_as_is(reference, inputs, candidate.subject.forward)
            self.wanted = main_output(output).detach().float()
        self.last: TwinRun | None = None
        self.recorded: TwinRun | None = None
        self.tape = Tape()

    def record(self) -> Tensor:
        """The raw outputs in 16 bits; from then on `healed` and `side_by_side` know the program."""
        self.tape = Tape()
        output = self._run(TwinRun(self.program, tape=self.tape))
        if isinstance(output, Twin):
            self.tape.output = Ref.to(output)
        return _plain(output)

    def run(self, until: float = math.inf) -> Tensor:
        """The raw outputs when the first `until` operations run in 16 bits."""
        return _plain(self._run(TwinRun(self.program, until)))

    def healed(self, until: int) -> Tensor:
        """The same, played from the recording where that tells it."""
        try:
            with self.replaying():
                return healed(self.tape, until).detach().float()
        except Exception:  # exact values may have led the program elsewhere: see for ourselves
            return self.run(until)

    def repaired(self, indices: Collection[int]) -> Tensor:
        """The same as `healed` behind the first of those operations, with their results put right.

        Raises:
            Diverged: that leads the program elsewhere.
        """
        with self.replaying():
            return repaired(self.tape, indices).detach().float()

    def but_for(self, index: int) -> Tensor:
        """The raw outputs in 16 bits with the result of one operation put right, wherever it leads.

        Raises:
            Diverged: it is written into memory.
        """
        with self.replaying():
            results = exact_results(self.tape, {index})[index]
        return _plain(self._run(TwinRun(self.program, results=(index, results))))

    def side_by_side(self, watch: Callable[[int], bool]) -> list[Operation]:
        """The recorded operations, those of chosen indices measured against exact values."""
        if self.recorded is None:
            self.record()
        with self.replaying():
            found = watched(self.tape, watch)
        for finding in found.values():
            finding.asked = self.candidate.precision.dtype
        return [replace(o, finding=found.get(o.index)) for o in self.operations]

    @property
    def operations(self) -> list[Operation]:
        """The recorded program, in order."""
        assert self.recorded is not None, "unreachable: nothing was recorded"
        return self.recorded.operations

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """What is played from the recording is computed in here."""
        with torch.no_grad(), quiet(), torch._C._ExcludeDispatchKeyGuard(AUTOCAST):
            yield

    def natively(self) -> Tensor:
        """The raw outputs of this device's own kernels, with nothing that follows them."""
        return self._called(_cast, nullcontext())

    def observed(self, observer: AbstractContextManager[Any]) -> Tensor:
        """The raw outputs as the candidate gives them, with a mode that sees its operations."""
        with self.program.emulation or nullcontext():
            return _plain(self._called(_cast, observer))

    def _run(self, twin_run: TwinRun) -> Tensor:
        self.last = twin_run
        if twin_run.tape is not None:
            self.recorded = twin_run
        return self._called(_input, twin_run)

    def _called(
        self,
        given: Callable[[Tensor, torch.dtype | None], Tensor],
        inside: AbstractContextManager[Any],
    ) -> Tensor:
        candidate = self.candidate
        self.where.reset()
        seed_everything(self.sample.seed)
        dtype = None if candidate.precision.mixed else candidate.precision.dtype
        keep = candidate.subject.keep_inputs
        inputs = map_inputs(
            self.sample.inputs, lambda t, kept: given(t, None if kept else dtype), keep
        )
        context = candidate.region()
        kept = untouched(candidate.model, weights=candidate.habits.writes)
        with kept, torch.no_grad(), quiet(), context, inside:
            output = call_as_is(candidate.model, inputs, candidate.subject.forward)
            return main_output(output)  # it may stack the logits of steps


def _plain(output: Tensor) -> Tensor:
    return (output.exact if isinstance(output, Twin) else output).detach().float()


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    casts = tensor.is_floating_point() and dtype is not None
    return tensor.to(dtype) if casts else tensor.clone()


def _input(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    near = _cast(tensor, dtype)
    return Twin(near, tensor.clone(), Fate(made=False, fixed=False), near.dtype)


def _exact_twins(
    model: nn.Module, reference: nn.Module, carries: bool
) -> dict[int, tuple[Tensor, Tensor]]:
    """The reference's parameters and buffers beside the candidate's of the same name.

    What the candidate has carried along since (`carries`) begins as it is.
    """
    exact = dict([*reference.named_parameters(), *reference.named_buffers()])
    exact = {**dict(reference.named_parameters(remove_duplicate=False)), **exact}
    found = {}
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    for name, tensor in named:
        twin = exact.get(name)
        if twin is not None and twin.shape == tensor.shape:
            same = tensor.dtype not in LOW and tensor.dtype == twin.dtype
            if carries and not torch.equal(tensor, twin.to(tensor.dtype)):
                twin = tensor
            found[id(tensor)] = (tensor, tensor if same else widen(twin.detach()))
    return found
