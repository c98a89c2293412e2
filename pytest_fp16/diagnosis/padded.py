"""Padding that is zero in float32 alone, by torch's fast path of `nn.TransformerEncoder`."""

from __future__ import annotations

from pytest_fp16.diagnosis.comparison import Comparison
from pytest_fp16.diagnosis.damage import ENOUGH, Damage
from pytest_fp16.engine.fast_path import zero_padding
from pytest_fp16.report.model import Culprit


def padded(comparison: Comparison, damage: Damage) -> Culprit | None:
    """The encoder whose padded positions do the damage; None where none does.

    Args:
        comparison: the candidate, recorded.
        damage: what is wrong at its outputs.
    """
    candidate = comparison.candidate
    with zero_padding(candidate.model, candidate.precision.mixed) as names:
        if not names:
            return None
        output = comparison.run(0)
    name = names[0]
    inside = [o for o in comparison.operations if o.module.startswith(f"{name}.".lstrip("."))]
    if not inside or damage.of(output) >= ENOUGH:
        return None
    return Culprit(
        module=name,
        operation=inside[-1].name,
        mechanism="precision-loss",
        evidence="torch's fast path makes zeros of what it gives at padded positions, and autocast "
        "switches that off; with these zeros the damage is gone without any rounding",
        source=inside[-1].source,
        variant="padding",
    )
