"""How far the gradient check follows a training, and the batches that it meets on the way."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from pytest_fp16.engine.gradients.points import BATCHES
from pytest_fp16.engine.training.order import ordered
from pytest_fp16.errors import DataError
from pytest_fp16.subject import Training

SEED = 0
_TRAJECTORY = (6, 256)  # steps: the least and the most; a sixth of the training in between
_TOGETHER = (4, 12)  # steps made in both precisions: a third of the trajectory


#: Hears how many batches have been taken.
Tell = Callable[[int], None]


class Course:
    """The steps and batches of one check.

    Args:
        subject: the training.
        tell: called with how many batches have been taken, for each.

    Attributes:
        total: optimizer steps of the whole training.
        every: batches per step.
        length: steps of the trajectory.
        together: those of them that are made in both precisions.
        first: the batches of those.
        extra: the batches of the points; none of them is trained on.
        stream: what follows.
    """

    def __init__(self, subject: Training, tell: Tell | None = None) -> None:
        self.subject, self.every = subject, subject.accumulate
        self._tell, self._taken = tell, 0
        self.total = max(batches_per_epoch(subject) * subject.epochs // self.every, 1)
        low, high = _TRAJECTORY
        self.length = min(max(self.total // 6, low), high, max(self.total, 2))
        self.together = min(max(self.length // 3, _TOGETHER[0]), _TOGETHER[1], self.length)
        self.stream = self.any()
        self.first = list(itertools.islice(self.stream, self.together * self.every))
        self.extra = list(itertools.islice(self.stream, BATCHES))

    def of(self, step: int) -> list[Any]:
        """The batches of a step of the trajectory; the steps have to be asked for in order."""
        held = self.first[step * self.every : (step + 1) * self.every]
        return held or list(itertools.islice(self.stream, self.every))

    def again(self) -> Iterator[Any]:
        """The batches of the trajectory and those that follow, from the first."""
        stream = self.any()
        yield from itertools.islice(stream, len(self.first))
        yield from itertools.islice(stream, BATCHES, None)

    def any(self) -> Iterator[Any]:
        """All batches from the first, those of the points among them."""
        for batch in endless(self.subject, SEED):
            self._taken += 1
            if self._tell is not None:
                self._tell(self._taken)
            yield batch


def batches_per_epoch(subject: Training) -> int:
    """How many batches an epoch has; at most 256 are counted where data has no length."""
    try:
        return max(len(subject.train_data), 1)  # type: ignore[arg-type]
    except TypeError:
        return sum(1 for _ in itertools.islice(iter(subject.train_data), 256))


def endless(subject: Training, seed: int) -> Iterator[Any]:
    """The batches of epoch after epoch, in the order training takes them.

    Raises:
        DataError: there are none.
    """
    for epoch in itertools.count():
        empty = True
        for batch in ordered(subject.train_data, seed, epoch):
            empty = False
            yield batch
        if empty:
            raise DataError("train_data yields no batches")
