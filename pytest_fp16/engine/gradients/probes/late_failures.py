"""Gradients that fail late: of sure outputs, of batches without mistakes, of targets that are met.

A distance whose root is taken by hand has no slope where it is zero. Outputs in float32 never meet
their targets; between one and two there are but 128 numbers of bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.batching import split_batch
from pytest_fp16.engine.gradients.points import gradients
from pytest_fp16.engine.gradients.probes.bounded import (
    are_cosines,
    at_bound,
    gaps_to_one,
)
from pytest_fp16.engine.gradients.probes.confidence import Changed, outputs
from pytest_fp16.engine.gradients.probes.sure_outputs import (
    LIKELY,
    Solved,
    breaking,
    gradients_of,
    is_lost,
    solved,
    wrong_share,
)
from pytest_fp16.engine.training.trainee import Trainee
from pytest_fp16.errors import DataError
from pytest_fp16.theory.expected_steps import expected_met
from pytest_fp16.theory.rounding import FORMATS, ulp

#: Ulps by which an output may miss a target and be as good as met, as a square underflows.
_REACHES = (1, 2, 4)


@dataclass(frozen=True)
class Met:
    """Outputs of which the first row is as it should be.

    Attributes:
        wanted: the numbers that it should have, in the shape of the outputs.
        whole: whether all of them, or the first alone.
        passes: as a `Confidence` has them.
    """

    wanted: Tensor
    whole: bool = True
    passes: int = 0

    def applied(self, t: Tensor) -> Tensor:
        """An output of their shape, with these values and its own slope."""
        if t.shape != self.wanted.shape or not t.is_floating_point():
            return t
        met = torch.zeros(t.shape, dtype=torch.bool, device=t.device)
        met.view(len(t), -1)[:1, : None if self.whole else 1] = True
        return torch.where(met, self.wanted.to(t) + (t - t.detach()), t)


@dataclass
class Outlook:
    """How far outputs have come, point by point.

    Attributes:
        shares: the step and the share of wrong decisions; see `solved`.
        gaps: the step and what outputs leave to one; see `at_bound`.
    """

    shares: list[tuple[int, tuple[float, int] | None]] = field(default_factory=list)
    gaps: list[tuple[int, list[float]]] = field(default_factory=list)

    def note(self, reference: Trainee, batches: Sequence[Any], step: int) -> None:
        """Another point: the reference after so many steps, on the batches of the points."""
        self.shares.append((step, wrong_share(reference, batches)))
        self.gaps.append((step, gaps_to_one(reference, batches)))


def fails_late(
    reference: Trainee,
    candidate: Trainee,
    batches: Sequence[Any],
    outlook: Outlook,
    total: int,
) -> tuple[str, Changed, Solved | None] | None:
    """(which outputs cost the candidate its gradient, what makes them, how often it will see them).

    Args:
        reference: the 32-bit training, as far as it has come.
        candidate: takes its weights.
        batches: some that are not trained on; the first is tried.
        outlook: of the reference.
        total: steps of the whole training.
    """
    if are_cosines(reference, batches[0]):
        found = at_bound(reference, candidate, batches, outlook.gaps, total)
        return None if found is None else ("outputs at their bound", *found)
    for solves in (False, True):
        sure = breaking(reference, candidate, batches[0], solves)
        if sure is not None:
            what = "a batch without mistakes" if solves else "confident outputs"
            return what, sure, solved(candidate, outlook.shares, total) if solves else None
    return None if candidate.precision.mixed else _meeting(reference, candidate, batches, total)


def _meeting(
    reference: Trainee, candidate: Trainee, batches: Sequence[Any], total: int
) -> tuple[str, Met, Solved] | None:
    """Of targets that are met; in mixed precision they keep digits that no output has."""
    form, batch = FORMATS[candidate.precision.dtype], batches[0]
    first = numbers(reference, batch)
    if first is None:
        return None
    targets = first[1].to(form.dtype).float()
    candidate.follow(reference)
    met, reached, gaps = Met(targets), 0, ulp(targets, form)
    lost = partial(is_lost, candidate, batch)
    if not lost(met) or not _better(reference, batch, met):
        return None
    known = [first, *(numbers(reference, other) for other in batches[1:])]
    pairs = [pair for pair in known if pair is not None]
    if len(pairs) < len(known) or len({t.shape[1:] for _, t in pairs}) != 1:
        return None
    one = Met(targets, whole=False)
    met = one if targets[0].numel() > 1 and lost(one) else met
    for reach in _REACHES:
        if not lost(Met(targets + reach * gaps, met.whole)):
            break
        reached = reach
    rows, errors = (
        torch.cat([v.reshape(len(v), -1) for v in each])
        for each in ([t for _, t in pairs], [o - t for o, t in pairs])
    )
    count, steps = max(len(t) for _, t in pairs), (reference.applied, total)
    rows = rows.to(form.dtype).float()
    expected = expected_met(rows, errors, form, steps, count, reached, met.whole)
    return "outputs that meet their targets", met, Solved(expected, skipped=False, least=LIKELY)


def _better(reference: Trainee, batch: Any, met: Met) -> bool:
    """Whether to meet targets is what the loss asks for: not of a rate that is a logarithm."""
    found = gradients_of(reference, batch, met).loss  # NaN where 32 bits do not survive it either
    return not found > gradients(reference, batch, 0).loss


def numbers(trainee: Trainee, batch: Any) -> tuple[Tensor, Tensor] | None:
    """(outputs, targets) of a regression; None of anything else."""
    try:
        _, targets = split_batch(batch, labelled=True)
    except DataError:
        return None
    if not isinstance(targets, Tensor) or not targets.is_floating_point() or not targets.dim():
        return None
    found = outputs(trainee, batch)
    if found is None or found.shape != targets.shape or not len(targets):
        return None
    return found, targets.to(found.device).float()
