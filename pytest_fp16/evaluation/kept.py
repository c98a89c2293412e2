"""The inputs a diagnosis will look at: a few of a batch, or all of it if that is what it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from pytest_fp16.diagnosis.damage import ENOUGH, Damage
from pytest_fp16.engine.batching import take
from pytest_fp16.engine.candidate import Candidate
from pytest_fp16.engine.untouched import untouched
from pytest_fp16.evaluation.batch import Batch
from pytest_fp16.evaluation.evidence import KEPT, Kept
from pytest_fp16.task import Task

#: Error of values, relative to their spread, from which on they have gone wrong.
_ASTRAY = 0.1


def few_inputs(batch: Batch, wrong: list[int]) -> Kept:
    """A few inputs of a batch, those that went wrong among them."""
    rest = [i for i in range(batch.n) if i not in set(wrong)]
    indices = sorted([*wrong, *rest[: KEPT - len(wrong)]])
    places = [indices.index(i) for i in wrong]
    return Kept(take(batch.inputs, batch.n, indices), len(indices), places, batch.seed)


def everything(batch: Batch, whole: bool, wrong: Sequence[int] = ()) -> Kept:
    """All inputs of a batch; `whole` says that they cannot be looked at one by one."""
    return Kept(batch.inputs, batch.n, list(wrong), batch.seed, whole=whole)


def enough_inputs(
    batch: Batch, wrong: list[int], output: Tensor, candidate: Candidate, task: Task, emulated: bool
) -> Kept:
    """A few inputs if they go wrong without the others, too; otherwise the batch.

    A model that numbers the pixels of a batch, or sums over it, may leave a format's range for
    many inputs only.
    """
    if not wrong and not task.decides:
        wrong = _astray(Damage(task, batch.output, output))
    few = few_inputs(batch, wrong)
    whole = replace(few, inputs=batch.inputs, n=batch.n, wrong=wrong, whole=True)
    if not wrong or batch.n <= KEPT or candidate.habits.lasting:
        return few
    beside = candidate.beside
    try:
        with untouched(candidate.model, weights=False):
            again = candidate.outputs(few.inputs, few.seed, emulated=emulated).cpu()
    except Exception:
        return whole
    finally:
        candidate.beside = beside
    shown = Damage(task, batch.output[wrong], output[wrong]).of(again[few.wrong])
    return few if shown >= ENOUGH else whole


def _astray(damage: Damage) -> list[int]:
    """The values that err most, if they err by much."""
    if damage.relative < _ASTRAY:
        return []
    return damage.full.argsort(descending=True)[:KEPT].tolist()
