"""What asks for a second, longer look, and what such a look lets pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_fp16.engine.gradients.finding import Finding
from pytest_fp16.engine.gradients.rules.buffer_rules import stopped
from pytest_fp16.engine.gradients.rules.figures import loss_off
from pytest_fp16.engine.gradients.rules.rules import (
    RULES,
    bent,
    doubtful,
    tensor_noise,
    total_noise,
)
from pytest_fp16.engine.gradients.rules.step_rules import (
    astray,
    lagging,
    left_behind,
    optimizer,
    still,
    wayward,
    weights,
)

if TYPE_CHECKING:
    from pytest_fp16.engine.gradients.evidence import Evidence


def needs_longer_look(evidence: Evidence) -> bool | None:
    """Whether a longer look asks for the metric; None where none is called for."""
    doubt = doubtful(evidence)
    stands, lags_behind = still(evidence), lagging(evidence)
    known = (total_noise, tensor_noise) * doubt + (weights,) * stands + (optimizer,) * lags_behind
    doubt = doubt or loss_off(evidence) is not None
    reasons = (doubt, stands, lags_behind, wayward(evidence), evidence.stepped, evidence.stuck)
    if not any(reasons) or any(rule(evidence) for rule in RULES if rule not in known):
        return None
    return doubt


def suspected(evidence: Evidence) -> Finding | None:
    """What a longer look has let pass, should the training fail after all."""
    if evidence.second is None or evidence.second.slow:
        return stopped(evidence)
    return bent(evidence) or astray(evidence) or left_behind(evidence) or stopped(evidence)
