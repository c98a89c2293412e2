"""What the measurements of the gradient check mean: one verdict, one reason, one culprit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_fp16.engine.gradients.rules.figures import figures, loss_scale, notes
from pytest_fp16.engine.gradients.rules.rules import RULES
from pytest_fp16.engine.gradients.rules.second_look_rules import suspected
from pytest_fp16.precision import Precision
from pytest_fp16.report.model import Culprit

if TYPE_CHECKING:
    from pytest_fp16.engine.gradients.evidence import Evidence


@dataclass(frozen=True)
class GradientFindings:
    """What the gradient check found; `figures` holds builtins only.

    `verdict` is ``"equivalent"`` or ``"not equivalent"``: a forecast, not the last word;
    ``"inconclusive"`` where the check could not be made.
    `loss_scale` is the factor on the loss that would keep gradients from underflowing, if any.
    `suspect` is what a longer look has let pass: the culprit, should the training fail after all.
    """

    verdict: str
    reason: str
    culprit: Culprit | None = None
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    loss_scale: float | None = None
    suspect: Culprit | None = None


def conclude(evidence: Evidence, precision: Precision) -> GradientFindings:
    """The verdict on the evidence: the first rule that finds something names the reason."""
    found = [finding for rule in RULES if (finding := rule(evidence)) is not None]
    scale = loss_scale(evidence, precision)
    measured, said = figures(evidence), notes(evidence)
    others = dict.fromkeys(f.reason for f in found[1:])  # two rules may say the same
    said += [reason for reason in others if reason != found[0].reason]
    if not found:
        worst = max((p.total.rho for p in evidence.points), default=0.0)
        reason = (
            f"rounding adds {worst:.1e} of the batch noise to the gradient "
            f"(batch {evidence.batch_size}"
            f", {len(evidence.points)} points), and nothing stands still"
        )
        let_pass = suspected(evidence)
        suspect = let_pass.culprit if let_pass is not None else None
        return GradientFindings("equivalent", reason, None, said, measured, scale, suspect)
    first = found[0]
    return GradientFindings("not equivalent", first.reason, first.culprit, said, measured, scale)
