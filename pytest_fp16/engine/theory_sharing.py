"""One backward pass for several precisions whose programs have the same rounding sites.

To first order the derivative of a margin at a site does not depend on the precision; what differs
is the spacing of the format there, and the values that storage has shifted. So a follower traces
its own program forward, and takes its σ and bound from the leader's backward pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from pytest_fp16.engine.sites import Sums
from pytest_fp16.engine.trace import Trace
from pytest_fp16.theory.rounding import Format

if TYPE_CHECKING:
    from pytest_fp16.engine.theory_pass import Rivals, TheoryBatch, TheoryPass


class Sharing:
    """What a leader hands to its followers over the chunks of one batch.

    Args:
        leader: the pass that runs backward.
        seed: of the batch, by which a follower knows it again.
    """

    def __init__(self, leader: TheoryPass, seed: int) -> None:
        self.leader = leader
        self.seed = seed
        self.parts: dict[int, list[TheoryBatch]] = {id(f): [] for f in leader.followers}

    def chunk(
        self, trace: Trace, canonical: Tensor, rivals: Rivals, part: tuple[Any, int, Any, Tensor]
    ) -> None:
        """Offer one chunk to every follower.

        Args:
            trace, canonical: the leader's run of it, just after its backward pass.
            rivals: its further backward passes.
            part: the batch's inputs, their number, the chunk's indices, its reference logits.
        """
        sums = dict(trace.contributions.sums)
        for follower in list(self.leader.followers):
            if id(follower) not in self.parts or follower.pending is not None:
                continue
            # An overflow changed the leader's values, and another format need not share it.
            if follower.format != self.leader.format and bool(trace.overflowed.any()):
                del self.parts[id(follower)]
                continue
            made = self._follow(follower, trace, canonical, sums, rivals, part)
            if made is None:
                self.leader.followers.remove(follower)
                del self.parts[id(follower)]
            else:
                self.parts[id(follower)].append(made)

    def _follow(
        self,
        follower: TheoryPass,
        trace: Trace,
        canonical: Tensor,
        sums: dict[Format, Sums],
        rivals: Rivals,
        part: tuple[Any, int, Any, Tensor],
    ) -> TheoryBatch | None:
        """The follower's theory of a chunk; None where its program is another."""
        inputs, n, indices, reference = part
        before = dict(follower.totals)
        try:
            own, logits = follower.trace_part(
                inputs, n, indices, self.seed, adjoint=False, detailed=not follower.totals
            )
        except Exception:  # whatever it is, the follower's own pass will meet and report it
            return None
        if own.signature != trace.signature or logits.shape != canonical.shape:
            if not before:
                follower.totals.clear()
            return None
        follower.record(sums[follower.format])
        return follower.judge(own, logits.detach(), reference, sums[follower.format], rivals)

    def hand_over(self) -> None:
        """Give every follower that could follow to the end what it will ask for."""
        for follower in self.leader.followers:
            parts = self.parts.get(id(follower))
            if parts:
                follower.pending = (self.seed, parts)
