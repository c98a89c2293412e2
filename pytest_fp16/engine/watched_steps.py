"""Steps of a training made once more, watched by what names the operation that broke them."""

from __future__ import annotations

from typing import Any

from torch import nn

from pytest_fp16.engine.confidence import Confidence, scaling
from pytest_fp16.engine.order import step_seed
from pytest_fp16.engine.origin import Origin
from pytest_fp16.engine.randomness import seed_everything
from pytest_fp16.engine.trainee import Trainee


def watched(
    trainee: Trainee, batches: list[Any], seed: int | None, sure: Confidence | None = None
) -> Origin:
    """What saw the steps of a fresh trainee, up to what broke them.

    Args:
        trainee: as it is before the first of them.
        batches: one per step, or per part of an accumulated one.
        seed: of the training, where these are its own first steps; None at its points.
        sure: what is done to the outputs.
    """
    origin = Origin(trainee.model)
    nn.Module.register_forward_hook(trainee.model, scaling(sure))
    origin.watch(trainee.optimizer)
    every = trainee.subject.accumulate
    for number, batch in enumerate(batches):
        origin.begin()
        seed_everything(0 if seed is None else step_seed(seed, number // every, number % every))
        trainee.model.train()
        try:
            trainee.step(batch, witness=origin)
        except Exception:
            break
        if origin.found is not None:
            break
    return origin
