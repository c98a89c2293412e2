"""Where to cut a program next, so that few cuts find the operation a failure was born in.

Each cut costs about a pass of the model. Any operation may be the origin, but two guesses are
better than none: the first operation whose results are not finite, and the one at which the
growing squared error would reach the part sought, if it grew as theory expects between the cuts
that are known. Guesses only decide the order; what is found is what the cuts say.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence

#: Factor by which the growth of the error may differ from the one expected.
_OFF = 3.0
#: Part of the growth that is expected of no operation more than of another.
_ANYWHERE = 0.2
#: How much more the first result that is not finite says than all that theory expects.
_LOST = 2.0


class Search:
    """Bisection by chances.

    Args:
        shares: for each operation, the part of the squared error it is expected to add, in any
            unit.
        sought: the squared damage at which an operation is the origin.
        lost: the first operation whose results are not finite, or None.

    Attributes:
        harmless, harmful: cuts known to lie before and behind the origin.
    """

    def __init__(self, shares: Sequence[float], sought: float, lost: int | None) -> None:
        self.shares, self.sought, self.lost = shares, sought, lost
        self.harmless, self.harmful = 0, len(shares)
        self._before, self._behind = 0.0, 1.0

    @property
    def grown(self) -> float:
        """How much the squared damage grows between the two."""
        return self._behind - self._before

    def learn(self, cut: int, damage: float) -> None:
        """The squared damage of a cut."""
        if damage >= self.sought:
            self.harmful, self._behind = cut, damage
        else:
            self.harmless, self._before = cut, damage

    def cut(self, among: Container[int] | None = None) -> int | None:
        """The cut that leaves as even a chance on either side as can be.

        Args:
            among: the cuts to choose from; None for any.

        Returns:
            None where no such cut is left between the two that are known.
        """
        chance = self._chances()
        total, so_far = sum(chance), 0.0
        best, nearest = None, math.inf
        for at, share in enumerate(chance[:-1], start=self.harmless + 1):
            so_far += share
            if abs(so_far - total / 2) < nearest and (among is None or at in among):
                best, nearest = at, abs(so_far - total / 2)
        return best

    def _chances(self) -> list[float]:
        """How likely each operation between the two cuts is to be the origin."""
        shares = self.shares[self.harmless : self.harmful]
        total, count = sum(shares), len(shares)
        reached, chances = self._before, []
        for i, share in enumerate(shares, start=self.harmless):
            even = 1 / count
            grows = (1 - _ANYWHERE) * share / total + _ANYWHERE * even if total > 0 else even
            before, reached = reached, reached + grows * (self._behind - self._before)
            chances.append(even / 2 + self._crossing(before, reached) + _LOST * (i == self.lost))
        return chances

    def _crossing(self, before: float, after: float) -> float:
        """The chance that the squared error reaches the part sought between the two."""
        low, high = math.log(self.sought / _OFF), math.log(self.sought * _OFF)
        first, last = (min(max(math.log(max(x, 1e-9)), low), high) for x in (before, after))
        return (last - first) / (high - low)
