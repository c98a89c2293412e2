"""The models of one evaluation: the reference, and as many candidates as are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from pytest_fp16.engine.belonging import Reads, belongs
from pytest_fp16.engine.candidate import Candidate, called_model, fresh_model
from pytest_fp16.engine.checksums import Checksums
from pytest_fp16.engine.copies import make_model, shares_tensors
from pytest_fp16.engine.device_questions import device_remarks
from pytest_fp16.engine.fast_path_outputs import fast_path_remarks
from pytest_fp16.engine.hard_coded import hard_coded
from pytest_fp16.engine.kept_attributes import Table, held_by, kept_tables
from pytest_fp16.engine.models import has_modes, require_float32
from pytest_fp16.engine.modes import acts_in_training
from pytest_fp16.engine.own_caches import find_caches
from pytest_fp16.engine.untouched import Habits, State, untouched
from pytest_fp16.errors import ModelError
from pytest_fp16.mixing import keep_in_float32
from pytest_fp16.precision import REFERENCE, precision
from pytest_fp16.subject import Evaluation


class Candidates:
    """Makes them, each a model of its own.

    What no run moves is held once: where a candidate's weights are those of a model that is there
    already (the reference's under autocast), they lie in the same memory. So a large model costs
    its weights, not a multiple of them for every precision.

    Args:
        subject: whose model it is.
        device: where they run.
        target: whose kernels an emulated run follows.

    Attributes:
        reference: the candidate in float32.
        was_training: the user's model was in training mode, and acts by it.
        habits: what they do to themselves.

    Raises:
        ModelError: the model cannot be a 32-bit reference.
    """

    def __init__(self, subject: Evaluation, device: torch.device, target: str) -> None:
        self.subject = subject
        self.device = device
        self.target = target
        self.keep: Mapping[str, tuple[str, ...]] = {}
        self.habits = Habits()
        self.calls = False  # the user's function makes each model
        source = fresh_model(subject.model)
        require_float32(source)
        self._trained = {name for name, p in source.named_parameters() if p.requires_grad}
        self._held, self._tables = held_by(source), list[Table]()
        modes = has_modes(source) and has_modes(subject.model)
        self.was_training = modes and acts_in_training(source)
        self.reference = self._candidate(REFERENCE.name, source)
        self._before = Checksums(self.reference.model)
        self._lent: WeakSet[nn.Module] = WeakSet()  # models that read another's

    def own(self, few: Any, inputs: Any, output: Tensor, seed: int) -> State | None:
        """Make sure that the models are their own, once the reference has run.

        Where a copy still reads its original's weights, a function makes each of them.

        Args:
            few: some inputs of the first batch, which show it.
            inputs, output: the first batch, and the reference's outputs for it.
            seed: the random state of their run.

        Returns:
            What the reference kept before, if it is another one now; None where it stays.

        Raises:
            ModelError: the model, or what the function makes, cannot be had as one of its own.
        """
        name = self._reads_original(few, seed)
        if name is None:
            self._find_tables(few, seed)
            return None
        source = self.subject.model
        if isinstance(source, nn.Module):
            raise ModelError(belongs(name))
        made = called_model(source, self.reference.model)
        if shares_tensors(made, make_model(source)):
            raise ModelError(belongs(name))
        self.calls = True
        self.reference = self._candidate(REFERENCE.name, made)
        before = State(self.reference.model, weights=False)
        self._before = Checksums(self.reference.model)
        if not torch.equal(self.reference.outputs(inputs, seed).cpu(), output):
            raise ModelError(belongs(name))
        return before

    def _find_tables(self, few: Any, seed: int) -> None:
        """See what the model brings along of an earlier run that each of them makes itself."""
        reference = self.reference
        with untouched(reference.model, weights=self.habits.writes):
            self._tables = kept_tables(
                reference.model, self._held, lambda: reference.outputs(few, seed)
            )

    def _reads_original(self, few: Any, seed: int) -> str | None:
        seen = Reads(self.reference.model, self.reference.where, self.subject.forward is not None)
        with untouched(self.reference.model, weights=self.habits.writes):
            try:
                self.reference.outputs(few, seed, observer=seen)
            except Exception:  # torch lets nobody watch some programs
                self.reference.where.reset()
        return seen.found

    def made(
        self, name: str, more: tuple[str, ...] = (), like: Candidate | None = None
    ) -> Candidate:
        """A fresh candidate, once the reference has run.

        Args:
            name: its precision.
            more: modules to keep in float32, beside those of `keep`.
            like: another candidate of the same precision and modules in float32, whose weights
                may serve this one, too.
        """
        model = self._fresh(name, like)
        keep = (*self.keep.get(name, ()), *more)
        return self._candidate(name, keep_in_float32(model, keep, quiet=True) if keep else model)

    def _fresh(self, name: str, like: Candidate | None) -> nn.Module:
        source, reference = self.subject.model, self.reference.model
        if self.calls:
            return called_model(source, reference)
        if like is None and (precision(name).mixed or name == REFERENCE.name):
            like = self.reference
        shared = None if like is None or self.habits.writes else like.model
        made = fresh_model(source, like=reference, weights=shared)
        for table in self._tables:
            table.forget(made)
        for name, parameter in made.named_parameters():
            if name in self._trained:  # which a copy of the reference's is not
                parameter.requires_grad_()
        if shared is not None:
            self._lent.add(made)
        return made

    def look(self, begun: Iterable[State] = ()) -> None:
        """Once the reference has run: where it wrote to its weights, each gets its own back.

        A layer normalises its weights in each pass, a codebook follows what comes in; another
        begins with some batch: an embedding, where it first meets a long row.

        Args:
            begun: what models kept before the data, which then is to hold their weights as well.
        """
        if self.habits.writes or Checksums(self.reference.model) == self._before:
            return
        self.habits.writes = True
        source = fresh_model(self.subject.model).to(self.device)
        if not torch.equal(Checksums(source).sums, self._before.sums):
            source = self.reference.model  # of a function that makes another each time
        for state in begun:
            state.remember(source)
        had = dict(source.named_parameters(remove_duplicate=False))
        for model in self._lent:
            for name, p in ((n, p) for n, p in model.named_parameters() if n in had):
                p.data = had[name].detach().to(p.device, p.dtype, copy=True)

    def remarks(self, few: Any, seed: int) -> list[str]:
        """What the program does whatever the precision, or does not for this device.

        Args:
            few: some of the inputs that the reference has taken.
            seed: the random state.
        """
        said = []
        if self.reference.own_autocast:
            said.append("the model enters an autocast of its own; 32-true ran without it")
        said += hard_coded(self.reference, few, seed)
        said += fast_path_remarks(
            self.reference, lambda: self._fresh(REFERENCE.name, None), few, seed
        )
        forward, reference = self.subject.forward, self.reference
        said += find_caches(reference.model, (forward,), lambda: reference.outputs(few, seed))
        said += [table.said for table in self._tables]
        return said + device_remarks(self.reference.model, self.target, self.device, forward)

    def alone(self, few: Any, seed: int, initial: State) -> bool | None:
        """Whether a few inputs show that the reference carries something from batch to batch.

        They come out otherwise alone than they would have at first, where it keeps a mean over all
        batches: the same batch, taken again, leaves that as it is.

        Args:
            few: some of the inputs that the reference has taken.
            seed: the random state.
            initial: what it kept before.

        Returns:
            None where it does not take them alone.
        """
        found = []
        try:
            for since in (None, initial) if initial.moved else (None,):
                with untouched(self.reference.model, weights=self.habits.writes, since=since):
                    found.append(self.reference.outputs(few, seed).nan_to_num())
        except Exception:
            return None
        return not torch.equal(found[0], found[-1])

    def _candidate(self, name: str, model: nn.Module) -> Candidate:
        made = Candidate(model, precision(name), self.subject, self.device, self.target)
        made.habits = self.habits
        return made
