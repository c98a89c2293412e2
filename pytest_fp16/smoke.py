"""The plain test a conformance test is without the flag: does it run at all, in float32?"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from pytest_fp16.engine.batching import copied, first_batch, split_batch, to_device
from pytest_fp16.engine.copies import own_model
from pytest_fp16.engine.models import call_as_is, evaluating
from pytest_fp16.engine.outputs import main_output
from pytest_fp16.engine.randomness import preserved_state
from pytest_fp16.engine.training.modes import to_train
from pytest_fp16.precision import REFERENCE
from pytest_fp16.subject import Evaluation, Training

__tracebackhide__ = True  # what the user's own code raises is shown at the user's own lines


def smoke(subject: Evaluation | Training) -> None:
    """Call the model on one batch, or make one training step, in float32.

    An evaluation runs where the model lies, a training on the CPU.

    Raises:
        DataError: there is no batch.
        ModelError: no model can be made, or it returns no logits.
        Exception: whatever the user's own code raises.
    """
    with preserved_state():
        if isinstance(subject, Training):
            _one_step(subject)
        else:
            _one_batch(subject)


def _one_batch(subject: Evaluation) -> None:
    model = evaluating(own_model(subject.model))
    inputs, _ = split_batch(first_batch(subject.data, "data"), subject.holds_labels)
    with torch.no_grad():
        main_output(call_as_is(model, copied(to_device(inputs, _device(model))), subject.forward))


def _one_step(subject: Training) -> None:
    from pytest_fp16.engine.training.place import Place
    from pytest_fp16.engine.training.trainee import Trainee, initial_state

    subject = replace(subject, model=partial(own_model, subject.model))
    state = initial_state(subject, 0)
    batch = first_batch(subject.train_data, "train_data")
    trainee = Trainee(subject, REFERENCE, 0, state, Place(torch.device("cpu")))
    to_train(trainee.model)
    with trainee.installed():
        trainee.step(batch, last=True)


def _device(model: torch.nn.Module) -> torch.device:
    tensor = next(model.parameters(), None)
    return torch.device("cpu") if tensor is None else tensor.device
