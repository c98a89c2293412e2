"""Outputs that cannot grow: cosines, whose bound few trainings reach.

A loss may ask for the angle behind a cosine, which has no slope at one. Made as sure as logits are,
a cosine would be twenty; so it is told from how near to one it comes, and how fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.batching import split_batch
from pytest_fp16.engine.gradients.probes.confidence import outputs
from pytest_fp16.engine.gradients.probes.sure_outputs import (
    LIKELY,
    Solved,
    gradients_of,
    is_lost,
)
from pytest_fp16.engine.training.guard import COLLAPSED
from pytest_fp16.engine.training.trainee import Trainee
from pytest_fp16.engine.untouched import untouched
from pytest_fp16.theory.expected_steps import expected_at_bound
from pytest_fp16.theory.rounding import FORMATS

#: Weights so many times as large make any logit large, and no cosine.
_STRETCHED = 16.0
#: What has been squashed (by tanh) comes as near as that to one; a direction hardly ever does.
_SQUASHED = 1e-6


@dataclass(frozen=True)
class AtBound:
    """Outputs of which the largest of each row is at its bound, for 16 bits.

    Attributes:
        wanted: its size.
        shape: of the outputs.
        passes: as a `Confidence` has them.
    """

    wanted: float
    shape: tuple[int, ...]
    passes: int = 0

    def applied(self, t: Tensor) -> Tensor:
        """An output of that shape, the largest of a row moved, with its own slope."""
        if tuple(t.shape) != self.shape or not t.is_floating_point():
            return t
        size = t.detach().abs()
        largest = size == size.amax(-1, keepdim=True)
        # In the type of the output, where it rounds to one: not so in float32.
        moved = torch.copysign(torch.full_like(t, self.wanted), t.detach())
        return torch.where(largest, moved + (t - t.detach()), t)


def gaps_to_one(trainee: Trainee, batches: Sequence[Any]) -> list[float]:
    """What the largest output of each batch leaves to one; empty where some are larger."""
    found = []
    for batch in batches:
        now = _decisions(trainee, batch)
        if now is None or not bool((now.abs() <= 1 + _SQUASHED).all()):
            return []
        found.append(max(1 - float(now.abs().max()), 0.0))
    return found


def are_cosines(trainee: Trainee, batch: Any) -> bool:
    """Whether outputs are at most one whatever the weights' size, and have not been squashed.

    Of classes alone: a direction that is to meet another one comes as near as it can.
    """
    now = _decisions(trainee, batch)
    if (
        now is None
        or not _of_classes(batch)
        or not bool((now.abs() <= 1 + _SQUASHED).all())
        or bool((now >= 0).all())
    ):
        return False
    with torch.no_grad(), untouched(trainee.model):
        for weight in trainee.model.parameters():
            weight.mul_(_STRETCHED)
        stretched = _decisions(trainee, batch)
    return stretched is not None and bool((stretched.abs() < 1 - _SQUASHED).all())


def _of_classes(batch: Any) -> bool:
    targets = split_batch(batch, labelled=True)[1]
    return isinstance(targets, Tensor) and not targets.is_floating_point()


def at_bound(
    reference: Trainee,
    candidate: Trainee,
    batches: Sequence[Any],
    known: Sequence[tuple[int, list[float]]],
    total: int,
) -> tuple[AtBound, Solved] | None:
    """Cosines at one, and how often, where that costs the candidate its gradient; None if not.

    Args:
        reference: the 32-bit training, as far as it has come.
        candidate: takes its weights.
        batches: some that are not trained on; the first is tried.
        known: per point, the step and what `gaps_to_one` found.
        total: steps of the whole training.
    """
    now, known = _decisions(reference, batches[0]), [k for k in known if k[1]]
    if now is None or not known:
        return None
    half = FORMATS[candidate.precision.dtype].unit_roundoff / 2
    change = AtBound(1 - half / 2, tuple(now.shape))
    if not gradients_of(reference, batches[0], change).finite:
        return None
    candidate.follow(reference)
    if not is_lost(candidate, batches[0], change):
        return None
    within = half + _off(candidate, batches, known[-1][1])
    expected = expected_at_bound(known, within, total)
    least = LIKELY if candidate.scaler is None else COLLAPSED  # a scaler skips such steps
    return change, Solved(expected, skipped=False, least=least)


def _off(candidate: Trainee, batches: Sequence[Any], gaps: list[float]) -> float:
    """By how much the largest outputs are off in 16 bits: these may be at one before their time."""
    low = gaps_to_one(candidate, batches[-len(gaps) :])
    return max((abs(a - b) for a, b in zip(low, gaps, strict=False)), default=0.0)


def _decisions(trainee: Trainee, batch: Any) -> Tensor | None:
    """What the model returns, where it has a row for each decision; None if not."""
    found = outputs(trainee, batch)
    return found if found is not None and found.dim() > 1 else None
