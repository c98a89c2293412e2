"""One backward pass for several precisions whose programs have the same rounding sites.

To first order the derivative of a margin at a site does not depend on the precision; what differs
is the spacing of the format there, and the values that storage has shifted. So a follower traces
its own program forward, and takes its σ and bound from the leader's backward pass. Where storage
moves the values far (parameters that underflow in one format), derivatives move with them: on its
first chunk a follower runs backward itself, and stays only if the two agree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from pytest_fp16.engine.prediction.decision_errors import learn_decisions
from pytest_fp16.engine.prediction.first_order import require_first_order
from pytest_fp16.engine.prediction.reverse import NotDifferentiableError, backward
from pytest_fp16.engine.prediction.theory_batch import TheoryBatch, concatenate
from pytest_fp16.engine.tracing.sites import Sums
from pytest_fp16.engine.tracing.trace import Trace
from pytest_fp16.theory.rounding import Format

if TYPE_CHECKING:
    from pytest_fp16.engine.prediction.theory_pass import TheoryPass

#: A follower's own σ and the leader's may differ by this much, in the root mean square.
AGREEMENT = 0.05


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

    def chunk(self, trace: Trace, canonical: Tensor, part: tuple[Any, int, Any, Tensor]) -> None:
        """Offer one chunk to every follower.

        Args:
            trace, canonical: the leader's run of it, just after its backward pass.
            part: the batch's inputs, their number, the chunk's indices, its reference logits.
        """
        sums = dict(trace.recorder.contributions.sums)
        for follower in list(self.leader.followers):
            if id(follower) not in self.parts or follower.pending is not None:
                continue
            own = self._trace(follower, trace, canonical, part)
            if own is None:
                self.leader.followers.remove(follower)
            elif follower.format == self.leader.format or not (
                trace.recorder.bent or own[0].recorder.bent
            ):
                if not follower.compared and not self._agrees(follower, own, part, sums):
                    self.leader.followers.remove(follower)
                    follower.totals.clear()
                    del self.parts[id(follower)]
                    continue
                follower.record(sums[follower.format])
                said = follower.certifier.judge(*own, part[3], sums[follower.format])
                self.parts[id(follower)].append(said)
                continue
            # Another program, or values bent by the range of one format: it goes its own way.
            del self.parts[id(follower)]

    def _trace(
        self, follower: TheoryPass, trace: Trace, canonical: Tensor, part: tuple[Any, ...]
    ) -> tuple[Trace, Tensor] | None:
        """The follower's own run of a chunk, forward only; None where its program is another."""
        inputs, n, indices, _ = part
        before = bool(follower.totals)
        options = {"adjoint": not follower.compared, "detailed": not before}
        try:
            if trace.doubts.decisions and not follower.compared:
                learn_decisions(follower, inputs, n, self.seed)
            own, logits = follower.trace_part(inputs, n, indices, self.seed, **options)
        except Exception:  # whatever it is, the follower's own pass will meet and report it
            return None
        same = own.recorder.signature == trace.recorder.signature and not own.doubts.branches
        if same and logits.shape == canonical.shape:
            return own, logits
        if not before:
            follower.totals.clear()
        return None

    def _agrees(
        self,
        follower: TheoryPass,
        own: tuple[Trace, Tensor],
        part: tuple[Any, int, Any, Tensor],
        sums: dict[Format, Sums],
    ) -> bool:
        """Whether the follower's own backward pass over a chunk gives the σ it was offered.

        And whether first order holds for its errors, too, which may be larger.
        """
        follower.compared = True
        reference, offered = part[3], sums[follower.format]
        kept = len(reference)
        try:
            mine = backward(*own, follower.task.seeds(reference))[follower.format]
            sigma = mine.sigma[:kept].unsqueeze(1)
            require_first_order(follower, part, self.seed, own, sigma)
        except NotDifferentiableError:
            return False
        given, found = (s.square[:kept].double().sum() for s in (offered, mine))
        return bool((given - found).abs() <= 2 * AGREEMENT * found)

    def said(self) -> list[tuple[TheoryPass, TheoryBatch]]:
        """Every follower that could follow to the end, and what it may be given when it asks."""
        ended = ((f, self.parts.get(id(f))) for f in self.leader.followers)
        return [(follower, concatenate(parts)) for follower, parts in ended if parts]
