"""The rules of the gradient check: each looks at one thing, and says what is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_fp16.engine.emulation.wording import mechanism_of, of_the_step, variant_where
from pytest_fp16.engine.gradients.finding import Finding, leaf_of, module_of
from pytest_fp16.engine.gradients.origins.found import Found
from pytest_fp16.engine.gradients.origins.whole_numbers import whole_numbers
from pytest_fp16.engine.gradients.points import Point
from pytest_fp16.engine.gradients.probes.evaluated import metric_lost
from pytest_fp16.engine.gradients.rules.buffer_rules import (
    lags,
    lost_buffers,
    outgrown,
    stalled,
    statistics,
)
from pytest_fp16.engine.gradients.rules.figures import loss_off, worst_tensor
from pytest_fp16.engine.gradients.rules.step_rules import (
    SCALED,
    epsilon,
    optimizer,
    runaway,
    slow,
    weights,
    while_scaled,
)
from pytest_fp16.engine.training.guard import COLLAPSED
from pytest_fp16.report.model import Mechanism
from pytest_fp16.theory.decline import arrives
from pytest_fp16.theory.gradient import GAIN_TENSOR, GAIN_TOTAL, Noise
from pytest_fp16.theory.rounding import FLOAT32_NORMAL

if TYPE_CHECKING:
    from pytest_fp16.engine.gradients.evidence import Evidence

#: Noise is judged only where the gradient itself is off by a quarter.
RELATIVE = 0.25


def _broke(evidence: Evidence) -> Finding | None:
    if evidence.broke is None:
        return None
    said, origin = evidence.broke
    if said.startswith("a weight") and (origin is None or origin.module != "<optimizer>"):
        # What overflows after steps, or gradients, that ran off is not at fault.
        stepped = runaway(evidence) or total_noise(evidence)
        if stepped is not None:
            return stepped
    return _explained(evidence, said, origin)


def _confident(evidence: Evidence) -> Finding | None:
    if evidence.confident is None or _lost_as_it_is(evidence):
        return None
    found, solved = _explained(evidence, *evidence.confident), evidence.solved
    if solved is None:
        return found
    if solved.harmless:
        return None
    what = f"about {solved.expected:.0f} of {evidence.total_steps} steps will see such a batch"
    return replace(found, reason=f"{found.reason}; {what}")


def _lost_as_it_is(evidence: Evidence) -> bool:
    """Whether the gradient is lost without sure outputs, and known why."""
    known = evidence.swallowed is not None
    return known and (total_noise(evidence) or tensor_noise(evidence)) is not None


def _explained(evidence: Evidence, said: str, origin: Found | None) -> Finding:
    name = evidence.format.name
    unnamed = origin is not None and origin.mechanism == "mask-inf" and math.isinf(origin.largest)
    if unnamed and evidence.lost_weights:
        origin = None  # what was infinite was a weight
    if origin is not None:
        if origin.operation == "_amp_foreach_non_finite_check_and_unscale":
            origin = origin._replace(operation="unscale")
        detail = origin.detail(evidence.format)
        divides = origin.mechanism == "eps-underflow" and origin.module == "<optimizer>"
        if divides and evidence.epsilon is not None:
            zero = "{} {:g} is zero in {}".format(*evidence.epsilon, name)
            # A user's own step may divide by something else that is zero.
            detail = zero if origin.source is None else f"{detail}; {zero}"
        said = said if said.startswith(("the ", "a ")) else f"a step raised {said[:200]}"
        return origin.finding(f"{said} in 16 bits: {origin.where} ({detail})", detail)
    if evidence.lost_weights and said.startswith(("the ", "a ")):
        name = evidence.lost_weights[0]
        what = f"{name} leaves the range of {evidence.format.name} ({evidence.format.largest:.2e})"
        reason = f"{said} in 16 bits: {what}"
        return Finding(reason, module_of(name), leaf_of(name), "overflow", what)
    if said.startswith(("the ", "a ")):
        return Finding(f"{said} in 16 bits", "<loss>", "", "overflow", said)
    if evidence.miscount is not None:  # an index that was rounded
        reason = f"a step raised {said[:200]}: {evidence.miscount.said(evidence.format)}"
        return evidence.miscount.finding(reason, evidence.format, f"; {said[:200]}")
    where = "<loss>" if evidence.raised_in is None else evidence.raised_in
    where = "<optimizer>" if of_the_step(said) else where
    return Finding(
        f"a step raised {said[:200]}",
        *(where, evidence.raised_by, mechanism_of(said), said[:200]),
        evidence.raised_at,
        variant_where(said, evidence.raised_by),
    )


def _skipped(evidence: Evidence) -> Finding | None:
    """So many steps that no scale saves that the scale, halved by each, collapses."""
    if evidence.skipped is None or evidence.skipped[0] * evidence.total_steps < COLLAPSED:
        return None
    share, origin = evidence.skipped
    said = f"the loss scale collapses: for {share:.0%} of the batches the gradient is not finite"
    return _explained(evidence, said, origin)


def _bad_total(noise: Noise) -> bool:
    low, high = GAIN_TOTAL
    loud = noise.excess > 1 and noise.relative > RELATIVE
    return loud or not low <= noise.gain <= high


def doubtful(evidence: Evidence) -> bool:
    """Whether gradients are bent, and none has vanished: does the model learn with them?"""
    found = [rule(evidence) for rule in (_total, _tensor)]
    return {f.mechanism for f in found if f is not None} == {"precision-loss"}


def _excused(evidence: Evidence) -> bool:
    """Whether a longer look showed that the model learns with gradients that are bent."""
    return evidence.second is not None and evidence.second.kept_up and doubtful(evidence)


def total_noise(evidence: Evidence) -> Finding | None:
    """All gradients together."""
    return None if _excused(evidence) else _beyond(evidence, _total(evidence))


def tensor_noise(evidence: Evidence) -> Finding | None:
    """One tensor's gradient: the worst of many must be bad at most points."""
    return None if _excused(evidence) else _beyond(evidence, _tensor(evidence))


def bent(evidence: Evidence) -> Finding | None:
    """Gradients that are off, whatever a longer look has shown."""
    return _beyond(evidence, _total(evidence)) or _beyond(evidence, _tensor(evidence))


def _beyond(evidence: Evidence, finding: Finding | None) -> Finding | None:
    """A lost gradient, with what left the range on the way to it where that is known."""
    origin = evidence.swallowed
    if finding is not None and evidence.scaled > RELATIVE:
        what = "a hook or a step of its own changes the gradient while it is scaled"
        what += f", by {evidence.scaled:.0%} of its size in 32 bits too; {finding.evidence}"
        reason = f"the gradient is not proportional to the loss: {what}"
        return Finding(reason, "", "backward", "precision-loss", what, variant="while scaled")
    bent_alone = finding is not None and finding.mechanism == "precision-loss"
    if finding is not None and bent_alone and evidence.scaled_steps > SCALED:
        return while_scaled(evidence, finding.evidence)
    changed = evidence.miscount or evidence.changed
    if finding is not None and changed is not None and bent_alone:
        reason = f"{finding.reason} ({changed.said(evidence.format)})"
        return changed.finding(reason, evidence.format, f"; {finding.evidence}")
    if finding is None:
        return finding
    if origin is None:
        return _digits(evidence, finding)
    detail = f"{origin.detail(evidence.format)}; {finding.evidence}"
    return origin.finding(f"{finding.reason} ({origin.where} leaves the range)", detail)


def _digits(evidence: Evidence, finding: Finding) -> Finding:
    """Digits are lost before anything is too small, where the format has float32's range."""
    if evidence.format.smallest_subnormal < FLOAT32_NORMAL:
        finding = replace(finding, mechanism="precision-loss")
    digits = evidence.digits
    if digits is None:
        return finding
    # A gradient vanishes, too, where what it is the slope of has cancelled to zero.
    if finding.mechanism != "precision-loss" and not digits.vanished > 0.5:
        return finding
    return digits.finding(finding.reason, finding.evidence)


def gradient_is_lost(point: Point) -> bool:
    """Whether the gradient at a point is none the training should go by."""
    return _bad_total(point.total) or any(map(_bad_tensor, point.tensors.values()))


def _total(evidence: Evidence) -> Finding | None:
    bad = [p for p in evidence.points if _bad_total(p.total)]
    if not bad:
        return None
    point = max(bad, key=lambda p: p.total.excess)
    name, noise = worst_tensor(point)
    kind, size = _kind(point.total), point.total.relative
    part = f"{size:.0%} of" if size < 10 else f"{size:.2g} times"
    what = (
        f"after {point.step} steps the gradient's error is {point.total.rho:.2g} of the batch "
        f"noise (allowed {point.total.allowed:.2g}), {part} its size; gain "
        f"{point.total.gain:.3g}, {point.total.zeroed:.0%} of its entries vanish"
    )
    everywhere = sum(_bad_tensor(n) for n in point.tensors.values()) > 0.9 * len(point.tensors)
    module = "<loss>" if everywhere and kind == "underflow" else module_of(name)
    detail = what + (f"; worst {name} ({noise.rho:.2g})" if noise else "")
    return Finding(f"the gradient is not the 32-bit one: {what}", module, "backward", kind, detail)


def _bad_tensor(noise: Noise) -> bool:
    vanishes = noise.gain < GAIN_TENSOR and noise.relative > RELATIVE
    return (noise.excess > 1 and noise.relative > RELATIVE) or vanishes


def _tensor(evidence: Evidence) -> Finding | None:
    empty = {n for p in evidence.points for n in p.meaningless}
    names = dict.fromkeys(n for p in evidence.points for n in p.tensors)
    bad = []
    for name in (n for n in names if n not in empty):
        seen = [p.tensors[name] for p in evidence.points if name in p.tensors]
        if sum(map(_bad_tensor, seen)) * 2 > len(seen):
            bad.append((max(seen, key=lambda n: n.excess), name))
    if not bad:
        return None
    # A gradient that has vanished comes before one that is bent.
    noise, name = max(bad, key=lambda item: (_kind(item[0]) == "underflow", item[0].excess))
    what = (
        f"the error of {name} is {noise.rho:.2g} of its batch noise (allowed {noise.allowed:.2g}), "
        f"gain {noise.gain:.2f}, {noise.zeroed:.0%} of its entries vanish"
    )
    return Finding(f"one gradient is lost: {what}", module_of(name), "backward", _kind(noise), what)


def _kind(noise: Noise) -> Mechanism:
    return "underflow" if noise.zeroed_norm > 0.1 or noise.zeroed > 0.5 else "precision-loss"


def _loss(evidence: Evidence) -> Finding | None:
    """A loss that is far off, where no gradient was compared: what is constant in it has none."""
    if any(p.tensors for p in evidence.points):
        return None
    what = loss_off(evidence)
    if what is None:
        return None
    return Finding(f"the loss is far off: {what}", "<loss>", "", "precision-loss", what)


def _guards(evidence: Evidence) -> Finding | None:
    """A guard that is lost, where what it guards goes to zero before the training ends."""
    name = evidence.format.name
    for guard in evidence.guards.values():
        at = arrives(guard.terms, evidence.format.smallest_subnormal / 2, evidence.total_steps)
        if at is None or guard.operation is None:
            continue
        what = (
            f"{guard.constant:g} is zero in {name}, and what it is added to falls steadily, to "
            f"{guard.least:.2g} after {len(guard.terms)} steps: to zero after about {at} of "
            f"{evidence.total_steps}"
        )
        reason = f"{guard.operation} loses its guard: {what}"
        return Finding(reason, guard.module, guard.operation, "eps-underflow", what, guard.line)
    return None


def _whole_numbers(evidence: Evidence) -> Finding | None:
    return whole_numbers(evidence.miscount, evidence.format)


def _evaluation(evidence: Evidence) -> Finding | None:
    return metric_lost(evidence.evaluated, evidence.digits)


#: In this order: the first that finds something names the reason.
RULES: tuple[Callable[[Evidence], Finding | None], ...] = (
    _broke,
    _skipped,
    _confident,
    lost_buffers,
    outgrown,
    stalled,
    epsilon,
    total_noise,
    tensor_noise,
    _loss,
    _guards,
    statistics,
    lags,
    optimizer,
    weights,
    slow,
    _whole_numbers,
    _evaluation,
)
