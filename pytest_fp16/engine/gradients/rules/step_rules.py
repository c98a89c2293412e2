"""The rules of the gradient check about the optimizer's steps: how long, and where they lead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_fp16.engine.gradients.finding import Finding
from pytest_fp16.engine.gradients.probes.evaluated import metric_lost
from pytest_fp16.theory.gradient import Movement

if TYPE_CHECKING:
    from pytest_fp16.engine.gradients.evidence import Evidence
    from pytest_fp16.engine.gradients.origins.found import Found
    from pytest_fp16.engine.gradients.probes.optimizer_probe import Probe
    from pytest_fp16.engine.gradients.probes.second_look import SecondLook

#: Weights that move less than this share of their 32-bit way, or this many times as far, over the
#: first steps, and over the optimizer's run alone. Lost updates are common in healthy trainings,
#: so only a near standstill counts.
STANDSTILL, PROBE_STANDSTILL, RUNAWAY = 0.1, 0.5, 10.0
#: A scaler that changes the 32-bit way by more than this does not merely round.
SCALED = 0.1
#: A runaway is harmful where the loss has grown by this factor.
LOSS_GROWN = 2.0
#: An epsilon from which steps are bounded without a second moment: what a cure sets it to.
BOUNDING = 1e-4
#: A share of a second moment without which steps are of another length altogether.
_MOST = 0.5
#: Decades by which optimizer state may be too large in the median: 1.5 makes steps 5.6 times short.
STATE_DECADES = 1.5


def epsilon(evidence: Evidence) -> Finding | None:
    """An epsilon that is zero in the format, where the second moment is zero, too."""
    probe = evidence.optimizer
    if evidence.epsilon is None or probe is None:
        return None
    zeroed = max((s for k, s in probe.zeroed.items() if k in probe.magnitudes), default=0.0)
    if probe.finite and not zeroed:
        return None
    (eps, value), name = evidence.epsilon, evidence.format.name
    what = f"{eps} {value:g} is zero in {name}, and {zeroed:.0%} of the second moment is too"
    return Finding(
        f"the optimizer divides by zero: {what}", "<optimizer>", eps, "eps-underflow", what
    )


def ran_off(evidence: Evidence) -> Finding | None:
    """Steps many times too long in the run of the optimizer alone, for want of a second moment."""
    probe = evidence.optimizer
    if probe is None or not vanished(probe)[0] or not probe.moved.size > RUNAWAY:
        return None
    what = f"weights go {probe.moved.size:.3g} times as far as in 32 bits"
    return _stepping(evidence, what, "in a run of the optimizer alone ")


def runaway(evidence: Evidence) -> Finding | None:
    """Steps that are at fault for whatever overflows after them."""
    return epsilon(evidence) or ran_off(evidence)


def optimizer(evidence: Evidence) -> Finding | None:
    """What the run of the optimizer alone showed: weights lost or left behind, state frozen."""
    probe = evidence.optimizer
    if probe is None:
        return None
    if not probe.finite:
        what = f"a weight is not finite after {probe.broke_at} steps of the optimizer alone"
        origin = probe.origin
        if origin is None:
            return Finding(what, "<optimizer>", "step", "overflow", what)
        what += f": {origin.operation} ({origin.detail(evidence.format)})"
        return origin.finding(what, what)
    sizes = {k: v for k, v in probe.states.items() if k in probe.magnitudes}
    large = [(v, k) for k, v in sizes.items() if v > STATE_DECADES]
    if large:
        decades, kind = max(large)
        what = f"{kind} is {10**decades:.3g} times too large in the median: it cannot decay"
        return Finding(
            f"optimizer state is frozen: {what}", "<optimizer>", kind, "absorption", what
        )
    learnt = lagging(evidence) and evidence.second is not None and evidence.second.settled
    return None if learnt else left_behind(evidence)


def left_behind(evidence: Evidence) -> Finding | None:
    """Weights that the optimizer alone does not move as far as in 32 bits."""
    probe = evidence.optimizer
    if probe is None or not probe.moved.length or probe.moved.gain >= PROBE_STANDSTILL:
        return None
    return _still(evidence, probe.moved, "a run of the optimizer alone")


def lagging(evidence: Evidence) -> bool:
    """Whether they are moved some of the way: it may be that the others suffice."""
    probe = evidence.optimizer
    return left_behind(evidence) is not None and probe is not None and probe.moved.gain > STANDSTILL


def weights(evidence: Evidence) -> Finding | None:
    """First steps that lead nowhere, or far off while the loss rises."""
    moved = evidence.weights
    if moved is None or not moved.length:
        return None
    first, last = evidence.first_losses[0], evidence.first_losses[-1]
    grown = last[1] > LOSS_GROWN * max(*map(abs, first), abs(last[0]))
    if still(evidence) and not grown:
        learns = evidence.second is not None and evidence.second.kept_up
        return None if learns else _still(evidence, moved, "the first steps")
    if moved.gain < STANDSTILL and grown:
        return _still(evidence, moved, "the first steps")
    if moved.size <= RUNAWAY or not grown:
        return None
    what = (
        f"over the first steps weights go {moved.size:.3g} times as far as in 32 bits, and the "
        f"loss rises from {first[1]:.3g} to {last[1]:.3g}"
    )
    return _stepping(evidence, what, "")


def still(evidence: Evidence) -> bool:
    """Whether the weights make next to none of their way over the first steps.

    A few that go far in 32 bits (over a second moment that is nearly zero) may be all of it.
    """
    moved = evidence.weights
    return bool(moved is not None and moved.length and moved.gain < STANDSTILL and moved.size <= 1)


def slow(evidence: Evidence) -> Finding | None:
    """A longer look in which 16 bits learn too slowly."""
    look = evidence.second
    if look is None or not look.slow:
        return None
    if look.origin is not None:
        beyond = _lost(evidence, look.origin, f"after {look.ended} steps the loss is not finite")
        return _led_there(evidence, look, beyond) or beyond
    said = "16 bits learn at less than half the speed: "
    if evidence.stuck is not None:
        return _skipping(evidence, evidence.stuck, look.said())
    if evidence.stepped is not None:
        return _beyond(evidence, evidence.stepped, said + look.said())
    if evidence.scaled_steps > SCALED:
        return while_scaled(evidence, "weights go another way than in 32 bits: " + look.said())
    lost = metric_lost(evidence.evaluated, evidence.digits)
    if lost is not None:  # with the weights of 32 bits, too: steps are not to blame
        return lost
    if vanished(evidence.optimizer)[0]:
        return _stepping(evidence, look.said(), said)
    return Finding(said + look.said(), "<optimizer>", "step", "precision-loss", look.said())


def _lost(evidence: Evidence, origin: Found, said: str) -> Finding:
    """A loss that an operation made NaN or infinite in the longer look."""
    detail = origin.detail(evidence.format)
    return origin.finding(f"{said} in 16 bits: {origin.where} ({detail})", f"{detail}; {said}")


def _led_there(evidence: Evidence, look: SecondLook, lost: Finding) -> Finding | None:
    """Steps that led where an operation leaves the range, for want of a second moment.

    At the weights of 32 bits, where the check has looked, it does not; and an epsilon that bounds
    steps is not at fault.
    """
    _, share = vanished(evidence.optimizer)
    looked_at = look.ended is not None and 2 * look.ended <= look.steps
    bounded = evidence.least_epsilon is None or evidence.least_epsilon >= BOUNDING
    if bounded or share <= _MOST or not looked_at or not wayward(evidence):
        return None
    return _stepping(evidence, lost.reason, "the weights go another way: ")


def _beyond(evidence: Evidence, origin: Found, said: str) -> Finding:
    """Steps that are lost because something in them leaves the range."""
    what = f"{origin.operation} leaves the range ({origin.detail(evidence.format)})"
    return origin.finding(f"{said}; {what}", what)


def _skipping(evidence: Evidence, origin: Found, said: str) -> Finding:
    """Steps that a scaler skips one after another, as the loss is lost at any scale."""
    what = f"steps are skipped whatever the loss scale ({origin.detail(evidence.format)})"
    return origin.finding(f"{what}, by {origin.where}; {said}", what)


def _still(evidence: Evidence, moved: Movement, when: str) -> Finding:
    what = f"over {when} weights make {moved.gain:.0%} of their 32-bit way"
    if evidence.stepped is not None:
        return _beyond(evidence, evidence.stepped, f"the weights stand still: {what}")
    if evidence.scaled_steps > SCALED:
        return while_scaled(evidence, what)
    # Where a second moment is gone, its weights' steps outgrow the others: a turn, no standstill.
    turned = bool(vanished(evidence.optimizer)[0]) and moved.gain < moved.size / 2
    if moved.size > 1 or turned:
        what += f", though they go {moved.size:.3g} times as far"
        return _stepping(evidence, what, "the weights go another way: ")
    probe = evidence.optimizer
    what += f"; {probe.lost:.0%} of updates are lost to rounding" if probe is not None else ""
    return Finding(f"the weights stand still: {what}", "<optimizer>", "step", "absorption", what)


def while_scaled(evidence: Evidence, what: str) -> Finding:
    """Steps that change gradients, as clipping does, before a scaler's factor is taken out."""
    miss = f"the first steps miss their way by {evidence.scaled_steps:.0%} in 32 bits too"
    off = f"with a gradient scaler {miss}"
    reason = f"a step of its own changes gradients while they are scaled: {what}; {off}"
    evidenced = f"{what}; {off}"
    return Finding(reason, "", "step", "precision-loss", evidenced, variant="while scaled")


def _stepping(evidence: Evidence, what: str, said: str) -> Finding:
    """Steps of a wrong size: of a second moment that has rounded to zero, or of lost updates."""
    kind, share = vanished(evidence.optimizer)
    if kind:
        what += f"; {share:.0%} of {kind} is zero in {evidence.format.name} and not in float32"
        return Finding(said + what, "<optimizer>", kind, "underflow", what)
    return Finding(said + what, "<optimizer>", "step", "absorption", what)


def vanished(probe: Probe | None) -> tuple[str, float]:
    """(kind, share) of the optimizer's state that rounds to zero; ("", 0) where little does."""
    if probe is None:
        return "", 0.0
    zeroed = probe.zeroed
    known = {k: share for k, share in zeroed.items() if k in probe.magnitudes and share > 0}
    most = {k: share for k, share in zeroed.items() if share > 0.5}
    return max((known or most).items(), key=lambda item: item[1], default=("", 0.0))


def wayward(evidence: Evidence) -> bool:
    """Whether weights miss their 32-bit place by more than the whole way there."""
    probe = evidence.optimizer
    moved = [evidence.weights, probe.moved if probe is not None else None]
    return any(m is not None and m.length and not m.distance <= 1 for m in moved)


def astray(evidence: Evidence) -> Finding | None:
    """Steps of another length, for want of a second moment, with which the model still learned."""
    look = evidence.second
    if look is None or not wayward(evidence) or not vanished(evidence.optimizer)[0]:
        return None
    return _stepping(evidence, look.said(), "the weights go another way: ")


def stuck(losses: Sequence[tuple[float, float]]) -> bool:
    """Whether the last of some steps, (reference's, candidate's) loss each, was lost in 16 bits."""
    return bool(losses) and math.isfinite(losses[-1][0]) and not math.isfinite(losses[-1][1])
