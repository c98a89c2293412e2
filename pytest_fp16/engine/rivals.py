"""Could a third class win? Backward passes from the margins over further classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pytest_fp16.engine.sites import Sums
from pytest_fp16.engine.trace import Trace
from pytest_fp16.theory.rounding import Format

if TYPE_CHECKING:
    from pytest_fp16.engine.theory_pass import TheoryPass


#: A competitor this many bounds of the runner-up away is taken as cleared without its own pass.
SCREEN = 4.0
#: Backward passes on the first few inputs that measure how far the errors of classes differ.
SCREENING_PASSES = 32


class NotDifferentiableError(Exception):
    """A reverse pass cannot be made; random rounding can."""


class Rivals:
    """Backward passes of one chunk from the margins over the third class and further ones.

    Ranks are the reference's, so each is made once, whoever asks for it.
    """

    def __init__(self, leader: TheoryPass, trace: Trace, canonical: Tensor, like: Tensor) -> None:
        self.leader = leader
        self.trace = trace
        self.canonical = canonical
        self.like = like
        self.known: list[tuple[Tensor, dict[Format, Sums]]] = []

    def sums(self, top: Tensor, rival: Tensor) -> dict[Format, Sums]:
        """The sums of the margins of `top` over `rival`, class indices of shape [kept, P, 1]."""
        for asked, sums in self.known:
            if torch.equal(asked, rival):
                return sums
        seeds = torch.zeros_like(self.like).scatter(-1, top, 1.0).scatter(-1, rival, -1.0)
        made = self.leader.backward(self.trace, self.canonical, seeds)
        self.known.append((rival, made))
        return made


def measured_screen(
    theory: TheoryPass, trace: Trace, canonical: Tensor, reference: Tensor
) -> float:
    """The screen, wider where some class has a much larger error than the runner-up.

    Takes each class's bound on a few inputs; many classes in groups with random signs, whose sum
    stands for the largest among them.

    Args:
        theory: runs backward.
        trace, canonical: its run of the few inputs.
        reference: their canonical logits, [few, P, C].
    """
    classes = reference.shape[-1]
    if not theory.task.decides or classes < 3:
        return SCREEN
    top = torch.zeros_like(reference).scatter_(-1, reference.argmax(-1, keepdim=True), 1.0)
    signs = torch.ones_like(reference[0, 0])
    if classes > SCREENING_PASSES:
        generator = torch.Generator().manual_seed(classes)
        drawn = torch.randint(0, 2, (classes,), generator=generator)
        signs = drawn.mul_(2).sub_(1).to(signs)

    def bound(seeds: Tensor) -> Tensor:
        return theory.backward(trace, canonical, seeds)[theory.format].bound

    screen, own = SCREEN, bound(theory.task.seeds(reference)).clamp(min=1e-30)
    for start in range(min(classes, SCREENING_PASSES)):
        group = torch.zeros_like(signs)
        group[start::SCREENING_PASSES] = signs[start::SCREENING_PASSES]
        ratio = (bound(top * group.sum() - group) / own)[: len(reference)].nan_to_num(0, 0, 0)
        screen = max(screen, 2 * float(ratio.max()))
    return screen
