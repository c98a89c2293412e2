"""The models of one evaluation: the reference, and as many candidates as are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakSet

import torch
from torch import Tensor, nn

from pytest_fp16.engine.candidate import Candidate, fresh_model
from pytest_fp16.engine.models import require_float32
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
        was_training: the user's model was in training mode.
        carries: they carry something from one batch to the next.

    Raises:
        ModelError: the model cannot be a 32-bit reference.
    """

    def __init__(self, subject: Evaluation, device: torch.device, target: str) -> None:
        self.subject = subject
        self.device = device
        self.target = target
        self.keep: Mapping[str, tuple[str, ...]] = {}
        self.carries = False
        source = fresh_model(subject.model)
        require_float32(source)
        self.was_training = source.training
        self.reference = self._candidate(REFERENCE.name, source)
        self._before = _marks(self.reference.model)
        self._moves: bool | None = None
        self._lent: WeakSet[nn.Module] = WeakSet()  # models that read another's

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
        return self._candidate(name, keep_in_float32(model, keep) if keep else model)

    def _fresh(self, name: str, like: Candidate | None) -> nn.Module:
        source, reference = self.subject.model, self.reference.model
        if self._moves is None:  # such as a layer that normalises its own weights in each pass
            self._moves = _marks(reference) != self._before
        if like is None and (precision(name).mixed or name == REFERENCE.name):
            like = self.reference
        shared = None if like is None or self._moves else like.model
        made = fresh_model(source, like=reference, weights=shared)
        if shared is not None:
            self._lent.add(made)
        return made

    def part(self) -> None:
        """Once the reference has run: where it wrote to its weights, each gets its own back.

        A layer may do so from some batch on: an embedding, where it first meets a long row.
        """
        if self._moves or not self._lent or _marks(self.reference.model) == self._before:
            return
        self._moves = True
        source = fresh_model(self.subject.model).to(self.device)
        if [said for _, said in _marks(source)] != [said for _, said in self._before]:
            source = self.reference.model  # of a function that makes another each time
        had = dict(source.named_parameters(remove_duplicate=False))
        for model in self._lent:
            for name, p in ((n, p) for n, p in model.named_parameters() if n in had):
                p.data = had[name].detach().to(p.device, p.dtype, copy=True)

    def _candidate(self, name: str, model: nn.Module) -> Candidate:
        made = Candidate(model, precision(name), self.subject, self.device, self.target)
        made.carries = self.carries
        return made


def _marks(model: nn.Module) -> list[tuple[int, str]]:
    """What tells that a weight has been written to, in place or past autograd's count of that."""
    return [(p._version, _sum(p.detach())) for p in model.parameters()]


def _sum(weight: Tensor) -> str:
    try:
        return str(weight.sum().tolist())
    except RuntimeError:  # no kernel for this layout, or no values, as on the meta device
        return ""
