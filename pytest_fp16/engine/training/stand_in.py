"""What a Lightning module may ask of its Trainer while it trains: how far the training has come.

`global_step` and `current_epoch` of a module are its Trainer's; without one they would stay zero,
and a curriculum or an annealed loss would be another training.
"""

from __future__ import annotations

from operator import length_hint
from typing import Any

from torch import nn

from pytest_fp16.errors import SettingError
from pytest_fp16.subject import Training


class Counted:
    """How far a training has come.

    Args:
        subject: the training.

    Attributes:
        steps: of optimizers, those that a scaler skipped too.
        index: of the batch within its epoch; -1 before the first.
        last: whether it is the epoch's last, as far as anybody knows.
    """

    def __init__(self, subject: Training) -> None:
        self.subject = subject
        self.length = length_hint(subject.train_data)
        self.steps = self.batches = self.ended = 0
        self.index, self.last = -1, False

    @property
    def epoch(self) -> int:
        """Epochs before this batch's; a gradient check goes through the data and ends none."""
        before = max(self.batches - 1, 0)
        return self.ended or (before // self.length if self.length else 0)

    def begin(self, last: bool) -> None:
        """A batch begins."""
        self.batches, self.index, self.last = self.batches + 1, self.index + 1, last

    def end_epoch(self) -> None:
        """An epoch has ended."""
        self.ended, self.index = self.ended + 1, -1

    def follow(self, leader: Counted) -> None:
        """Go on from where another is."""
        self.steps, self.batches, self.ended = leader.steps, leader.batches, leader.ended


class StandIn:
    """What is known here of a Trainer; whatever else is asked is refused with what to do.

    It has no attributes of its own: it is no part of what a module keeps.
    """

    __slots__ = ("_counted",)

    #: Lightning's own words for "log nothing", and who prints.
    barebones, is_global_zero, training, sanity_checking = True, True, True, False
    global_rank, local_rank, world_size, logger, progress_bar_callback = 0, 0, 1, None, None

    def __init__(self, counted: Counted) -> None:
        self._counted = counted

    @property
    def loggers(self) -> list[Any]:
        """There are none."""
        return []

    @property
    def global_step(self) -> int:
        """Optimizer steps so far."""
        return self._counted.steps

    @property
    def current_epoch(self) -> int:
        """Epochs so far."""
        return self._counted.epoch

    @property
    def max_epochs(self) -> int:
        """Epochs there will be."""
        return self._counted.subject.epochs

    @property
    def accumulate_grad_batches(self) -> int:
        """Batches of one step."""
        return self._counted.subject.accumulate

    @property
    def num_training_batches(self) -> float:
        """Batches of an epoch; as a Trainer has it, infinite where nobody knows."""
        return self._counted.length or float("inf")

    @property
    def is_last_batch(self) -> bool:
        """Whether the epoch ends with this batch."""
        return self._counted.last

    def __deepcopy__(self, memo: Any) -> StandIn:
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise SettingError(
            f"the Lightning module asks its Trainer for {name!r} while it trains, and there is no "
            "Trainer here; give it to the module itself, or pass training_step= to Training, a "
            "function of (model, batch) that returns the loss, and optimizer="
        )


def counted(model: nn.Module, subject: Training) -> Counted:
    """What counts the steps of a model, which its Lightning modules can ask for."""
    made = Counted(subject)
    for module in model.modules():
        if "_trainer" in vars(module) and hasattr(type(module), "current_epoch"):
            vars(module)["_trainer"] = StandIn(made)
    return made
