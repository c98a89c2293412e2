"""Why a gradient is lost in 16 bits although every value of it is finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.gradients.evidence import Evidence, float_tensors, trained_weights
from pytest_fp16.engine.gradients.origins.found import Found
from pytest_fp16.engine.gradients.points import gradients, scaled_gradients
from pytest_fp16.engine.gradients.probes.course import SEED
from pytest_fp16.engine.gradients.probes.second_look import applied_step
from pytest_fp16.engine.training.trainee import Trainee


def look_behind(
    evidence: Evidence, reference: Trainee, batch: Any, scale: float | None, found: Found | None
) -> None:
    """Note an infinity that became finite again, or a factor on the loss that changes gradients.

    Args:
        evidence: takes the note.
        reference: the 32-bit training, where the gradient was lost.
        batch: for which it was.
        scale: of the loss, where a scaler multiplies it.
        found: the first operation of the candidate that made an infinity.
    """
    if scale is not None:
        evidence.scaled = max(evidence.scaled, changed_by_scale(reference, batch, scale))
    # Backwards, a scaled loss often leaves the range, and a scaler expects it to.
    forwards = found is not None and found.backward_of is None and found.mechanism == "overflow"
    if forwards and evidence.swallowed is None:
        evidence.swallowed = found


def changed_by_scale(reference: Trainee, batch: Any, scale: float) -> float:
    """How far a factor on the loss, divided out again, changes a 32-bit gradient, for its size.

    Not at all where nothing but autograd makes it; a hook that clamps it does not know the factor.
    """
    plain, scaled = (gradients(reference, batch, 0, factor).by_name for factor in (1.0, scale))
    size = sum(float(g.double().square().sum()) for g in plain.values())
    off = sum(float((scaled[n] - g).double().square().sum()) for n, g in plain.items())
    return math.sqrt(off / size) if size else 0.0


def changed_by_scaled_steps(
    fresh: Trainee, batches: Sequence[Any], every: int, snapshots: Sequence[dict[str, Tensor]]
) -> float:
    """How far a gradient scaler changes the way of the first steps in 32 bits, for its length.

    Not at all where a step leaves gradients alone until they are unscaled; what a module that
    optimizes by hand does to them between its backward pass and its step is in no single gradient.

    Args:
        fresh: the 32-bit training as it starts; it makes the steps, with a scaler.
        batches: of the steps.
        every: how many batches make one step.
        snapshots: the weights before and after these steps without a scaler, first and last.
    """
    fresh.scaler = torch.amp.GradScaler(fresh.place.device.type)
    for step in range(len(batches) // every):
        applied_step(fresh, batches[step * every : (step + 1) * every], SEED, step)
    begin, end, reached = snapshots[0], snapshots[-1], float_tensors(fresh)
    names = [name for name in trained_weights(fresh.model) if name in end]
    size = sum(float((end[n] - begin[n]).double().square().sum()) for n in names)
    off = sum(float((end[n] - reached[n]).double().square().sum()) for n in names)
    return math.sqrt(off / size) if size else 0.0


def skipped_share(reference: Trainee, candidate: Trainee, batches: Sequence[Any]) -> float:
    """The share of batches whose step a scaler would skip, at the reference's weights."""
    candidate.follow(reference)
    return sum(not _finite(candidate, batch) for batch in batches) / len(batches)


def not_skipped(evidence: Evidence, candidate: Trainee, batches: Sequence[Any]) -> Any:
    """The first batch, or where a scaler skips some the first that it does not skip."""
    if evidence.skipped is None:
        return batches[0]
    return next((batch for batch in batches if _finite(candidate, batch)), batches[0])


def _finite(candidate: Trainee, batch: Any) -> bool:
    return scaled_gradients(candidate, batch, 0, 1.0).finite
