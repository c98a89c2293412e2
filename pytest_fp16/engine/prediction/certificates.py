"""Which inputs are certified: every competitor's margin above its own bound, or above k·σ."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_fp16.engine.prediction.rivals import Rivals
from pytest_fp16.engine.prediction.theory_batch import PROBABLE_SIGMAS, TheoryBatch
from pytest_fp16.engine.tracing.sites import Sums
from pytest_fp16.engine.tracing.trace import Trace
from pytest_fp16.task import Task
from pytest_fp16.theory.rounding import Format

#: Extra backward passes for inputs with more than one near competitor.
EXTRA_COMPETITORS = 2


@dataclass(frozen=True)
class Certifier:
    """Judges the chunks of one precision.

    Attributes:
        task: what counts as a margin.
        format: the 16-bit format.
        screen: so many bounds of the runner-up away a class is taken as cleared, [C].
    """

    task: Task
    format: Format
    screen: Tensor

    def judge(
        self, trace: Trace, canonical: Tensor, reference: Tensor, sums: Sums, rivals: Rivals
    ) -> TheoryBatch:
        """The theory of one chunk, with extra passes for competitors that come near.

        Args:
            trace, canonical: the program's own run of the chunk.
            reference: the reference's canonical logits, [kept, P, C].
            sums: of the backward pass from the runner-up's margin.
            rivals: the backward passes from the margins over further classes.
        """
        kept = len(reference)
        logits = canonical.detach()[:kept]
        sigma, bound = (v[:kept].unsqueeze(1) for v in (sums.sigma, sums.bound))
        margin = self.task.margins(logits, reference)
        undecided = trace.doubts.undecided[:kept]
        said = TheoryBatch(
            logits=logits,
            margin=margin,
            sigma=sigma,
            bound=bound,
            bounded=(margin > bound) & ~undecided.unsqueeze(1),
            probable=(margin > PROBABLE_SIGMAS * sigma) & ~undecided.unsqueeze(1),
            overflowed=trace.recorder.overflowed[:kept],
            undecided=undecided,
        )
        if self.task.decides:
            self._clear_rivals(said, reference, rivals)
        else:
            said.bounded = said.probable = torch.zeros_like(said.bounded)
        return said

    def _clear_rivals(self, said: TheoryBatch, reference: Tensor, rivals: Rivals) -> None:
        """Withdraw certificates where a third class could win."""
        assert said.bound is not None, "unreachable: it comes from a backward pass"
        ranks = reference.argsort(-1, descending=True)
        gaps = said.logits.gather(-1, ranks[..., :1]) - said.logits.gather(-1, ranks[..., 2:])
        # What a competitor must keep of its distance to be cleared without a pass of its own.
        screen = self.screen[ranks[..., 2:]]
        bounds = screen * said.bound.unsqueeze(-1)
        sigmas = screen * (PROBABLE_SIGMAS * said.sigma).unsqueeze(-1)
        said.bounded &= (gaps >= bounds)[..., EXTRA_COMPETITORS:].all(-1)
        said.probable &= (gaps >= sigmas)[..., EXTRA_COMPETITORS:].all(-1)
        for extra in range(min(EXTRA_COMPETITORS, gaps.shape[-1])):
            gap = gaps[..., extra]
            needy = (
                said.bounded & (gap < bounds[..., extra]),
                said.probable & (gap < sigmas[..., extra]),
            )
            if not bool((needy[0] | needy[1]).any()):
                continue
            sums = rivals.sums(ranks[..., :1], ranks[..., extra + 2 : extra + 3])[self.format]
            own, worst = (v[: len(reference)].unsqueeze(1) for v in (sums.sigma, sums.bound))
            said.bounded &= ~needy[0] | (gap > worst)
            said.probable &= ~needy[1] | (gap > PROBABLE_SIGMAS * own)
