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
