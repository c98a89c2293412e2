"""The same data in the same order for every precision of a seed.

Loaders draw from torch's global generator, from one of their own, or from one of their sampler's;
augmentations draw from the global ones, in the middle of a run. All are set before every epoch and
every batch, so that what a model draws for itself (dropout) cannot move the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from pytest_fp16.engine.containers import all_tensors
from pytest_fp16.engine.randomness import seed_everything
from pytest_fp16.engine.untouched import memory

_PARTS = ("sampler", "batch_sampler", "dataset")
_STRIDE = 1_000_003  # a prime: seeds of neighbouring runs, epochs and steps do not meet


def generators(data: Any, depth: int = 3) -> list[torch.Generator]:
    """Every ``torch.Generator`` a loader and its samplers and dataset draw from."""
    found: list[torch.Generator] = []
    own = getattr(data, "generator", None)
    if isinstance(own, torch.Generator):
        found.append(own)
    if depth:
        for name in _PARTS:
            part = getattr(data, name, None)
            if part is not None and part is not data:
                found += [g for g in generators(part, depth - 1) if all(g is not f for f in found)]
    return found


@contextmanager
def preserved_generators(*data: Any) -> Iterator[None]:
    """Leave the generators of a user's loaders as they were."""
    states = [(g, g.get_state()) for d in data for g in generators(d)]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def step_seed(seed: int, epoch: int, step: int = 0) -> int:
    """A seed of its own for each step of each epoch of each run."""
    return ((seed * _STRIDE + epoch) * _STRIDE + step) % 2**31


def ordered(data: Iterable[Any], seed: int, epoch: int) -> Iterator[Any]:
    """The batches of one epoch, in an order (and with augmentations) set by the seed and epoch.

    A list has no order to draw: it is shuffled batch-wise, so that seeds differ there too.
    """
    start = step_seed(seed, epoch)
    for generator in generators(data):
        generator.manual_seed(start)
    seed_everything(start)
    sampler: Any = getattr(data, "sampler", None)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(start)
    if isinstance(data, (list, tuple)):
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(start))
        data = [data[i] for i in order.tolist()]
    iterator = iter(data)
    step = 0
    while True:
        step += 1
        seed_everything(step_seed(seed, epoch, 2 * step))
        try:
            batch = next(iterator)
        except StopIteration:
            return
        seed_everything(step_seed(seed, epoch, 2 * step + 1))
        yield batch


def same_batch(first: Any, second: Any) -> bool:
    """Whether two batches hold the same tensors."""
    one, two = all_tensors(first), all_tensors(second)
    return len(one) == len(two) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, two, strict=True)
    )


def is_part_of(evaluated: Any, trained: Any) -> bool:
    """Whether all that is evaluated on is trained on, as far as that shows without reading it.

    They are one object, or loaders of one whole dataset; or lists, and the batches of one hold the
    very tensors of the other's.
    """
    if evaluated is trained:
        return True
    if isinstance(evaluated, (list, tuple)) and isinstance(trained, (list, tuple)):
        known = set(map(_places, trained))
        return bool(evaluated) and all(_places(batch) in known for batch in evaluated)
    loaders = (evaluated, trained)
    if not all(isinstance(loader, DataLoader) for loader in loaders):
        return False
    whole = all(type(d.sampler) in (RandomSampler, SequentialSampler) for d in loaders)
    return whole and evaluated.dataset is trained.dataset


def _places(batch: Any) -> tuple[Any, ...]:
    """Where the tensors of a batch lie; itself where it has none."""
    tensors = all_tensors(batch)
    if not tensors:
        return (id(batch),)
    return tuple((memory(t), t.shape, *_within(t)) for t in tensors)


def _within(tensor: Tensor) -> tuple[Any, ...]:
    """Where in its memory a tensor lies; nothing of one that has none of its own."""
    strided = tensor.layout is torch.strided
    return (tensor.storage_offset(), tensor.stride()) if strided else ()
