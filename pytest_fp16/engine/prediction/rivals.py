"""Could a third class win? Backward passes from the margins over further classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pytest_fp16.engine.batching import FEWEST, chunks
from pytest_fp16.engine.prediction.reverse import backward
from pytest_fp16.engine.prediction.tracer import Tracer
from pytest_fp16.engine.tracing.sites import Sums
from pytest_fp16.engine.tracing.trace import Trace
from pytest_fp16.theory.rounding import Format

#: A competitor is cleared without a pass of its own this many bounds of the runner-up away, at
#: least: bounds are measured on a few inputs and taken for all.
SCREEN = 4.0
_MARGIN = 2.0
#: Backward passes for inputs with more than one near competitor.
EXTRA_COMPETITORS = 2
#: Backward passes on the first few inputs that measure how far the errors of classes differ.
SCREENING_PASSES = 32
#: Of a group of classes measured together: this far above the other groups, one may stand out.
_STANDS_OUT = 2.0


class Rivals:
    """The margins over a third class and further ones, for the inputs to which they come near.

    These few are traced again, together: a backward pass costs as much for one input of a chunk as
    for all of them.

    Args:
        retrace: traces the inputs of a batch at some indices.
        size: how many at once.
        whole: the trace of the whole batch with its canonical logits, where it is at hand.
    """

    def __init__(
        self,
        retrace: Callable[[list[int]], tuple[Trace, Tensor]],
        size: int,
        whole: tuple[Trace, Tensor] | None = None,
    ) -> None:
        self.retrace = retrace
        self.size = size
        self.whole = whole
        self.known: list[dict[Format, Sums]] = []

    def ask(self, asked: Tensor, reference: Tensor) -> None:
        """Look at the margins over the third class and those behind it.

        Args:
            asked: which inputs' margins over which of these classes, bool, [N, few].
            reference: the reference's canonical logits, [N, P, C]. Ranks are the reference's.
        """
        self.known = [{} for _ in range(asked.shape[1])]
        who = asked.any(1).nonzero().flatten().tolist()
        if self.whole is not None and who:
            self._look(*self.whole, list(range(len(asked))), asked, reference)
            return
        for indices, kept in chunks(len(who), self.size, FEWEST):
            there = [who[i] for i in indices]
            self._look(*self.retrace(there), there[:kept], asked, reference)

    def _look(
        self, trace: Trace, canonical: Tensor, there: list[int], asked: Tensor, reference: Tensor
    ) -> None:
        rows = reference[there]
        ranks = rows.argsort(-1, descending=True)
        for extra, known in enumerate(self.known):
            if not bool(asked[there, extra].any()):
                continue
            seeds = torch.zeros_like(rows).scatter(-1, ranks[..., :1], 1.0)
            seeds.scatter_(-1, ranks[..., extra + 2 : extra + 3], -1.0)
            for fmt, sums in backward(trace, canonical, seeds).items():
                if fmt not in known:
                    zeros = reference.new_zeros(len(asked))
                    known[fmt] = Sums(zeros, zeros.clone())
                known[fmt].square[there] = sums.square[: len(there)]
                known[fmt].absolute[there] = sums.absolute[: len(there)]

    def of(self, fmt: Format, extra: int) -> Sums | None:
        """Sums over the batch for the class so far behind the third; None if nobody asked."""
        return self.known[extra].get(fmt)


class Screening:
    """How much larger than the runner-up's the bound of a class is, measured on a few inputs.

    Args:
        tracer: of the candidate.
        trace, canonical: its run of the few inputs.
        reference: their canonical logits, [few, P, C].
    """

    def __init__(self, tracer: Tracer, trace: Trace, canonical: Tensor, reference: Tensor) -> None:
        self.tracer = tracer
        self.program = trace, canonical
        self.reference = reference
        self.ranks = reference.argsort(-1, descending=True)
        self.top = torch.zeros_like(reference).scatter_(-1, self.ranks[..., :1], 1.0)
        self.own = self._bound(tracer.task.seeds(reference)).clamp(min=1e-30)

    def by_class(self) -> Tensor:
        """The screen of each class, [C]: so many bounds of the runner-up away it is cleared."""
        classes = self.reference.shape[-1]
        if classes <= SCREENING_PASSES:
            ratios = [self._ratio(self._unit(k)) for k in range(classes)]
            measured = torch.stack(ratios)
            unseen = measured == 0  # such as the class that wins on all of them
            measured = torch.where(unseen, measured.max(), measured)
        else:
            measured = self._many(classes)
        return (_MARGIN * measured).clamp(min=SCREEN)

    def _many(self, classes: int) -> Tensor:
        """Half the passes look at the nearest competitors one by one, half at classes in groups.

        The classes of a group get random signs; its bound is larger than those of its members, so
        the nearest ones tell the size, and the groups tell which classes stand out.
        """
        passes = SCREENING_PASSES // 2
        near = [self._ratio(self._ranked(r)) for r in range(2, 2 + passes)]
        generator = torch.Generator().manual_seed(classes)
        signs = torch.randint(0, 2, (classes,), generator=generator).mul_(2).sub_(1)
        signs = signs.to(self.reference)
        groups = []
        for start in range(passes):
            members = torch.zeros_like(signs)
            members[start::passes] = signs[start::passes]
            groups.append(self._ratio(members.expand_as(self.reference)))
        grouped = torch.stack(groups)
        stands_out = grouped > _STANDS_OUT * grouped.median()
        measured = torch.where(stands_out, grouped, torch.stack(near).max())
        return measured[torch.arange(classes, device=measured.device) % passes]

    def _unit(self, k: int) -> Tensor:
        rival = torch.zeros_like(self.reference)
        rival[..., k] = 1.0
        return rival

    def _ranked(self, rank: int) -> Tensor:
        return torch.zeros_like(self.reference).scatter_(-1, self.ranks[..., rank : rank + 1], 1.0)

    def _ratio(self, rival: Tensor) -> Tensor:
        """Largest bound of the margin over one rival, or several, by the runner-up's."""
        seeds = self.top * rival.sum(-1, keepdim=True) - rival
        ratio = self._bound(seeds) / self.own
        return ratio[: len(self.reference)].nan_to_num(0, 0, 0).max()

    def _bound(self, seeds: Tensor) -> Tensor:
        return backward(*self.program, seeds)[self.tracer.format].bound


def measured_screen(tracer: Tracer, trace: Trace, canonical: Tensor, reference: Tensor) -> Tensor:
    """The screen of each class, [C]; see `Screening`."""
    classes = reference.shape[-1]
    if not tracer.task.decides or classes < 3:
        return reference.new_full((classes,), SCREEN)
    return Screening(tracer, trace, canonical, reference).by_class()
