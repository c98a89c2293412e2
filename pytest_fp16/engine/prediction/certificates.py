"""Which inputs are certified: every competitor's margin above its own bound, or above k·σ."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_fp16.engine.prediction.rivals import EXTRA_COMPETITORS, Rivals
from pytest_fp16.engine.prediction.theory_batch import PROBABLE_SIGMAS, TheoryBatch
from pytest_fp16.engine.tracing.sites import Sums
from pytest_fp16.engine.tracing.trace import Trace
from pytest_fp16.task import Task
from pytest_fp16.theory.rounding import Format


@dataclass(frozen=True)
class Near:
    """To which inputs a third class, or one behind it, comes near; bool, [N, P, classes].

    Attributes:
        bounded, probable: below the screen of their bounds, of their kσ.
    """

    bounded: Tensor
    probable: Tensor


@dataclass(frozen=True)
class Certifier:
    """Judges the inputs of one precision.

    Attributes:
        task: what counts as a margin.
        format: the 16-bit format.
        screen: so many bounds of the runner-up away a class is taken as cleared, [C].
    """

    task: Task
    format: Format
    screen: Tensor

    def judge(self, trace: Trace, canonical: Tensor, reference: Tensor, sums: Sums) -> TheoryBatch:
        """The theory of one chunk, third classes left aside.

        Args:
            trace, canonical: the program's own run of the chunk.
            reference: the reference's canonical logits, [kept, P, C].
            sums: of the backward pass from the runner-up's margin.
        """
        kept = len(reference)
        logits = canonical.detach()[:kept]
        sigma, bound = (v[:kept].unsqueeze(1) for v in (sums.sigma, sums.bound))
        margin = self.task.margins(logits, reference)
        undecided = trace.doubts.undecided[:kept]
        sure = ~undecided.unsqueeze(1) & self.task.decides
        return TheoryBatch(
            logits=logits,
            margin=margin,
            sigma=sigma,
            bound=bound,
            bounded=(margin > bound) & sure,
            probable=(margin > PROBABLE_SIGMAS * sigma) & sure,
            overflowed=trace.recorder.overflowed[:kept],
            undecided=undecided,
        )

    def near(self, said: TheoryBatch, reference: Tensor) -> Near:
        """Which certificates of a batch a third class could still take away."""
        assert said.bound is not None, "unreachable: it comes from a backward pass"
        ranks = reference.argsort(-1, descending=True)
        gaps = _gaps(said.logits, ranks)
        # What a competitor must keep of its distance to be cleared without a pass of its own.
        screen = self.screen[ranks[..., 2:]]
        bounds = screen * said.bound.unsqueeze(-1)
        sigmas = screen * (PROBABLE_SIGMAS * said.sigma).unsqueeze(-1)
        # Not `gaps < bounds`: a class that is NaN is cleared of nothing.
        return Near(
            said.bounded.unsqueeze(-1) & ~(gaps >= bounds),
            said.probable.unsqueeze(-1) & ~(gaps >= sigmas),
        )

    def clear(self, said: TheoryBatch, reference: Tensor, near: Near, rivals: Rivals) -> None:
        """Withdraw certificates where a third class could win.

        Args:
            said: the theory of a batch.
            reference: the reference's canonical logits, [N, P, C].
            near: whom to look at; all that are near by one of the first few classes have been asked
                about.
            rivals: what these were found to be.
        """
        gaps = _gaps(said.logits, reference.argsort(-1, descending=True))
        for certified, of in ((said.bounded, near.bounded), (said.probable, near.probable)):
            certified &= ~of[..., EXTRA_COMPETITORS:].any(-1)
        for extra in range(min(EXTRA_COMPETITORS, gaps.shape[-1])):
            sums = rivals.of(self.format, extra)
            if sums is None:
                continue
            sigma, bound = (v.unsqueeze(1) for v in (sums.sigma, sums.bound))
            gap = gaps[..., extra]
            said.bounded &= ~near.bounded[..., extra] | (gap > bound)
            said.probable &= ~near.probable[..., extra] | (gap > PROBABLE_SIGMAS * sigma)


def _gaps(logits: Tensor, ranks: Tensor) -> Tensor:
    """How far the third class and those behind it are away from the first, [N, P, C - 2]."""
    return logits.gather(-1, ranks[..., :1]) - logits.gather(-1, ranks[..., 2:])


def clear_rivals(
    batch: list[tuple[Certifier, TheoryBatch]], reference: Tensor, rivals: Rivals
) -> None:
    """Withdraw the certificates of a batch that a third class could take, for several precisions.

    Args:
        batch: what each of them says of it.
        reference: the reference's canonical logits, [N, P, C].
        rivals: is asked about all inputs that one of them wants to know about, together.
    """
    if not batch[0][0].task.decides:
        return
    near = [certifier.near(said, reference) for certifier, said in batch]
    # A certificate that a farther class takes anyway is not worth a pass.
    asked = torch.stack([_worth(n.bounded) | _worth(n.probable) for n in near]).any(0)
    rivals.ask(asked.any(1), reference)
    for (certifier, said), of in zip(batch, near, strict=True):
        certifier.clear(said, reference, of, rivals)


def _worth(near: Tensor) -> Tensor:
    """Of the first few classes, those that alone can take a certificate; [N, P, few]."""
    return near[..., :EXTRA_COMPETITORS] & ~near[..., EXTRA_COMPETITORS:].any(-1, keepdim=True)
