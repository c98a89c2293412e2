"""The measurements of the gradient check as a report shows them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pytest_fp16.engine.gradients.points import Point, beyond_range, loss_is_off
from pytest_fp16.precision import Precision
from pytest_fp16.theory.gradient import Noise, best_loss_scale

if TYPE_CHECKING:
    from pytest_fp16.engine.gradients.evidence import Evidence

#: Notes on guards: more of them say nothing new.
_GUARDS = 3


def worst_tensor(point: Point) -> tuple[str, Noise | None]:
    """The parameter tensor with the largest error for what is allowed."""
    if not point.tensors:
        return "", None
    return max(point.tensors.items(), key=lambda item: item[1].excess)


def loss_off(evidence: Evidence) -> str | None:
    """The loss of the first point where it is far off, in both precisions."""
    roundoff = evidence.format.unit_roundoff
    point = next((p for p in evidence.points if loss_is_off(p, roundoff)), None)
    if point is None:
        return None
    reference, candidate = max(point.losses, key=lambda pair: abs(pair[1] - pair[0]))
    return f"{candidate:.4g} where float32 gives {reference:.4g}, after {point.step} steps"


def loss_scale(evidence: Evidence, precision: Precision) -> float | None:
    """The factor on the loss that would keep gradients from underflowing, if one is needed."""
    if precision.dtype_name != "float16" or not evidence.points:
        return None
    if precision.mixed:
        return min(p.scale for p in evidence.points)
    gradients = [g for p in evidence.points for g in p.reference]
    if not gradients:
        return None
    fmt = evidence.format
    scale = best_loss_scale(gradients, fmt.smallest_normal, fmt.largest)
    return scale if scale > 1 else None


def notes(evidence: Evidence) -> list[str]:
    """What is worth knowing and no verdict."""
    said = []
    empty = sorted({n for p in evidence.points for n in p.meaningless})
    if empty:
        shown = ", ".join(empty[:3]) + (f" and {len(empty) - 3} more" if len(empty) > 3 else "")
        said.append(f"gradients that are zero but for rounding were left out: {shown}")
    compared = any(p.tensors or p.meaningless or p.left_out for p in evidence.points)
    if evidence.points and not compared:
        said.append(
            "no weight had a gradient once the backward pass was over (a hook steps in it?): none "
            "was compared"
        )
    if evidence.optimizer is not None:
        said.append(f"{evidence.optimizer.lost:.0%} of updates are lost to rounding (no verdict)")
    if evidence.confident is not None and evidence.solved is not None and evidence.solved.harmless:
        lost, origin = evidence.confident
        where = f" ({origin.source or origin.operation})" if origin is not None else ""
        fate = "the scaler skips its step" if evidence.solved.skipped else "none is expected"
        said.append(f"{lost} in 16 bits{where}; {fate}")
    if evidence.skipped is not None:
        share, origin = evidence.skipped
        where = f" ({origin.source or origin.operation})" if origin is not None else ""
        said.append(
            f"for {share:.0%} of the batches the gradient is not finite in 16 bits{where}; the "
            "scaler skips their steps"
        )
    for guard in [g for g in evidence.guards.values() if g.terms][:_GUARDS]:
        where = f" ({guard.line})" if guard.line else f" in {guard.module or 'the model'}"
        said.append(
            f"{guard.constant:g}, which guards {guard.operation}{where}, is zero in "
            f"{evidence.format.name}; the least it was added to in 32 bits is {guard.least:.2g}"
        )
    beyond = [str(p.step) for p in evidence.points if beyond_range(p)]
    if beyond:
        after = " and ".join(beyond)
        said.append(f"the loss is infinite in 16 bits after {after} steps, its gradient is not")
    said += _let_pass(evidence)
    if evidence.epsilon is not None:
        said.append(
            "the optimizer's {} {:g} is zero in {}".format(*evidence.epsilon, evidence.format.name)
        )
    return said


def _let_pass(evidence: Evidence) -> list[str]:
    """What asked for a longer look, and what that gave."""
    said, off, look = [], loss_off(evidence), evidence.second
    if off is not None and any(p.tensors for p in evidence.points):
        said.append(f"the loss is far off ({off}), which is no verdict: gradients are what counts")
    if look is not None and not look.slow:
        what = "weights or gradients go another way than in 32 bits, and still learn"
        what = "the model learns nevertheless" if off is not None else what
        said.append(f"{what}: {look.said()}")
    still = evidence.stalled
    if still is not None and not still.harms:
        said.append(f"{still.said()}; the model learns nevertheless: {still.look.said()}")
    return said


def figures(evidence: Evidence) -> dict[str, Any]:
    """The measurements as builtins."""
    points = [
        {
            "step": p.step,
            "rho": p.total.rho,
            "rho_allowed": p.total.allowed,
            "bias": p.total.bias,
            "gain": p.total.gain,
            "relative": p.total.relative,
            "zeroed": p.total.zeroed,
            "worst_tensor": worst_tensor(p)[0],
            "worst_rho": getattr(worst_tensor(p)[1], "rho", 0.0),
            "losses": [[r, c] for r, c in p.losses],
            "loss_scale": p.scale,
        }
        for p in evidence.points
    ]
    found: dict[str, Any] = {
        "points": points,
        "batch_size": evidence.batch_size,
        "total_steps": evidence.total_steps,
        "unit_roundoff": evidence.format.unit_roundoff,
        "rho": max((p.total.rho for p in evidence.points), default=math.nan),
    }
    if evidence.weights is not None:
        found["weights_gain"] = evidence.weights.gain
    if evidence.optimizer is not None:
        found["updates_lost"] = evidence.optimizer.lost
        found["optimizer_gain"] = evidence.optimizer.moved.gain
    if evidence.statistics:
        name, (moved, lag) = max(evidence.statistics.items(), key=lambda item: item[1][1])
        found["slowest_statistic"] = {
            "name": name,
            "gain": moved.gain,
            "lag": lag,
        }
    return found
