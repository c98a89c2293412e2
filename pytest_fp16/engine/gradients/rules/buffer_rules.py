"""The rules of the gradient check about buffers: statistics, averages, counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_fp16.engine.gradients.finding import Finding, leaf_of, module_of
from pytest_fp16.engine.gradients.rules.step_rules import runaway

if TYPE_CHECKING:
    from pytest_fp16.engine.gradients.evidence import Evidence

#: A statistic that leaves its way by half its length, if that puts it off by a tenth of its size.
STATISTIC_DISTANCE, STATISTIC_LAG = 0.5, 0.1
#: A running variance that ends off by half (a fifth of the scale) in the median channel.
END_LAG = 0.5


def lost_buffers(evidence: Evidence) -> Finding | None:
    """A buffer that is not finite in 16 bits."""
    if not evidence.lost_buffers:
        return None
    name = evidence.lost_buffers[0]
    stepped = runaway(evidence)
    if stepped is not None and name not in evidence.lost_weights:
        return stepped
    what = f"{name} leaves the range of {evidence.format.name} ({evidence.format.largest:.2e})"
    said = "a buffer" if name in evidence.lost_weights else "a running statistic"
    reason = f"{said} is lost: {what}"
    return Finding(reason, module_of(name), leaf_of(name), "overflow", what)


def outgrown(evidence: Evidence) -> Finding | None:
    """A count or a sum that leaves the range long before the training ends."""
    if not evidence.outgrown:
        return None
    name, after = max(evidence.outgrown.items(), key=lambda item: item[1])
    held = f"{evidence.format.name} ({evidence.format.largest:.2e})"
    what = f"{name} grows evenly, to about {after:.2g} by the end: beyond the range of {held}"
    return Finding(f"a buffer is lost: {what}", module_of(name), leaf_of(name), "overflow", what)


def stalled(evidence: Evidence) -> Finding | None:
    """A count or a schedule that stops before the training does, where that does harm."""
    found = stopped(evidence)
    return found if evidence.stalled is not None and evidence.stalled.harms else None


def stopped(evidence: Evidence) -> Finding | None:
    """The same, whether or not a longer look has let it pass."""
    found = evidence.stalled
    if found is None:
        return None
    what = found.said()
    learnt = f"of two short 32-bit trainings, one through either way, {found.look.said()}"
    reason = f"a buffer loses its way: {what}; {learnt}"
    module, leaf = module_of(found.name), leaf_of(found.name)
    return Finding(reason, module, leaf, "absorption", what)


def statistics(evidence: Evidence) -> Finding | None:
    """An average that loses its way."""
    weights = evidence.weights
    led = weights is not None and weights.distance > STATISTIC_DISTANCE
    noise = {name for point in evidence.points for name in point.meaningless}
    frozen = [
        (lag, name, moved)
        for name, (moved, lag) in evidence.statistics.items()
        if moved.distance > STATISTIC_DISTANCE
        and lag > STATISTIC_LAG
        # What follows weights that go another way goes another way, too; it need not stand still.
        and not (led and moved.size > 1 - STATISTIC_DISTANCE)
        and not any(_follows(name, weight) for weight in noise)
    ]
    if not frozen:
        return None
    lag, name, moved = max(frozen, key=lambda item: item[0])
    what = (
        f"{name} makes {moved.gain:.0%} of its 32-bit way over the first steps, misses it by "
        f"{moved.distance:.0%}, and would end {lag:.0%} off"
    )
    reason = f"an average loses its way: {what}"
    return Finding(reason, module_of(name), leaf_of(name), "absorption", what)


def _follows(average: str, weight: str) -> bool:
    """Whether an average is that of a weight, by their names: ``ema.0.bias`` of ``net.0.bias``."""
    whose = weight.split(".", 1)[1] if weight.count(".") > 1 else weight
    return average == whose or average.endswith("." + whose)


def lags(evidence: Evidence) -> Finding | None:
    """Running statistics of batch norms that end far off, or out of the range."""
    if not evidence.lags:
        return None
    lost = max(evidence.lags, key=lambda lag: lag.lost)
    if lost.lost:
        holds = f"{evidence.format.name} ({evidence.format.largest:.2e})"
        what = f"{lost.lost:.0%} of {lost.name} would leave the range of {holds}"
        reason = f"a running statistic is lost: {what}"
        return Finding(reason, module_of(lost.name), leaf_of(lost.name), "overflow", what)
    worst = max(evidence.lags, key=lambda lag: lag.share)
    if not worst.share > END_LAG:
        return None
    what = f"{worst.name} would end {worst.share:.0%} off (momentum {worst.momentum:g})"
    reason = f"a running statistic stands still: {what}"
    return Finding(reason, module_of(worst.name), leaf_of(worst.name), "absorption", what)
