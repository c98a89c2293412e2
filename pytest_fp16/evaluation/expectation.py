"""What to expect of each decision, from its margin and the error that theory predicts for it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pytest_fp16.engine.prediction.theory_batch import TheoryBatch
from pytest_fp16.metric.tallies import right
from pytest_fp16.task import Task
from pytest_fp16.theory.flips import flip_probability
from pytest_fp16.theory.margin import margin, pick, top_two

#: By how much the reference prefers its own class to the one taken instead, and how likely that
#: one is taken, [N, P] each. The first is infinite where nothing was decided.
Flips = tuple[Tensor, Tensor]


def alike(reference: Tensor, theory: TheoryBatch) -> Tensor:
    """Which classes are computed like the reference's own, bool [N, P, C].

    Two logits that are equal to the last bit, and still are where storage is rounded, are the
    same computation twice (two equal inputs, an output that is clamped): they round alike, and
    what ties in 32 bits ties in 16.

    Args:
        reference: the reference's canonical logits, [N, P, C].
        theory: of the same batch.
    """
    top = reference.nan_to_num(nan=-torch.inf).argmax(-1)
    own = (values == pick(values, top).unsqueeze(-1) for values in (reference, theory.logits))
    return next(own) & next(own)


def flip_chance(reference: Tensor, theory: TheoryBatch, factor: float) -> Tensor:
    """Each decision's probability to flip, [N, P], with σ times a factor."""
    sigma = theory.sigma.double().cpu().numpy() * factor
    chance = flip_probability(theory.margin.double().cpu().numpy(), sigma)
    tied = alike(reference, theory).sum(-1) > 1
    return torch.from_numpy(np.asarray(chance)).masked_fill(tied.cpu(), 0.0)


def open_chance(reference: Tensor, theory: TheoryBatch) -> Tensor:
    """The probability to flip where a decision inside the model is open, [N, P].

    An even chance where nothing has been run; by Laplace's rule of succession where runs rounded
    at random have taken such decisions one way and the other.
    """
    runs = theory.noisy_classes
    if runs is None:
        return torch.full(theory.margin.shape, 0.5, dtype=torch.float64)
    top = reference.nan_to_num(nan=-torch.inf).argmax(-1)
    flipped = (runs.to(top.device) != top).sum(0).double()
    return ((flipped + 1) / (len(runs) + 2)).cpu()


def expected_right(
    reference: Tensor, labels: Tensor, theory: TheoryBatch, chance: Tensor
) -> Tensor:
    """The probability that each decision is right, [N, P].

    Args:
        reference, theory: see `alike`.
        labels: the right classes, [N, P].
        chance: see `flip_chance`.
    """
    same = alike(reference, theory)
    if theory.noisy_classes is not None:
        first = reference.nan_to_num(nan=-torch.inf).argmax(-1)
        classes = [
            torch.where(pick(same, run.clamp(min=0)) & (run >= 0), first, run)
            for run in theory.noisy_classes
        ]
        return (torch.stack(classes) == labels).double().mean(0)
    top, other = top_two(reference)
    expected = (top == labels) * (1 - chance) + (other == labels) * chance
    known = _settled(theory, top, other, same)
    return torch.where(known, right(theory.logits, labels).double(), expected)


def _settled(theory: TheoryBatch, top: Tensor, other: Tensor, same: Tensor) -> Tensor:
    """Where storage alone decides, [N, P]: of a third class, a tie or NaN no margin speaks."""
    predicted = theory.logits.nan_to_num(nan=-torch.inf).argmax(-1)
    third = (predicted != top) & (predicted != other)
    return third | theory.logits.isnan().any(-1) | (same.sum(-1) > 1)


def flips_of(reference: Tensor, candidate: Tensor) -> Flips:
    """The flips of canonical logits [N, P, C], as ``argmax`` decides."""
    taken = candidate.nan_to_num(nan=-torch.inf).argmax(-1)
    return _against(reference, taken, candidate.isnan().any(-1))


def _against(reference: Tensor, taken: Tensor, lost: Tensor) -> Flips:
    top = reference.nan_to_num(nan=-torch.inf).argmax(-1)
    lead = margin(reference, top, taken).masked_fill(lost, torch.inf)
    return lead, ((taken != top) | lost).double()


def expected_flips(reference: Tensor, theory: TheoryBatch, chance: Tensor) -> Iterator[Flips]:
    """The flips that theory expects; see `expected_right`."""
    same = alike(reference, theory)
    first = reference.nan_to_num(nan=-torch.inf).argmax(-1)
    if theory.noisy_classes is not None:
        for run in theory.noisy_classes:
            lost = run < 0
            keeps = pick(same, run.clamp(min=0)) & ~lost
            taken = torch.where(keeps, first, run.clamp(min=0))
            leads, flipped = _against(reference, taken, lost)
            yield leads, flipped / len(theory.noisy_classes)
        return
    top, other = top_two(reference)
    leads, flipped = flips_of(reference, theory.logits)
    known = _settled(theory, top, other, same)
    gap = margin(reference, top, other)
    yield torch.where(known, leads, gap), torch.where(known, flipped, chance)


def noisy(theory: TheoryBatch, task: Task, seed: int) -> Tensor:
    """Theory's logits with rounding errors of theory's size: a metric of the user's may see any.

    A value that is exactly zero, as what is masked or clamped is, has none.
    """
    if theory.noisy_logits is not None:
        return theory.noisy_logits
    generator = torch.Generator(device=theory.logits.device).manual_seed(seed)
    noise = torch.empty_like(theory.logits).normal_(generator=generator)
    sigma = theory.sigma.nan_to_num(0, 0, 0).reshape(len(noise), -1, 1)
    if task.kind == "classification":
        sigma = sigma / 2**0.5  # a margin is the difference of two logits
    return theory.logits + (noise * sigma).masked_fill_(theory.logits == 0, 0)
