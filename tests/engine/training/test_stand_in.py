"""Modules are told how far their training has come; what nobody knows is refused."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
from torch import nn

from pytest_fp16.engine.containers import all_tensors, held_tensors
from pytest_fp16.engine.training.stand_in import Counted, StandIn, counted
from pytest_fp16.errors import SettingError


def subject(train_data=(1, 2, 3), epochs=2, accumulate=1):
    return SimpleNamespace(train_data=train_data, epochs=epochs, accumulate=accumulate)


class Asking(nn.Module):
    """As Lightning's modules ask: for nothing, where there is no Trainer."""

    def __init__(self):
        super().__init__()
        self._trainer = None

    @property
    def current_epoch(self):
        return self._trainer.current_epoch if self._trainer else 0


def test_epochs_are_those_that_ended_or_follow_from_the_batches():
    runs, checks = Counted(subject()), Counted(subject())
    said = []
    for _ in range(2):
        for _ in range(3):
            runs.begin(False), checks.begin(False)
            said.append((runs.epoch, checks.epoch))
        runs.end_epoch()
    assert said == [(0, 0)] * 3 + [(1, 1)] * 3
    assert Counted(subject(train_data=iter(()))).epoch == 0


def test_one_that_follows_goes_on_from_there():
    leader, own = Counted(subject()), Counted(subject())
    leader.begin(False)
    leader.end_epoch()
    leader.steps = 3
    own.follow(leader)
    assert (own.steps, own.epoch, own.batches) == (3, 1, 1)


def test_every_module_that_asks_is_told():
    model = nn.Sequential(Asking(), nn.Linear(2, 2))
    came = counted(model, subject())
    came.end_epoch()
    assert model[0].current_epoch == 1
    assert not hasattr(model[1], "_trainer")


def test_what_is_known_and_what_is_not():
    came = Counted(subject(accumulate=2))
    came.begin(True)
    trainer = StandIn(came)
    assert (trainer.max_epochs, trainer.num_training_batches) == (2, 3)
    assert trainer.accumulate_grad_batches == 2
    assert trainer.is_last_batch
    assert (trainer.global_step, trainer.loggers) == (0, [])
    with pytest.raises(SettingError, match="asks its Trainer for 'strategy'"):
        trainer.strategy.barrier()


def test_it_is_no_part_of_what_a_module_keeps():
    trainer = StandIn(Counted(subject()))
    assert copy.deepcopy(trainer) is trainer
    assert not all_tensors(trainer)
    assert not held_tensors(trainer)
