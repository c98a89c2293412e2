"""Counts and schedules in buffers: which stand still, and which of those do harm."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16 import Training
from pytest_fp16.engine.gradients.check import gradient_check
from pytest_fp16.engine.gradients.probes.steady_probe import SteadyRecorder
from pytest_fp16.precision import precision
from pytest_fp16.settings import Settings

SGD = partial(torch.optim.SGD, lr=0.5)


def points(count=256):
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (count,), generator=generator)
    return 2 * torch.eye(4)[y] + torch.randn(count, 4, generator=generator) / 2, y


class Net(nn.Module):
    def __init__(self, **buffers):
        super().__init__()
        self.line, self.made = nn.Linear(4, 4), 0
        for name, value in buffers.items():
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x):
        return self.line(x)


def found(step, /, name="bf16-true", optimizer=SGD, epochs=30, accumulate=1, **buffers):
    x, y = points()
    data = list(zip(x.split(16), y.split(16), strict=True))
    subject = Training(
        model=lambda: Net(**buffers),
        optimizer=optimizer,
        loss=None,
        training_step=step,
        train_data=data,
        eval_data=data,
        epochs=epochs,
        accumulate=accumulate,
    )
    return gradient_check(subject, precision(name), Settings(), torch.device("cpu"))


def loss_of(model, batch, scale=1.0):
    return F.cross_entropy(model(batch[0]) * scale, batch[1])


def curriculum(model, batch):
    """Coarse labels for the first 300 of 480 batches; bfloat16 counts to 256."""
    model.step += 1
    return F.cross_entropy(model(batch[0]), batch[1] if model.step > 300 else batch[1] % 2)


def annealed(model, batch):
    model.tau *= 0.998
    return loss_of(model, batch, 0.25 / model.tau)


def counted(model, batch):
    model.step += 1
    return loss_of(model, batch)


def told(model, batch):
    """The same temperature, from a number that Python counts."""
    model.made += 1
    model.tau.fill_(64 * 0.997**model.made)
    return loss_of(model, batch, 1 / model.tau)


def bounded(model, batch):
    model.part.add_(0.01).clamp_(max=1.0)
    return model.part * loss_of(model, batch)


def corrected(model, batch):
    """An average that starts at zero, and is divided by what it has seen."""
    model.step += 1
    model.mean.lerp_(batch[0].mean().to(model.mean.dtype), 0.05)
    return loss_of(model, batch) + 0.01 * model.mean / (1 - 0.95 ** float(model.step))


def test_a_count_that_stands_still_is_named_where_the_loss_reads_it():
    forecast = found(curriculum, step=0.0)
    assert forecast.verdict == "not equivalent"
    assert (forecast.culprit.module, forecast.culprit.operation) == ("", "step")
    assert forecast.culprit.mechanism == "absorption"
    assert "step ends at 256 in 16 bits, at 480 in 32" in forecast.reason
    assert "stands still after 256 of 480 steps" in forecast.reason


@pytest.mark.parametrize(
    ("name", "buffers"), [("16-true", {"step": 0.0}), ("bf16-mixed", {"step": 0.0})]
)
def test_a_format_that_counts_so_far_is_enough(name, buffers):
    assert found(curriculum, name, **buffers).verdict == "equivalent"


def test_a_whole_number_counts_on():
    assert found(curriculum, step=0).verdict == "equivalent"


def test_a_part_of_a_step_stands_still_sooner_than_a_step():
    """Two batches make one of 240 steps: the count goes by one at each batch all the same."""
    forecast = found(curriculum, accumulate=2, step=0.0)
    assert "step ends at 256 in 16 bits, at 480 in 32" in forecast.reason


def test_a_temperature_that_hardly_falls_is_named():
    slow = partial(SGD, lr=0.05)
    forecast = found(annealed, optimizer=slow, epochs=80, tau=8.0)
    assert forecast.culprit.operation == "tau"
    assert "a buffer loses its way" in forecast.reason
    assert found(annealed, "16-true", optimizer=slow, epochs=80, tau=8.0).culprit is None


@pytest.mark.parametrize(
    ("step", "buffers"),
    [
        (counted, {"step": 0.0}),  # nobody reads it
        (told, {"tau": 64.0}),  # it is set, not moved
        (bounded, {"part": 0.0}),  # it has arrived before it would stand still
        (corrected, {"step": 0.0, "mean": 0.0}),  # by then it changes next to nothing
    ],
    ids=["unread", "set", "bounded", "corrected"],
)
def test_what_does_no_harm_is_not_flagged(step, buffers):
    forecast = found(step, **buffers)
    assert forecast.verdict == "equivalent", forecast.reason
    assert forecast.suspect is None


def test_what_the_optimizer_makes_up_for_is_a_note_and_a_suspect():
    """A factor on the loss is none to Adam."""

    def scaled(model, batch):
        model.tau *= 0.997
        return loss_of(model, batch) * model.tau

    forecast = found(scaled, optimizer=partial(torch.optim.Adam, lr=0.02, eps=1e-6), tau=60.0)
    assert forecast.verdict == "equivalent", forecast.reason
    assert any("tau ends at" in note for note in forecast.notes)
    assert forecast.suspect.operation == "tau"


def test_only_what_goes_on_as_it_began_is_kept():
    model = Net(step=0.0, tau=8.0, fixed=1.0, mean=0.0)
    recorder = SteadyRecorder(model)
    for _ in range(5):
        model.step += 1
        model.tau *= 0.9
        model.mean.lerp_(torch.tensor(1.0), 0.1)
        recorder.keep()
    assert recorder.paces().keys() == {"step", "tau"}
    assert recorder.kept.keys() == {"step", "tau"}
