"""How a 16-bit program fails for its own values, and only with some batches.

A distribution checks that probabilities add up to one, a solver that its step is no smaller than
rounding, a table is read at an index that was rounded: most batches pass. So a program that reads
its values on the host, or makes whole numbers of them, is shown more batches.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pytest_fp16.engine.emulation.operations import LOW, facts, tensors
from pytest_fp16.engine.gradients.origins.whole_numbers import Miscount, WholeNumbers, miscounted
from pytest_fp16.engine.gradients.points import gradients
from pytest_fp16.engine.randomness import seed_everything
from pytest_fp16.engine.source import entrance
from pytest_fp16.engine.training.modes import to_train
from pytest_fp16.engine.training.trainee import Trainee
from pytest_fp16.engine.uncompiled import FollowingMode
from pytest_fp16.engine.untouched import untouched
from pytest_fp16.theory.rounding import Format

#: Batches that such a program is shown.
SHOWN = 32
_READS = frozenset("_local_scalar_dense equal is_nonzero".split())


class Decisions(FollowingMode):
    """Sees whether a program decides by its values: on the host, or by a whole number of them.

    Attributes:
        seen: whether it has.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = facts(func).name
        self.seen |= name in _READS or (name == "_to_copy" and _whole(out, args))
        return out


def _whole(out: Any, args: tuple[Any, ...]) -> bool:
    made = isinstance(out, Tensor) and not (out.is_floating_point() or out.dtype == torch.bool)
    return made and any(t.dtype in LOW for t in tensors(args, {}))


def decides(candidate: Trainee, batch: Any) -> bool:
    """Whether the 16-bit program decides anything by its values, in the loss of one batch."""
    decisions = Decisions()
    observed(candidate, batch, decisions)
    return decisions.seen


def counted(
    reference: Trainee, candidate: Trainee, batch: Any, form: Format, ended: bool = False
) -> tuple[Miscount | None, Miscount | None]:
    """(whole numbers made in 16 bits and wrong, whole numbers that a cast to 16 bits changes).

    Args:
        reference: the 32-bit training, as far as it has come.
        candidate: takes its weights.
        batch: any.
        form: of the candidate.
        ended: whether the candidate raises with this batch.
    """
    candidate.follow(reference)
    exact, low = (WholeNumbers(trainee.model) for trainee in (reference, candidate))
    observed(reference, batch, exact)
    observed(candidate, batch, low)
    return miscounted(exact, low, form, ended), low.changed


def rounded_index(
    error: Exception, reference: Trainee, candidate: Trainee, batch: Any, form: Format
) -> Miscount | None:
    """The whole numbers that were rounded, where an index is out of range for it."""
    if not isinstance(error, IndexError):
        return None
    return counted(reference, candidate, batch, form, ended=True)[0]


def observed(trainee: Trainee, batch: Any, observer: Any, backwards: bool = False) -> None:
    """Compute the loss of a batch under a dispatch mode; what is raised is no matter here.

    Args:
        backwards: its gradient, too.
    """
    try:
        _loss(trainee, batch, 0, observer, backwards)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        pass  # what is wrong with it has been seen elsewhere, or will be


class Failure(NamedTuple):
    """A batch with which only the candidate fails, the seed of what is drawn, and the error.

    `error` is None where none was raised: loss and gradient are not finite.
    """

    batch: Any
    seed: int
    error: Exception | None


def failing(reference: Trainee, candidate: Trainee, batches: Iterable[Any]) -> Failure | None:
    """The first batch with which the candidate fails and the reference does not.

    Args:
        reference: the 32-bit training, as far as it has come.
        candidate: takes its weights.
        batches: any number; `SHOWN` of them are tried.
    """
    candidate.follow(reference)
    for seed, batch in enumerate(itertools.islice(batches, SHOWN)):
        try:
            lost = _lost(candidate, batch, seed)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return Failure(batch, seed, error) if _passes(reference, batch, seed) else None
        if lost and _passes(reference, batch, seed):
            return Failure(batch, seed, None)
    return None


def _lost(candidate: Trainee, batch: Any, seed: int) -> bool:
    """Whether a batch leaves no gradient; a scaler skips such a step."""
    if math.isfinite(_loss(candidate, batch, seed)) or candidate.scaler is not None:
        return False
    return not gradients(candidate, batch, seed).finite


def _passes(reference: Trainee, batch: Any, seed: int) -> bool:
    try:
        return math.isfinite(_loss(reference, batch, seed))
    except Exception:
        return False


@entrance
def _loss(
    trainee: Trainee, batch: Any, seed: int, observer: Any = None, backwards: bool = False
) -> float:
    """The loss of a batch; nothing of the trainee is changed."""
    to_train(trainee.model)
    seed_everything(seed)
    with untouched(trainee.model), trainee.place.arithmetic(trainee.precision):
        placed = trainee.placed(batch)
        with observer or nullcontext():
            loss = trainee.loss(placed)
            if backwards:
                weights = [p for p in trainee.parameters() if p.requires_grad]
                torch.autograd.grad(loss, weights, allow_unused=True)
    return float(loss.detach())
