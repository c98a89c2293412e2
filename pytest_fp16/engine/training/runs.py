"""The training runs of one check: each (precision, seed) at most once, stored when it ends."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

import torch
from torch import nn

from pytest_fp16.engine.canary import CanaryFindings
from pytest_fp16.engine.device import effective_target, run_mode
from pytest_fp16.engine.training.canary import one_step
from pytest_fp16.engine.training.place import Amendment, Place
from pytest_fp16.engine.training.score import Score
from pytest_fp16.engine.training.train import RunResult, train, untrained
from pytest_fp16.engine.training.trainee import initial_state
from pytest_fp16.engine.training.validation import ValidTraining
from pytest_fp16.precision import REFERENCE, Precision
from pytest_fp16.progress import Progress
from pytest_fp16.settings import Settings
from pytest_fp16.subject import Training


class Runs:
    """Makes training runs, and remembers them.

    Args:
        valid: the training, as `validated` found it.
        settings: device, target, emulation, seeds.
        device: where models run.
        progress: told where a run is.
        store: keeps finished runs, or None.
        planned: by precision, the training with the modules that a plan keeps in float32, and
            their names.

    Attributes:
        further: 32-bit runs that are made beyond the allowance of seeds.
        read: the runs, by (precision, seed), that were read from the store.
    """

    further = 0

    def __init__(
        self,
        valid: ValidTraining,
        settings: Settings,
        device: torch.device,
        progress: Progress | None = None,
        store: Any = None,
        planned: Mapping[str, tuple[Training, tuple[str, ...]]] | None = None,
    ) -> None:
        self.valid, self.settings, self.device = valid, settings, device
        self.subject = valid.subject
        self.progress, self.store = progress, store
        self.planned = planned or {}
        self.mode = run_mode(settings, device)
        target = effective_target(settings, device, self.mode)
        self.place = Place(device, target, self.mode == "emulated")
        self.read: set[tuple[str, int]] = set()
        self._done: dict[tuple[str, int], RunResult] = {}
        self._states: dict[int, Mapping[str, Any]] = {}
        self._starts: dict[int, Score | None] = {}
        self._canaries: dict[str, CanaryFindings] = {}
        self._open = set(settings.precisions)

    @property
    def total(self) -> int | None:
        """Steps there would be, were the whole allowance of seeds spent on what is not settled."""
        if self.valid.steps is None:
            return None
        made = Counter(name for name, _ in self._done)
        wanted = dict.fromkeys(self._open, self.settings.seeds)
        if self._open:
            wanted[REFERENCE.name] = self.settings.seeds + self.further
        to_come = sum(max(runs - made[name], 0) for name, runs in wanted.items())
        return (len(self._done) + to_come) * self.steps_per_run

    def settle(self, precision: Precision) -> None:
        """No more runs of that precision are wanted."""
        self._open.discard(precision.name)

    @property
    def steps_per_run(self) -> int:
        """Batches of one run; 0 where nobody knows."""
        return (self.valid.steps or 0) * self.subject.epochs

    def subject_for(self, precision: Precision) -> Training:
        """The training as it is made in a precision: with what the plan keeps in float32."""
        return self.planned.get(precision.name, (self.subject, ()))[0]

    def _kept(self, precision: Precision, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """What names a run in the store beside precision and seed: weights, and modules kept."""
        keep = self.planned.get(precision.name, (self.subject, ()))[1]
        return {**state, "kept in float32": list(keep)} if keep else state

    def state(self, seed: int) -> Mapping[str, Any]:
        """The float32 weights of a seed, made once."""
        if seed not in self._states:
            self._states.clear()  # seeds come one after the other: one set of weights is enough
            self._states[seed] = initial_state(self.subject, seed)
        return self._states[seed]

    def start(self, seeds: Iterable[int]) -> float | None:
        """The mean metric, in 32 bits, of the weights that seeds start from; None where it is none.

        One and the same module starts every seed from its weights.
        """
        own = not isinstance(self.subject.model, nn.Module)
        found = [self._start(seed if own else 0) for seed in seeds]
        known = [score.value for score in found if score is not None]
        return fmean(known) if known and len(known) == len(found) else None

    def _start(self, seed: int) -> Score | None:
        if seed not in self._starts:
            state = self.state(seed)
            self._starts[seed] = untrained(self.subject, seed, state, self.place, self.valid.task)
        return self._starts[seed]

    def run(self, precision: Precision, seed: int) -> RunResult:
        """The run of that precision and seed: remembered, read from the store, or made."""
        key = (precision.name, seed)
        if key not in self._done:
            state = self.state(seed)
            found = None
            if self.store is not None and self.settings.resume:
                found = self.store.load(precision, seed, self._kept(precision, state))
            if found is not None:
                self.read.add(key)
            else:
                found = self.fresh(precision, seed)
                # A lack of memory may pass; a stored one would not.
                if self.store is not None and found.ended != "out of memory":
                    self.store.save(precision, seed, self._kept(precision, state), found)
            self._done[key] = found
        return self._done[key]

    def read_of(self, precision: Precision) -> str | None:
        """How many of the runs that a precision's verdict rests on were read from the store.

        None where nothing was to be read; where something was, and none fits, that is said.
        """
        known = [key for key in self._done if key[0] in (precision.name, REFERENCE.name)]
        read = len(self.read.intersection(known))
        if not read and (self.store is None or not self.settings.resume or not self.store.held):
            return None
        if not read:
            return (
                f"none of the {self.store.held} stored runs in {self.store.folder} was made with "
                "this model, data, code and settings (resume): all were made again"
            )
        return f"{read} of {len(known)} runs were read from {self.store.folder} (resume)"

    def fresh(
        self,
        precision: Precision,
        seed: int,
        amendment: Amendment | None = None,
        subject: Any = None,
    ) -> RunResult:
        """A run that is not remembered: of an amended training, or of another subject.

        What this device's own kernels refuse is refused where it is the target, or where no device
        would have it.
        """
        refused = self._refused(precision, seed, amendment, subject)
        if refused is not None:
            return RunResult(precision.name, seed, ended="raised", error=refused)
        return train(
            subject or self.subject_for(precision),
            precision,
            seed,
            self.state(seed),
            self.place,
            self.valid.task,
            self._teller(precision, seed),
            amendment,
            self._usual(precision, seed),
        )

    def _usual(self, precision: Precision, seed: int) -> float | None:
        """The largest loss the 32-bit run of a seed came through; None where there is no such."""
        reference = self._done.get((REFERENCE.name, seed))
        if precision == REFERENCE or reference is None or reference.broke:
            return None
        return max((x for x in reference.losses if math.isfinite(x)), default=None)

    def canary(self, precision: Precision) -> CanaryFindings | None:
        """What one native step showed, made once; None where runs are native, or in 32 bits."""
        if not self.place.emulated or not precision.low:
            return None
        if precision.name not in self._canaries:
            self._canaries[precision.name] = self._run_canary(precision, 0)
        return self._canaries[precision.name]

    def _refused(
        self, precision: Precision, seed: int, amendment: Amendment | None, subject: Any
    ) -> str | None:
        canary = self.canary(precision)
        if canary is None or canary.error is None:
            return None
        if amendment is not None or subject is not None:
            canary = self._run_canary(precision, seed, amendment, subject)
        on_target = self.place.target == self.device.type
        nowhere = canary.mixed_dtypes and not precision.mixed
        return canary.text if nowhere or (canary.unsupported and on_target) else None

    def _run_canary(
        self,
        precision: Precision,
        seed: int,
        amendment: Amendment | None = None,
        subject: Any = None,
    ) -> CanaryFindings:
        subject, state = subject or self.subject_for(precision), self.state(seed)
        return one_step(subject, precision, seed, state, self.place, amendment)

    def _teller(self, precision: Precision, seed: int) -> Any:
        if self.progress is None:
            return None
        report, epochs = self.progress, self.subject.epochs
        base = len(self._done) * self.steps_per_run

        def tell(epoch: int, step: int, loss: float) -> None:
            what = (
                f"{self.subject.name}: seed {seed}, {precision.name}, epoch {epoch + 1}/{epochs}, "
                f"loss {loss:.4g}"
            )
            done = base + epoch * (self.valid.steps or 0) + step + 1
            total = self.total
            # A cure's run comes when everything is settled, and is work nevertheless.
            report(what, done, total and max(total, base + self.steps_per_run))

        return tell
