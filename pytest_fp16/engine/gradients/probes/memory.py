"""What a model keeps of its own outputs, once it has been as sure of them for a while.

Losses that hold an output against what was said of the same input before (a memory of targets, a
running average) meet a trained model's values on both sides.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pytest_fp16.engine.randomness import seed_everything
from pytest_fp16.engine.training.modes import to_train
from pytest_fp16.engine.training.trainee import Trainee
from pytest_fp16.engine.untouched import plain_tensors, untouched

#: More passes than that are not made.
MOST = 64


def passes_of(trainee: Trainee, batch: Any) -> int:
    """How often it should see a batch for what it keeps to follow: none where it keeps nothing.

    What is kept per input is written once an epoch. Running statistics are of what goes in, and no
    training pass reads them.
    """
    with untouched(trainee.model):
        before = _kept(trainee.model)
        before = {name: tensor.detach().clone() for name, tensor in before.items()}
        try:
            follow(trainee, batch, 1)
        except torch.OutOfMemoryError:
            raise
        except Exception:
            return 0
        after = _kept(trainee.model)
        changes = any(n not in before or not torch.equal(before[n], t) for n, t in after.items())
    return min(trainee.subject.epochs, MOST) if changes else 0


def follow(trainee: Trainee, batch: Any, passes: int) -> None:
    """Make so many passes over a batch, forwards: what the model keeps goes along."""
    to_train(trainee.model)
    for number in range(passes):
        seed_everything(number)
        with trainee.place.arithmetic(trainee.precision):
            trainee.loss(trainee.placed(batch))


def _kept(model: nn.Module) -> dict[str, Any]:
    """Floating buffers and plain tensors, but for the running statistics of torch's own norms."""
    running = (nn.modules.batchnorm._NormBase,)
    found = dict(plain_tensors(model))
    for name, module in model.named_modules():
        if not isinstance(module, running):
            own = module.named_buffers(prefix=name, recurse=False)
            found.update({n: b for n, b in own if b.is_floating_point()})
    return found
